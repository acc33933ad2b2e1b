"""A host's setting, read whole or not at all, and its log, of which no line is lost."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from sanitizer.cli.app import main
from sanitizer.errors import SanitizerError
from sanitizer.guard.log import PASSED, REFUSED, SANITIZED, AuditLog, Entry, by_day, entries
from sanitizer.guard.setting import DENIED, NAME, REFUSE, SCORE, Log, Rule, Setting, parse
from sanitizer.guard.watch import FILE_VARIABLE, TEXT_VARIABLE, Watch

ROOT = Path(__file__).resolve().parents[2]
WHOLE = """
mode = "refuse"
concepts = ["nudity", "violence"]
strength = 1.5
threshold = 0.4
never = [["youth", "nudity"], ["violence", "hate"]]
sanitizers = ["a.safetensors"]
api_nodes = "score"
allow = ["SomePack"]
deny = []

[concept.nudity]
mode = "sanitize"

[log]
file = "log/guard.jsonl"
words = true
megabytes = 0.5
files = 2
"""


def test_an_empty_setting_is_the_defaults():
    setting = parse(b"", "x")
    assert setting == Setting()
    assert setting.never == (("youth", "nudity"),)
    assert setting.deny == DENIED
    assert "ESTrainSanitizer" in DENIED


def test_every_key_is_read():
    setting = parse(WHOLE.encode(), "x")
    rule = Rule(REFUSE, 1.5, 0.4)
    assert setting == Setting(
        concepts=("nudity", "violence"),
        rule=rule,
        rules={"nudity": Rule("sanitize", 1.5, 0.4)},
        never=(("youth", "nudity"), ("violence", "hate")),
        sanitizers=("a.safetensors",),
        api_nodes=SCORE,
        allow=("SomePack",),
        deny=(),
        log=Log("log/guard.jsonl", words=True, megabytes=0.5, files=2),
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("mode = 1", "mode: expected text, found 1"),
        ('mode = "x"', "mode: expected one of sanitize, refuse, found 'x'"),
        ("strength = 3", "strength"),
        ("strength = true", "strength: expected a number, found True"),
        ("strength = nan", "strength"),
        ("threshold = -1", "threshold"),
        ("modes = 1", "modes: no such key"),
        ("log = 1", "log: expected a table"),
        ("log.words = 1", "log.words: expected true or false"),
        ("log.files = 1.5", "log.files: expected a whole number"),
        ("concept.nudity.mood = 1", "concept.nudity.mood: no such key"),
        ("concept.nudity = 1", "concept.nudity: expected a table"),
        ('concepts = "nudity"', "concepts: expected a list"),
        ("concepts = [1]", "concepts: expected text"),
        ('never = [["a"]]', "never: expected pairs"),
        ('api_nodes = "x"', "api_nodes: expected one of"),
        ("[", "no valid TOML"),
        (b"\xff", "no UTF-8"),
    ],
)
def test_what_is_wrong_is_named(text, says):
    with pytest.raises(SanitizerError) as caught:
        parse(text if isinstance(text, bytes) else text.encode(), "the file")
    assert str(caught.value).startswith("the file: ")
    assert says in str(caught.value)


def test_what_is_refused_comes_first_then_the_strongest():
    setting = parse(
        b'concept.a = {strength = 0.5}\nconcept.b = {strength = 2}\nconcept.c = {mode = "refuse", strength = 0}', "x"
    )
    order = [names for _, names in setting.by_rule(["a", "d", "b", "c", "e"])]
    assert order == [("c",), ("b",), ("d", "e"), ("a",)]


def test_a_prompt_is_refused_for_a_concept_or_for_two_that_must_not_meet():
    setting = parse(b'never = [["youth", "nudity"]]\nconcept.hate.mode = "refuse"', "x")
    assert setting.refused(["nudity"], []) == ()
    assert setting.refused([], ["hate", "youth"]) == ()
    assert setting.refused(["hate", "nudity"], []) == ("hate",)
    assert setting.refused(["nudity"], ["youth"]) == ("youth", "nudity")
    assert setting.refused([], ["youth", "nudity"]) == ("youth", "nudity")


def test_without_a_setting_nothing_is_guarded_until_there_is_one(tmp_path):
    watch = Watch(tmp_path, {})
    assert not watch.state().on
    (tmp_path / NAME).write_text("strength = 0.5")
    state = watch.state()
    assert state.on
    assert state.setting.rule.strength == 0.5
    assert watch.state() is state


def test_a_setting_that_cannot_be_read_guards_all_the_same(tmp_path):
    (tmp_path / NAME).write_text("[")
    watch = Watch(tmp_path, {})
    state = watch.state()
    assert state.on
    assert state.setting is None
    assert "Every prompt is refused" in state.error
    (tmp_path / NAME).write_text("")
    assert watch.state().setting == Setting()
    assert not watch.state().error


def test_what_goes_wrong_later_leaves_the_setting_in_force(tmp_path):
    path = tmp_path / NAME
    path.write_text('mode = "refuse"')
    watch = Watch(tmp_path, {})
    first = watch.state()
    for broken, says in (("[", "no valid TOML"), ("", "is empty"), (None, "is gone"), ("x = 1", "no such key")):
        path.unlink(missing_ok=True)
        if broken is not None:
            path.write_text(broken)
        state = watch.state()
        assert state.setting == first.setting
        assert says in state.error
        assert "stays in force" in state.error
        assert state.version > first.version
    path.unlink()
    path.mkdir()
    assert "cannot be read" in watch.state().error
    path.rmdir()
    path.write_text('mode = "refuse"')
    assert watch.state().error == ""


def test_a_setting_that_is_written_over_and_over_is_never_missing(tmp_path):
    path, stop, seen = tmp_path / NAME, threading.Event(), []
    path.write_text("strength = 0.5")
    watch = Watch(tmp_path, {})
    assert watch.state().on

    def rewrite():
        while not stop.is_set():
            path.write_text("strength = 1.0\nthreshold = 0.25")
            path.unlink()
            path.write_text("strength = 0.5")

    writer = threading.Thread(target=rewrite)
    writer.start()
    try:
        for _ in range(500):
            seen.append(watch.state().setting)
    finally:
        stop.set()
        writer.join()
    assert None not in seen
    assert {setting.rule for setting in seen} <= {Rule(), Rule(strength=0.5), Rule(threshold=0.25), Rule(strength=1.0)}


def test_the_environment_may_name_the_file_or_be_the_setting(tmp_path):
    other = tmp_path / "other.toml"
    watch = Watch(tmp_path, {FILE_VARIABLE: str(other)})
    assert "is gone" in watch.state().error
    other.write_text("strength = 0.5")
    assert watch.state().setting.rule.strength == 0.5
    watch = Watch(tmp_path, {TEXT_VARIABLE: "strength = 0.25", FILE_VARIABLE: str(other)})
    assert watch.state().setting.rule.strength == 0.25
    assert TEXT_VARIABLE in Watch(tmp_path, {TEXT_VARIABLE: "["}).state().error


def test_a_line_says_what_was_done_and_never_the_prompt_unless_asked(tmp_path):
    entry = Entry(
        SANITIZED, "p1", "c1", {"nudity": 0.91234}, sanitizer="a.safetensors", words=("nude",), prompts=("a nude",)
    )
    AuditLog(Log(), tmp_path).write(entry)
    AuditLog(Log(words=True, prompts=True), tmp_path).write(entry)
    lines = (tmp_path / Log.file).read_text(encoding="utf-8").splitlines()
    first, second = map(json.loads, lines)
    assert first.pop("time").endswith("+00:00")
    assert first == {
        "action": "sanitized", "prompt_id": "p1", "client_id": "c1", "concepts": {"nudity": 0.912},
        "sanitizer": "a.safetensors",
    }  # fmt: skip
    assert second["words"] == ["nude"]
    assert second["prompts"] == ["a nude"]


def test_a_full_file_is_put_aside_and_the_oldest_go(tmp_path):
    log = AuditLog(Log(megabytes=0.001, files=2), tmp_path)
    for number in range(60):
        log.write(Entry(PASSED, f"p{number}"))
    names = sorted(file.name for file in tmp_path.iterdir())
    assert names == [Log.file, f"{Log.file}.1", f"{Log.file}.2"]
    found = [entry["prompt_id"] for _, entry in entries(tmp_path / Log.file)]
    assert found == [f"p{number}" for number in range(60 - len(found), 60)]


def test_a_line_that_was_cut_off_spoils_no_other(tmp_path):
    path = tmp_path / Log.file
    AuditLog(Log(), tmp_path).write(Entry(PASSED, "p0"))
    with path.open("a") as file:
        file.write('{"time": "2026-01-0')
    AuditLog(Log(), tmp_path).write(Entry(REFUSED, "p1"))
    assert [entry["prompt_id"] for _, entry in entries(path)] == ["p0", "p1"]


def test_a_log_that_cannot_be_written_is_an_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(SanitizerError, match="file"):
        AuditLog(Log(file="file/x.jsonl"), tmp_path)
    log = AuditLog(Log(), tmp_path)

    def full(*_arguments):
        raise OSError("No space left on device")

    monkeypatch.setattr(log._lines.stream, "write", full, raising=False)
    with pytest.raises(SanitizerError, match="No space left"):
        log.write(Entry(PASSED))


WRITER = """
import sys
from pathlib import Path
from sanitizer.guard.log import AuditLog, Entry
from sanitizer.guard.setting import Log
log = AuditLog(Log(megabytes=0.005, files=1000), Path(sys.argv[1]))
for number in range(10**9):
    log.write(Entry("passed", f"p{number}"))
    print(number, flush=True)
