"""What the commands compute, on tiny encoders: single and batched prompts agree, files hold what they say."""

import importlib.util
import io
import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from sanitizer.cli import pipeline
from sanitizer.cli.io import check_output
from sanitizer.cli.pipeline import process
from sanitizer.cli.records import line, write_jsonl
from sanitizer.cli.sanitize import TensorSpool, write
from sanitizer.errors import SanitizerError
from sanitizer.files import whole_file, whole_path
from sanitizer.model import artifact
from sanitizer.text.deobfuscate import Deobfuscator

PACK = Path(__file__).resolve().parents[2]
PROMPTS = [
    "a photo of a crimson woman",
    "a fox",
    "",
    "crimson man at a desk",
    "two dogs in the garden " * 6,
    "\0 🦊 שלום",
    "crimson person, detailed",
]


DISGUISED = ["a photo of a cr1ms0n woman", "c r i m s o n man", "two crimson dogs", "a fox"]
READER = Deobfuscator(["a", "photo", "of", "woman", "man", "two", "dogs", "fox"] * 9, ["crimson"])


def load_handmade():
    spec = importlib.util.spec_from_file_location("handmade", Path(__file__).with_name("handmade.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.handmade


@pytest.fixture(scope="module")
def masked(tiny_encoder):
    encoder = tiny_encoder("masked", width=128)
    return encoder, load_handmade()(encoder)


@pytest.fixture(scope="module")
def causal(tiny_encoder):
    encoder = tiny_encoder("causal", width=128, pooled_width=16)
    return encoder, load_handmade()(encoder)


@pytest.fixture(params=["masked", "causal"])
def trained(request):
    """(encoder, sanitizer): bidirectional without a pooled vector; causal with one, padding visible."""
    return request.getfixturevalue(request.param)


def results(trained, prompts=PROMPTS, **options):
    encoder, sanitizer = trained
    return list(process(encoder, sanitizer, iter(prompts), **options))


def test_order_and_texts_are_kept(trained, monkeypatch):
    monkeypatch.setattr(pipeline, "SPAN", 3)
    monkeypatch.setattr(pipeline, "BATCH", 2)
    assert [r.prompt for r in results(trained)] == PROMPTS


def test_batches_equal_single_prompts(trained):
    for one in results(trained, strength=1.0):
        [alone] = results(trained, [one.prompt], strength=1.0)
        assert one.flagged == alone.flagged
        assert one.tokens == alone.tokens
        assert one.offsets == alone.offsets
        assert torch.equal(one.mask, alone.mask)
        for name in ("embeddings", "sanitized", "prompt_scores", "token_scores", "pooled", "pooled_sanitized"):
            ours, theirs = getattr(one, name), getattr(alone, name)
            assert (ours is None) == (theirs is None)
            if ours is not None:
                torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_results_are_the_sanitizers_own(trained):
    encoder, sanitizer = trained
    encoding = encoder.encode(PROMPTS[:1])
    out = sanitizer.sanitize(encoding.embeddings, encoding.mask, encoding.pooled, strength=1.5)
    [one] = results(trained, PROMPTS[:1], strength=1.5)
    assert one.flagged
    assert one.fired == ("redness",)
    assert torch.equal(one.embeddings, encoding.embeddings[0])
    assert torch.equal(one.sanitized, out.embeddings[0])
    assert not torch.equal(one.embeddings, one.sanitized)


def test_harmless_and_strength_zero_are_bit_identical(trained):
    for one in results(trained, strength=0.0):
        assert torch.equal(one.embeddings, one.sanitized)
    assert torch.equal(*(getattr(results(trained, ["a fox"], strength=1.0)[0], n) for n in ("embeddings", "sanitized")))


def test_prompts_are_not_read_ahead_of_a_span(masked, monkeypatch):
    monkeypatch.setattr(pipeline, "SPAN", 4)
    taken = []

    def endless():
        while True:
            taken.append(1)
            yield "a fox"

    encoder, sanitizer = masked
    stream = process(encoder, sanitizer, endless())
    for _ in range(4):
        next(stream)
    assert len(taken) <= 5


def test_json_lines(causal):
    file = io.BytesIO()
    assert write_jsonl(iter(results(causal)), file, ()) == (len(PROMPTS), 3)
    records = [json.loads(text) for text in file.getvalue().decode().splitlines()]
    assert [record["prompt"] for record in records] == PROMPTS
    for record in records:
        assert list(record) == ["prompt", "flagged", "prompt_scores", "tokens"]
        assert list(record["prompt_scores"]) == ["redness", "youth"]
        for token in record["tokens"]:
            assert list(token) == ["token", "start", "end", "scores"]
            assert record["prompt"][token["start"] : token["end"]] == token["token"]
            assert 0 <= token["scores"]["redness"] <= 1
    assert records[0]["flagged"] is True
    highest = max(records[0]["tokens"], key=lambda token: token["scores"]["redness"])
    assert highest["token"] == "crimson"
    assert [token["token"] for token in records[2]["tokens"]] == []


def test_a_json_line_has_no_line_break_inside(masked):
    [one] = results(masked, ["a\nb\u2028c"])
    assert "\n" not in line(one)
    assert json.loads(line(one))["prompt"] == "a\nb\u2028c"


def test_sanitize_file(trained, tmp_path):
    encoder, sanitizer = trained
    target = tmp_path / "out.safetensors"
    assert write(iter(results(trained, strength=1.0)), target, {"encoder": "tiny", "x": "ünï"}) == (7, 3)
    tensors = load_file(target)
    with safe_open(target, "pt") as file:
        assert file.metadata() == {"encoder": "tiny", "x": "ünï"}
    expected = {"embeddings", "sanitized", "mask", "prompt_scores", "token_scores"}
    expected |= {"pooled", "pooled_sanitized"} if encoder.pooled_width else set()
    assert set(tensors) == expected
    encoding = encoder.encode(PROMPTS)
    out = sanitizer.sanitize(encoding.embeddings, encoding.mask, encoding.pooled)
    length = int(encoding.mask.any(dim=0).nonzero()[-1]) + 1
    assert tensors["embeddings"].shape == (7, length, encoder.width)
    assert tensors["mask"].dtype == torch.bool
    assert torch.equal(tensors["mask"], encoding.mask[:, :length])
    assert tensors["prompt_scores"].shape == (7, 2)
    assert tensors["token_scores"].shape == (7, length, 2)
    for name, value in (
        ("embeddings", encoding.embeddings),
        ("sanitized", out.embeddings),
        ("token_scores", out.scores.tokens),
        ("prompt_scores", out.scores.prompt),
        ("pooled", encoding.pooled),
        ("pooled_sanitized", out.pooled),
    ):
        if name in tensors:
            value = value[:, :length] if value.ndim == 3 else value
            torch.testing.assert_close(tensors[name], value, atol=1e-4, rtol=1e-4)
    beyond = ~tensors["mask"]
    for name in ("embeddings", "sanitized", "token_scores"):
        assert not tensors[name][beyond].any()
    harmless = ~out.flagged
    assert torch.equal(tensors["embeddings"][harmless], tensors["sanitized"][harmless])
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_spool_gives_back_what_went_in(tmp_path, dtype):
    generator = torch.Generator().manual_seed(0)
    items = [torch.randn(n, 3, generator=generator).to(dtype) for n in (2, 0, 5, 1)]
    path = tmp_path / "t.safetensors"
    with TensorSpool(tmp_path) as spool:
        for item in items:
            spool.add({"rows": item, "mask": torch.ones(len(item), dtype=torch.bool)}, {"sum": item.sum(0)})
        spool.save(path, {})
    found = load_file(path)
    assert found["rows"].shape == (4, 5, 3)
    assert found["rows"].dtype == dtype
    assert found["mask"].sum(dim=1).tolist() == [2, 0, 5, 1]
    for index, item in enumerate(items):
        assert torch.equal(found["rows"][index, : len(item)], item)
        assert not found["rows"][index, len(item) :].any()
        assert torch.equal(found["sum"][index], item.sum(0))


SPOOL = """
import sys, threading, time
from pathlib import Path
import torch
from sanitizer.cli.sanitize import TensorSpool

def anonymous():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon"))

count, folder, peak = int(sys.argv[1]), Path(sys.argv[2]), 0
items = [torch.randn(length, 4096) for length in (2, 4)]
with TensorSpool(folder) as spool:
    for i in range(count):
        spool.add({"rows": items[i % 2]}, {})
    before, saving = anonymous(), threading.Thread(target=spool.save, args=(folder / "o.safetensors", {}))
    saving.start()
    while saving.is_alive():
        peak = max(peak, anonymous())
        time.sleep(0.001)
print(peak - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
@pytest.mark.skipif(version("safetensors") < "0.8", reason="older versions copy what they write into memory")
def test_the_spool_is_not_held_in_memory(tmp_path):
    """192 MB are written with less than a tenth of it in memory that the system cannot take back."""
    command = [sys.executable, "-c", SPOOL, "3000", str(tmp_path)]
    done = subprocess.run(command, cwd=PACK, capture_output=True, text=True, check=True, timeout=300)
    assert (tmp_path / "o.safetensors").stat().st_size > 190e6
    assert int(done.stdout) * 1024 < 19e6


def test_a_full_disk_under_safetensors_is_one_line(masked, tmp_path, monkeypatch):
    def full(*_arguments):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("sanitizer.cli.sanitize.save_file", full)
    with pytest.raises(SanitizerError, match=r"o\.safetensors: cannot be written .*No space left"):
        write(process(*masked, ["a fox"]), tmp_path / "o.safetensors", {})
    assert list(tmp_path.iterdir()) == []


def test_spool_refuses_a_tensor_of_another_kind(tmp_path):
    with TensorSpool(tmp_path) as spool:
        spool.add({"rows": torch.zeros(2, 3)}, {})
        with pytest.raises(ValueError, match="rows"):
            spool.add({"rows": torch.zeros(2, 4)}, {})


@pytest.mark.parametrize("error", [KeyboardInterrupt, SanitizerError, SystemExit])
def test_an_exception_leaves_the_old_file_and_nothing_else(tmp_path, error):
    target = tmp_path / "out.jsonl"
    target.write_text("old")
    with pytest.raises(error), whole_file(target) as file:
        file.write(b"half")
        file.flush()
        raise error
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_new_file_has_the_usual_rights_and_an_old_one_keeps_its_own(tmp_path):
    target = tmp_path / "out.jsonl"
    (tmp_path / "plain").touch()
    for mode in ((tmp_path / "plain").stat().st_mode, 0o640, 0o400):
        with whole_file(target) as file:
            file.write(b"x")
        assert target.stat().st_mode & 0o777 == mode & 0o777
        target.chmod(0o640 if mode != 0o640 else 0o400)


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX rights")
def test_the_rights_hold_while_writing_and_for_writers_that_replace_the_file(tmp_path):
    """As safetensors 0.8 does, which leaves a file that is its owner's alone."""
    target = tmp_path / "out.safetensors"
    umask = os.umask(0o027)
    try:
        with whole_path(target) as temporary:
            (tmp_path / "own").touch(mode=0o600)
            (tmp_path / "own").replace(temporary)
        assert target.stat().st_mode & 0o777 == 0o640
        target.chmod(0o600)
        with whole_path(target) as temporary:
            assert temporary.stat().st_mode & 0o777 == 0o600, "a private file's data are private at once"
        assert list(tmp_path.iterdir()) == [target]
    finally:
        os.umask(umask)


def test_a_writer_that_wants_a_name_gets_no_device(tmp_path):
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(SanitizerError, match="no regular file"), whole_path(tmp_path / "pipe"):
            raise AssertionError
        assert [path.name for path in tmp_path.iterdir()] == ["pipe"]


def test_a_link_is_written_through(tmp_path):
    (tmp_path / "real.jsonl").write_text("old")
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "real.jsonl")
    with whole_file(check_output(tmp_path / "link.jsonl")) as file:
        file.write(b"new")
    assert (tmp_path / "link.jsonl").is_symlink()
    assert (tmp_path / "real.jsonl").read_text() == "new"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")  # noqa: PTH110
def test_a_full_disk_is_one_line():
    with (
        pytest.raises(SanitizerError, match="cannot be written"),
        whole_file(check_output(Path("/dev/full"))) as file,
    ):
        file.write(b"x")


def test_outputs_that_cannot_be(tmp_path):
    (tmp_path / "in.txt").write_text("a")
    for path, ending, source, part in (
        (tmp_path, None, None, "a folder"),
        (tmp_path / "missing" / "o.jsonl", None, None, "does not exist"),
        (tmp_path / "o.txt", ".safetensors", None, "ends in .safetensors"),
        (tmp_path / "in.txt", None, str(tmp_path / "in.txt"), "overwrite the input"),
    ):
        with pytest.raises(SanitizerError, match=part):
            check_output(path, ending, source)


def test_a_file_for_another_encoder_is_refused_and_auto_asks_for_training(masked, tmp_path):
    artifact.save(masked[1], tmp_path / "tiny.safetensors")
    with pytest.raises(SanitizerError, match="trained on tiny-masked"):
        pipeline.load_pair("minilm", str(tmp_path / "tiny.safetensors"))
    with pytest.raises(SanitizerError, match="python -m sanitizer train --encoder minilm"):
        pipeline.load_pair("minilm", "auto", folders=[tmp_path])
    with pytest.raises(SanitizerError, match="Device 'toaster'"):
        pipeline.load_pair("minilm", "auto", device="toaster", folders=[tmp_path])


def test_concepts_can_be_switched_off(masked):
    with pytest.raises(SanitizerError, match="'violence'"):
        results(masked, ["a"], concepts=["violence"])
    assert results(masked, ["a"], threshold=0.0, concepts=["redness"])[0].flagged


def test_what_reads_as_unsafe_is_flagged_and_sanitized(trained):
    written = results(trained, DISGUISED, strength=1.0)
    read = results(trained, DISGUISED, strength=1.0, reader=READER)
    assert [r.flagged for r in written] == [False, False, True, False]
    assert [r.flagged for r in read] == [True, True, True, False]
    for before, after in zip(written, read, strict=True):
        assert before.prompt == after.prompt
        assert torch.equal(before.embeddings, after.embeddings), "what is written is what is sanitized"
    assert not torch.equal(read[0].embeddings, read[0].sanitized)
    assert read[0].scores()["redness"] == results(trained, ["a photo of a crimson woman"])[0].scores()["redness"]


def test_the_word_that_was_read_is_at_fault(trained):
    first, second, *_ = results(trained, DISGUISED, reader=READER)
    assert max(first.words(), key=lambda word: word.scores["redness"]).text == "cr1ms0n"
    assert [word.scores["redness"] > 0.5 for word in first.words()] == [False] * 4 + [True, False]
    # Six letters became one word: it is not known which is which, and the scores stay.
    assert second.flagged and torch.equal(second.token_scores, results(trained, DISGUISED)[1].token_scores)


def test_a_reader_leaves_ordinary_prompts_bit_for_bit(trained):
    """The same prompts, in the same batches, beside one that has a reading."""
    prompts = [*PROMPTS, DISGUISED[0]]
    for plain, read in zip(
        results(trained, prompts, strength=1.0), results(trained, prompts, strength=1.0, reader=READER), strict=True
    ):
        for name in ("embeddings", "sanitized", "prompt_scores", "token_scores", "pooled", "pooled_sanitized"):
            ours, theirs = getattr(plain, name), getattr(read, name)
            same = ours is theirs is None or torch.equal(ours, theirs)
            if plain.flagged and not same:
                # The erase net sees one prompt more, which may round otherwise.
                same = torch.allclose(ours, theirs, atol=1e-5)
            assert same != (plain.prompt == DISGUISED[0] and name not in ("embeddings", "pooled") and ours is not None)


def test_only_prompts_that_read_differently_are_encoded_twice(masked):
    encoder, sanitizer = masked
    before = encoder.prompts
    list(process(encoder, sanitizer, DISGUISED, reader=READER))
    assert encoder.prompts - before == len(DISGUISED) + 2


def test_the_default_reader_and_none():
    assert pipeline.default_reader(wanted=False) is None
    assert pipeline.default_reader().read("n4k3d") == "naked"
