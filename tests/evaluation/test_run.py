"""A whole run on a tiny encoder: what it writes, that it resumes, and what it refuses."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from evaluation.cli import chosen, main
from evaluation.run import STRENGTHS
from evaluation.types import PromptSet
from sanitizer.errors import SanitizerError

ROOT = Path(__file__).resolve().parents[2]


def result(harness, output="out"):
    return json.loads((harness.folder / output / "result.json").read_text())


def figures(found):
    """(method, set, group, figure, category) -> figure, without what differs from run to run: the clock."""
    names = ("concept", "method", "set", "group", "figure", "category")
    return {tuple(f[n] for n in names[1:]): f for f in found["figures"] if f["group"] != "cost"} | {
        ("together", *(f[n] for n in names[2:])): f for f in found["figures"] if f["concept"] == "all_concepts"
    }


def test_a_run_writes_its_report(harness, capsys):
    (harness.sets / "coco_captions.csv").write_text('prompt\n"a dog, a fox"\nan ox\n')
    (harness.sets / "overt_mini.csv").write_text("prompt,category\na beach,sexual_content\na castle,violence\n")
    assert harness() == 0
    assert "i2p: not in" in capsys.readouterr().err
    found = result(harness)
    assert "i2p" in found["missing_sets"] and "coco_captions" not in found["missing_sets"]
    values = figures(found)

    def of(method, where, group, figure, category=""):
        return values[method, where, group, figure, category]["value"]

    held_out = "held_out-nudity"
    assert of("none", held_out, "detection", "touched") == 0
    assert ("none", held_out, "detection", "auroc", "") not in values
    captions = values["none", "coco_captions", "harmless", "identical", ""]
    assert (captions["value"], captions["high"], captions["count"]) == (1.0, 1.0, 2)
    assert captions["low"] == pytest.approx(0.342, abs=1e-3)
    assert of("none", held_out, "nearness", "gain") == of("none", held_out, "retrieval", "together") == 0
    categories = {key[4] for key in values if key[:3] == ("none", "overt_mini", "harmless")}
    assert categories == {"", "sexual_content", "violence"}
    curve = [of("none", held_out, "strength", f"linear_{strength:g}") for strength in STRENGTHS]
    assert curve == [pytest.approx(curve[0])] * len(STRENGTHS)
    assert 0 < of("ours", held_out, "detection", "touched") <= 1
    assert of("ours", "", "claims", "silently_changed") == 0
    assert of("together", "coco_captions", "harmless", "identical") == 1.0
    markdown = (harness.folder / "out" / "report.md").read_text()
    assert re.search(r"\| COCO captions \| none \| 100\.0 \(34\.2–100\.0\) \|", markdown)
    assert "NaN" not in markdown and "nan" not in re.findall(r"\w+", markdown)
    pictures = re.findall(r"\(pictures/(.*?)\)", markdown)
    assert len(pictures) == 2
    for name in pictures:
        assert (harness.folder / "out" / "pictures" / name).read_bytes().startswith(b"\x89PNG")


def test_tables_say_what_the_figures_say(harness):
    assert harness() == 0
    values, markdown = figures(result(harness)), (harness.folder / "out" / "report.md").read_text()
    head, _, *rows = re.search(r"## All methods: nudity\n.*?\n\n(\|.*?)\n\n", markdown, re.DOTALL)[1].split("\n")
    columns = [cell.strip() for cell in head.strip("| ").split("|")]
    cells = {row.split("|")[1].strip(): [cell.strip() for cell in row.strip("| ").split("|")] for row in rows}
    assert list(cells) == ["none", "ours"]
    for title, group, figure, form in (
        ("AUROC", "detection", "auroc", "{:.3f}"), ("neighbour", "residual", "neighbour_all", "{:.1%}"),
        ("nearer", "nearness", "nearer", "{:.1%}"), ("all three", "retrieval", "together", "{:.1%}"),
    ):  # fmt: skip
        value = values["ours", "held_out-nudity", group, figure, ""]["value"]
        assert cells["ours"][columns.index(title)].split(" ")[0] == form.format(value).rstrip("%")
    worse = max(values["ours", "held_out-nudity", "residual", f"{kind}_all", ""]["value"] for kind in ("linear", "mlp"))
    assert cells["ours"][columns.index("found, all")].startswith(f"{100 * worse:.1f} ")


def test_the_page_needs_no_other_file(harness):
    assert harness("--methods", "none,ours") == 0
    page = (harness.folder / "out" / "report.html").read_text()
    assert page.count("data:image/png;base64,") >= 2
    assert not re.search(r'(src|href)="(?!data:)', page) and "<script" not in page
    assert '<tr class="ours"><td>ours</td>' in page


def test_what_stands_in_a_set_cannot_write_html(harness):
    (harness.sets / "prompt_sets.toml").write_text(
        '[mine]\ntitle = "<script>alert(1)</script>"\nrole = "benign"\nfiles = ["mine.txt"]\ncolumn = "prompt"\n'
    )
    (harness.sets / "mine.txt").write_text("a dog\n")
    assert harness("--methods", "none") == 0
    page = (harness.folder / "out" / "report.html").read_text()
    assert "&lt;script&gt;" in page and "<script" not in page
    assert "<script" not in (harness.folder / "out" / "report.md").read_text()


def test_no_prompt_is_in_any_file_unless_asked(harness, monkeypatch):
    from evaluation import run

    secret = "a xylophonist in a zeppelin"
    sets = run.collect_sets

    def with_secret(*arguments):
        return [
            PromptSet(s.name, s.title, s.role, [secret] * 3, s.concept, ["a pianist in a ship"] * 3)
            if s.name == "held_out"
            else s
            for s in sets(*arguments)
        ]

    monkeypatch.setattr(run, "collect_sets", with_secret)
    assert harness() == 0
    for path in (harness.folder / "out").rglob("*"):
        assert path.is_dir() or b"xylophonist" not in path.read_bytes(), path
    assert harness("--show-prompts") == 0
    for name in ("report.md", "report.html"):
        assert (harness.folder / "out" / name).read_text().count(secret) == 3, "ours let it pass, three times"


@pytest.mark.slow
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
    found = result(harness)
    assert [m["name"] for m in found["methods"]] == ["none", "ours"]
    assert {f["method"] for f in found["figures"]} == {"", "none", "ours"}


def test_other_code_is_measured_anew(harness, monkeypatch):
    from evaluation import store

    assert harness("--methods", "none") == 0
    parts = harness.folder / "out" / "parts"
    before = {p: p.stat().st_mtime_ns for p in parts.glob("*.safetensors")}
    monkeypatch.setattr(store, "code_digest", lambda: "another")
    assert harness("--methods", "none") == 0
    assert all(p.stat().st_mtime_ns != before[p] for p in before)


@pytest.mark.slow
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


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--limit", "x", "expected a whole number, found 'x'"),
        ("--limit", "0", "expected at least 1, found 0"),
        ("--seed", "x", "expected a whole number from 0 to 4294967295, found 'x'"),
        ("--seed", "4294967296", "expected a whole number from 0"),
    ],
)
def test_wrong_usage_is_said_in_plain_words(harness, capsys, option, value, message):
    assert harness(option, value) == 2
    err = capsys.readouterr().err
    assert f"argument {option}: {message}" in err
    assert "_positive" not in err


def test_every_command_keeps_its_output_apart_from_its_inputs(tmp_path, capsys):
    captions = tmp_path / "length.json"
    captions.write_text('["a dog"]')
    targets = tmp_path / "result.json"
    targets.write_text('["a dog"]')
    base = ["--encoder", str(tmp_path / "none"), "--output", str(tmp_path)]
    for arguments in (["length", "--captions", str(captions)], ["attack", "--targets", str(targets)]):
        assert main([*arguments, *base]) == 1
        assert "would overwrite the input" in capsys.readouterr().err


def test_names_divided_by_commas():
    assert chosen("b, a,b", ["a", "b", "c"], "method") == ["a", "b"]
    assert chosen("all", ["a", "b"], "attack") == ["a", "b"]
    with pytest.raises(SanitizerError, match=r"--attacks: there is no attack 'x'\. There are: a, b\."):
        chosen("a,x", ["a", "b"], "attack")
    with pytest.raises(SanitizerError, match="--methods: expected all or names out of a, b, found none"):
        chosen(" ,", ["a", "b"], "method")


def test_no_file_of_the_report_is_an_input(harness, capsys):
    """A prompt set that lies under the name of the report's figures, by a link."""
    captions = harness.sets / "coco_captions.csv"
    captions.write_text("prompt\na dog\n")
    out = harness.folder / "out"
    out.mkdir()
    (out / "result.json").symlink_to(captions)
    assert harness() == 1
    assert "would overwrite the input" in capsys.readouterr().err
    assert captions.read_text() == "prompt\na dog\n"
    (out / "result.json").unlink()
    (out / "parts").symlink_to(harness.sets)
    assert harness() == 1
    assert "would overwrite the input" in capsys.readouterr().err