"""


@pytest.mark.skipif(os.name == "nt", reason="there is no SIGKILL")
def test_kill_9_in_the_midst_of_writing_loses_no_line(tmp_path):
    for _ in range(3):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        said = [writer.stdout.readline() for _ in range(300)]
        writer.send_signal(signal.SIGKILL)
        said += writer.stdout.readlines()
        writer.wait()
        numbers = [int(line) for line in said if line.endswith("\n")]
        found = [entry["prompt_id"] for _, entry in entries(tmp_path / Log.file)]
        assert set(found) >= {f"p{number}" for number in numbers}
        assert found.count(f"p{numbers[-1]}") == 1
        for file in tmp_path.iterdir():
            file.unlink()


def test_check_says_what_a_setting_means(tmp_path, capsys):
    path = tmp_path / NAME
    path.write_text(WHOLE + "[concept.smoking]\n")
    assert main(["guard", "check", str(path)]) == 0
    said = capsys.readouterr().out
    assert "nudity: sanitize, strength 1.5, threshold 0.4" in said
    assert "youth together with nudity" in said
    assert "note: none of the pack's concepts: smoking" in said
    assert "note: rules of concepts that are not erased: smoking" in said
    path.write_text("strength = 5")
    assert main(["guard", "check", str(path)]) == 1
    assert "strength" in capsys.readouterr().err


def test_report_counts_days_actions_and_concepts(tmp_path, capsys):
    assert main(["guard", "report", str(tmp_path / "none.jsonl")]) == 1
    lines = [
        {"time": "2026-01-02T23:00:00+00:00", "action": "passed"},
        {"time": "2026-01-03T01:00:00+00:00", "action": "sanitized", "concepts": {"nudity": 0.9, "hate": 0.8}},
        {"time": "2026-01-03T01:30:00+02:00", "action": "refused", "concepts": {"nudity": 0.9}},
    ]
    path = tmp_path / Log.file
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + "no JSON\n[]\n")
    (tmp_path / NAME).write_text("")
    days = by_day(path)
    assert [(day.day, day.actions, day.concepts) for day in days] == [
        ("2026-01-02", {"passed": 1, "refused": 1}, {"nudity": 1}),
        ("2026-01-03", {"sanitized": 1}, {"nudity": 1, "hate": 1}),
    ]
    capsys.readouterr()
    for given in (path, tmp_path):
        assert main(["guard", "report", str(given)]) == 0
        assert capsys.readouterr().out.splitlines() == [
            "day            passed  sanitized    refused",
            f"2026-01-02          1          0          1  {'░' * 20}{'█' * 20}",
            f"2026-01-03          0          1          0  {'▒' * 20}",
            "",
            "concept  prompts",
            "nudity         2",
            "hate           1",
        ]
    assert main(["guard", "report", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["actions"] == {"passed": 1, "refused": 1}
