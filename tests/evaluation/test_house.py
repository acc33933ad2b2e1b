"""The house rules, read from the source of evaluation/."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from evaluation.runner import source_digest

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "evaluation").rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_stay_small_and_safe(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 300, "a file past 300 lines wants to be two"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call):
            assert getattr(node.func, "id", None) not in ("eval", "exec", "compile", "__import__")
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [a.name for a in node.names] + [getattr(node, "module", None) or ""]
            assert not {"pickle", "marshal", "shelve", "dill", "requests", "urllib"} & {n.split(".")[0] for n in names}
            assert getattr(node, "level", 0) or names[-1].split(".")[0] != "evaluation", "relative imports inside"


def test_importing_the_command_line_is_light():
    code = (
        "import sys; import evaluation.cli; "
        "heavy = {'torch', 'transformers', 'matplotlib', 'nodes'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=120)


def test_help_names_both_commands():
    for arguments in (["--help"], ["run", "--help"]):
        done = subprocess.run(
            [sys.executable, "-m", "evaluation", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0
    assert "--show-prompts" in done.stdout


def test_a_changed_method_has_another_digest(words, nothing):
    assert source_digest(words) == source_digest(nothing), "both stand in the same module"
    assert source_digest(words) != source_digest(words, "weights")
    from evaluation.all_concepts import AllConcepts

    assert source_digest(AllConcepts(None)) != source_digest(words)