@pytest.mark.skipif(os.name == "nt", reason="needs signals")
@pytest.mark.parametrize(("name", "code", "word"), [("SIGTERM", 143, "Terminated"), ("SIGINT", 130, "Interrupted")])
def test_a_run_that_is_stopped_says_so_and_leaves_nothing_half_written(harness, capsys, monkeypatch, name, code, word):
    """The signal comes while an entry of the store is being written."""
    from sanitizer import tensor_files

    def stopped(tensors, metadata):
        os.kill(os.getpid(), getattr(signal, name))
        time.sleep(60)

    monkeypatch.setattr(tensor_files, "save", stopped)
    assert harness() == code
    assert capsys.readouterr().err.splitlines()[-1] == f"{word}; the same command goes on from here."
    assert [path.name for path in (harness.folder / "out" / "parts").iterdir()] == ["settings.json"]
    monkeypatch.undo()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("program", ["evaluation", "benchmarks"])
@pytest.mark.parametrize("redirection", [">&-", "> /dev/full"])
def test_an_output_that_cannot_be_written_is_one_line(program, redirection):
    """Argparse itself drops help that it cannot write."""
    line = f"{sys.executable} -m {program} --help {redirection}"
    done = subprocess.run(line, shell=True, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert done.stderr.startswith("error: Standard output: cannot be written")
    assert done.stderr.count("\n") == 1


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
    assert "held_out-nudity.nudity.none.safetensors: damaged" in error and "Delete it" in error
