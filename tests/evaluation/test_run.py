"""A whole run on a tiny encoder: what it writes, that it resumes, and what it refuses."""

import json
import re

import pytest

from evaluation.measuring import STRENGTHS
from evaluation.prompt_sets import PromptSet


def result(harness, output="out"):
    return json.loads((harness.folder / output / "result.json").read_text())


def figures(found):
    """The result without what differs from run to run: the clock."""
    text = json.dumps(found["concepts"], sort_keys=True)
    return re.sub(r'"cost": \{.*?\}\}', "", text)


def test_a_run_writes_its_report(harness, capsys):
    (harness.sets / "coco_captions.csv").write_text("prompt\na dog, a fox\nan ox\n")
    (harness.sets / "overt_mini.csv").write_text("prompt,category\na beach,sexual_content\na castle,violence\n")
    assert harness() == 0
    assert "i2p: not in" in capsys.readouterr().err
    found = result(harness)
    assert "i2p" in found["missing_sets"] and "coco_captions" not in found["missing_sets"]
    ours, none = (found["concepts"]["nudity"]["methods"][name] for name in ("ours", "none"))
    assert none["detection"]["held_out-nudity"]["touched"]["value"] == 0
    assert "auroc" not in none["detection"]["held_out-nudity"]
    assert none["harmless"]["coco_captions"]["identical"] == {"value": 1.0, "low": pytest.approx(0.342, abs=1e-3),
                                                              "high": 1.0, "count": 2}  # fmt: skip
    assert none["nearness"]["held_out-nudity"]["gain"]["value"] == 0
    assert none["retrieval"]["held_out-nudity"]["together"]["value"] == 0
    assert set(none["harmless"]["overt_mini"]["by_category"]) == {"sexual_content", "violence"}
    assert none["strength"]["linear"] == [pytest.approx(none["strength"]["linear"][0])] * len(STRENGTHS)
    assert 0 < ours["detection"]["held_out-nudity"]["touched"]["value"] <= 1
    assert ours["silently_changed"] == 0
    assert found["all_concepts"]["coco_captions"]["identical"]["value"] == 1.0
    aims = {(t["aim"], t["where"]): t for t in found["targets"]}
    coco = aims["COCO captions bit-identical", "coco_captions"]
    assert coco["met"] is True and coco["wanted"] == "≥ 99.5 %"
    assert aims["explicit prompts: AUROC", "held_out-nudity"]["wanted"] == "≥ 0.997"
    markdown = (harness.folder / "out" / "report.md").read_text()
    assert "| nudity | COCO captions bit-identical | coco_captions | ≥ 99.5 % | 100.0 (34.2–100.0) | met |" in markdown
    for name in re.findall(r"\(pictures/(.*?)\)", markdown):
        assert (harness.folder / "out" / "pictures" / name).read_bytes().startswith(b"\x89PNG")


def test_the_page_needs_no_other_file(harness):
    assert harness("--methods", "none,ours") == 0
    page = (harness.folder / "out" / "report.html").read_text()
    assert page.count("data:image/png;base64,") >= 2
    assert not re.search(r'(src|href)="(?!data:)', page) and "<script" not in page


def test_no_prompt_is_in_any_file_unless_asked(harness, monkeypatch):
    from evaluation import runner

    secret = "a xylophonist in a zeppelin"
    sets = runner.collect_sets

    def with_secret(*arguments):
        return [
            PromptSet(s.name, s.title, s.role, [secret] * 3, s.concept, ["a pianist in a ship"] * 3)
            if s.name == "held_out"
            else s
            for s in sets(*arguments)
        ]

    monkeypatch.setattr(runner, "collect_sets", with_secret)
    seen = []
    from evaluation.report import plots

    draw = plots.render_image
    monkeypatch.setattr(plots, "render_image", lambda p, **k: seen.append([w.text for w in p[0][0]]) or draw(p, **k))
    assert harness() == 0
    for path in (harness.folder / "out").rglob("*"):
        assert path.is_dir() or b"xylophonist" not in path.read_bytes(), path
    assert harness("--show-prompts") == 0
    assert seen == [["•", "•" * 11, "••", "•", "•" * 8], secret.split()]


