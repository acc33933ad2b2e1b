"""What a digest sees, and that an entry counts only for what it was made of."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from evaluation import store
from evaluation.store import Entry, Store, tree_digest
from sanitizer import tensor_files
from sanitizer.errors import SanitizerError

ROOT = Path(__file__).resolve().parents[2]


def tree(folder):
    (folder / "model" / "deep").mkdir(parents=True)
    (folder / "cli.py").write_text("one")
    (folder / "model" / "deep" / "gate.py").write_text("two")
    (folder / "words.toml").write_text("three")
    return folder


@pytest.mark.parametrize("name", ["cli.py", "model/deep/gate.py", "words.toml"])
def test_every_file_counts_in_every_folder(tmp_path, name):
    folder = tree(tmp_path / "x")
    before = tree_digest(folder)
    assert tree_digest(tree(tmp_path / "y")) == before, "wherever it lies"
    (folder / name).write_text("another")
    assert tree_digest(folder) != before


def test_names_count_and_caches_do_not(tmp_path):
    folder = tree(tmp_path / "x")
    before = tree_digest(folder)
    (folder / "model" / "__pycache__").mkdir()
    (folder / "model" / "__pycache__" / "gate.pyc").write_bytes(b"x")
    assert tree_digest(folder) == before
    (folder / "cli.py").rename(folder / "main.py")
    assert tree_digest(folder) != before
    # What moved from one folder into the other is not where it was.
    assert tree_digest(folder / "model", folder) != tree_digest(folder, folder / "model")


def test_the_code_digest_covers_both_packages_and_the_concept_files(monkeypatch):
    seen = []
    monkeypatch.setattr(store, "tree_digest", lambda *folders: seen.extend(folders) or "")
    store.code_digest()
    assert [folder.name for folder in seen] == ["evaluation", "sanitizer", "concepts"]
    assert all(folder.is_dir() for folder in seen)
    assert (seen[1] / "model" / "gate.py").is_file() and list(seen[2].glob("*.toml"))


def test_an_entry_counts_for_what_it_was_made_of(tmp_path, monkeypatch):
    one = Store(tmp_path, {"seed": 0})
    key, entry = ("set", "nudity", "ours"), Entry({"scores": torch.arange(3.0)}, {"cost": [0.5]})
    assert not one.has(key, ["a"])
    one.save(key, entry, ["a"])
    again = Store(tmp_path, {"seed": 0})
    assert again.has(key, ["a"]) and not again.has(key, ["b"]) and not again.has(("set", "nudity", "none"), ["a"])
    assert again.load(key).info == entry.info and torch.equal(again.load(key).tensors["scores"], torch.arange(3.0))
    monkeypatch.setattr(store, "code_digest", lambda: "another")
    assert not Store(tmp_path, {"seed": 0}).has(key, ["a"])


def test_facts_alone_are_an_entry(tmp_path):
    one = Store(tmp_path, {})
    one.save(("obfuscation/leet", "0123"), Entry(info={"points": []}), [])
    assert one.load(("obfuscation/leet", "0123")).info == {"points": []}


def test_an_entry_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    one = Store(tmp_path, {})
    one.save(("x",), Entry(info={"n": 1}), ["a"])
    monkeypatch.setattr(tensor_files, "save", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        one.save(("x",), Entry(info={"n": 2}), ["b"])
    assert one.has(("x",), ["a"]) and one.load(("x",)).info == {"n": 1}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["settings.json", "x.safetensors"]


def test_other_settings_and_damage_are_refused(tmp_path):
    one = Store(tmp_path, {"seed": 0, "limits": (1, 2)})
    Store(tmp_path, {"seed": 0, "limits": (1, 2)})
    with pytest.raises(SanitizerError, match=r"other settings \(seed: 0 there, 1 now\)"):
        Store(tmp_path, {"seed": 1, "limits": (1, 2)})
    one.save(("x",), Entry(), [])
    for damaged in (b"", b"{}", (tmp_path / "x.safetensors").read_bytes()[:-3]):
        (tmp_path / "x.safetensors").write_bytes(damaged)
        with pytest.raises(SanitizerError, match=r"x\.safetensors: damaged"):
            one.has(("x",), [])


def test_importing_the_command_line_is_light():
    code = (
        "import sys; import evaluation.cli, benchmarks.cli; "
        "heavy = {'torch', 'transformers', 'matplotlib', 'pandas', 'sklearn', 'nodes'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=120)


@pytest.mark.parametrize(
    ("command", "option"), [("run", "--show-prompts"), ("attack", "--budget"), ("memory", "--rows")]
)
def test_help_names_the_options_of_every_command(command, option):
    done = subprocess.run(
        [sys.executable, "-m", "evaluation", command, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0
    assert option in done.stdout