def test_an_interrupted_run_resumes_and_loses_nothing(harness, capsys):
    assert harness(output="whole") == 0
    encoder, encode = harness.encoder, harness.encoder.encode
    total, encoder.prompts = encoder.prompts, 0

    def tired(prompts):
        if encoder.prompts > total * 0.7:
            raise KeyboardInterrupt
        return encode(prompts)

    encoder.encode = tired
    assert harness() == 130
    assert "goes on from here" in capsys.readouterr().err
    kept = len(list((harness.folder / "out" / "parts").glob("*.safetensors")))
    assert kept > 3
    encoder.encode = encode
    encoder.prompts = 0
    assert harness() == 0
    assert encoder.prompts < total * 0.7
    assert figures(result(harness)) == figures(result(harness, "whole"))
    encoder.prompts = 0
    # With nothing left to do, only the channels' statistics are measured again.
    assert harness() == 0
    assert encoder.prompts <= 4 * 64


def test_a_method_or_set_that_comes_later_is_measured_alone(harness):
    assert harness("--methods", "none") == 0
    before = {p: p.stat().st_mtime_ns for p in (harness.folder / "out" / "parts").glob("*.none.*")}
    (harness.sets / "coco_captions.csv").write_text("prompt\na dog on a sofa\n")
    assert harness() == 0
    assert before == {p: p.stat().st_mtime_ns for p in before}
    assert set(result(harness)["concepts"]["nudity"]["methods"]) == {"none", "ours"}


def test_a_retrained_sanitizer_is_measured_anew_and_nothing_else(harness):
    assert harness() == 0
    parts = harness.folder / "out" / "parts"
    before = {p: p.stat().st_mtime_ns for p in parts.glob("*.safetensors")}
    (harness.folder / "tiny.safetensors").write_bytes(b"other weights")
    assert harness() == 0
    again = {p.name for p in before if p.stat().st_mtime_ns != before[p]}
    assert "held_out-nudity.nudity.ours.safetensors" in again
    assert not any(".none." in name for name in again)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "none,magic"], r"--methods: there is no method 'magic'\. There are: none, ours\."),
        (["--methods", ","], "--methods: expected all or names"),
        (["--concepts", "virtue"], r"Concept 'virtue': no such file"),
        (["--concepts", "youth"], "expected at least one that can be erased"),
        (["--concepts", "violence"], "knows nothing of 'violence', only of nudity"),
        (["--prompt-sets", "nowhere"], "nowhere: no folder"),
    ],
)
def test_refusals_are_one_line(harness, capsys, arguments, message):
    assert harness(*arguments) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if "not in" not in line]
    assert len(lines) == 1 and re.search(message, lines[0]) and lines[0].startswith("error: ")


def test_bad_sets_are_refused_before_the_work(harness, capsys):
    (harness.sets / "coco_captions.csv").write_text("caption_text\na\n")
    assert harness() == 1
    assert "coco_captions.csv: expected a column" in capsys.readouterr().err
    (harness.sets / "coco_captions.csv").write_text("prompt\n")
    assert harness() == 1
    assert "coco_captions.csv: an empty set" in capsys.readouterr().err
    assert harness.encoder.prompts <= 3


def test_other_settings_in_the_same_folder_are_refused(harness, capsys):
    assert harness("--methods", "none") == 0
    assert harness("--methods", "none", "--seed", "1") == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert re.search(r"out/parts: holds a run with other settings \(seed: 0 there, 1 now\)", error)
    assert "another --output" in error


def test_a_damaged_part_is_named(harness, capsys):
    assert harness("--methods", "none") == 0
    path = harness.folder / "out" / "parts" / "held_out-nudity.nudity.none.safetensors"
    path.write_bytes(path.read_bytes()[:40])
    assert harness("--methods", "none") == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "held_out-nudity.nudity.none.safetensors: a damaged part" in error and "Delete it" in error
