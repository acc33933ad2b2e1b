"""The file: a round trip, and one clear line for everything that can be wrong with it."""

import json
import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sanitizer.encoders import Fingerprint
from sanitizer.errors import SanitizerError
from sanitizer.model.artifact import FORMAT_VERSION, find, load, read_info, save
from sanitizer.training.config import TrainingConfig


@pytest.fixture()
def saved(masked, tmp_path):
    path = tmp_path / "tiny.safetensors"
    save(masked[1], path)
    return path


def rewrite(path, change_tensors=lambda t: t, change_metadata=lambda m: m):
    """The same file with other tensors or another header."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        metadata = dict(file.metadata())
    save_file(change_tensors(load_file(path)), path, metadata=change_metadata(metadata))


def with_info(change):
    def apply(metadata):
        info = json.loads(metadata["embedding-sanitizer"])
        change(info)
        return {"embedding-sanitizer": json.dumps(info)}

    return apply


def test_a_round_trip_gives_the_same_sanitizer(masked, saved):
    encoder, sanitizer, report = masked
    again = load(saved)
    e = encoder.encode(["a crimson woman", "a dog"])
    one, two = sanitizer.sanitize(e.embeddings, e.mask), again.sanitize(e.embeddings, e.mask)
    assert torch.equal(one.embeddings, two.embeddings) and torch.equal(one.scores.prompt, two.scores.prompt)
    assert again.fingerprint == encoder.fingerprint
    assert again.header.report == report.to_dict()
    assert not again.training and not any(p.requires_grad for p in again.parameters())


def test_the_same_training_gives_the_same_bytes(masked, saved, tmp_path):
    save(masked[1], tmp_path / "second.safetensors")
    assert saved.read_bytes() == (tmp_path / "second.safetensors").read_bytes()


def test_the_header_says_what_it_is(masked, saved):
    info = read_info(saved)
    assert info.version == FORMAT_VERSION
    assert info.header == masked[1].header
    assert info.header.encoder == masked[0].fingerprint
    assert [spec.name for spec in info.config.concepts] == ["redness"]
    # The lists of JSON are tuples again, and the whole training configuration is there.
    assert info.config == masked[1].config
    assert info.header.training["config"].keys() == TrainingConfig().to_dict().keys()


def test_saving_replaces_whole_and_leaves_nothing_behind(masked, saved):
    save(masked[1], saved)
    assert [p.name for p in saved.parent.iterdir()] == [saved.name]


def test_a_failed_save_keeps_the_old_file(masked, saved, monkeypatch):
    before = saved.read_bytes()

    def fail(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(SanitizerError, match="No space left"):
        save(masked[1], saved)
    assert saved.read_bytes() == before
    assert [p.name for p in saved.parent.iterdir()] == [saved.name]


def test_nan_is_not_saved(masked, tmp_path):
    import copy

    broken = copy.deepcopy(masked[1])
    broken.mean[0] = float("nan")
    with pytest.raises(SanitizerError, match="mean holds NaN"):
        save(broken, tmp_path / "x.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_name_without_the_ending_is_refused(masked, tmp_path):
    with pytest.raises(SanitizerError, match=r"\.safetensors"):
        save(masked[1], tmp_path / "x.pt")


def test_missing_file(tmp_path):
    with pytest.raises(SanitizerError, match="no such file"):
        load(tmp_path / "none.safetensors")


@pytest.mark.parametrize("size", [0, 4, 200, -1, -1000])
def test_truncated(saved, size):
    saved.write_bytes(saved.read_bytes()[:size])
    with pytest.raises(SanitizerError, match="truncated or corrupt"):
        load(saved)


def test_garbage(saved):
    saved.write_bytes(b"\xff" * 4096)
    with pytest.raises(SanitizerError, match="truncated or corrupt"):
        load(saved)


def test_pickles_are_refused_unread(saved):
    saved.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(SanitizerError, match="pickle"):
        load(saved)
    with zipfile.ZipFile(saved, "w") as archive:
        archive.writestr("data.pkl", b"x")
    with pytest.raises(SanitizerError, match="pickle"):
        load(saved)


@pytest.mark.parametrize(
    ("tensors", "metadata", "words"),
    [
        (lambda t: t, lambda m: {}, "no sanitizer"),
        (lambda t: t, lambda m: {"format": "lora"}, "no sanitizer"),
        (lambda t: t, with_info(lambda i: i.update(format_version=3)), "Update"),
        (lambda t: t, with_info(lambda i: i.update(format_version="x")), "format version"),
        (lambda t: t, lambda m: {"embedding-sanitizer": "{"}, "damaged header"),
        (lambda t: t, lambda m: {"embedding-sanitizer": "[]"}, "damaged header"),
        (lambda t: t, with_info(lambda i: i.pop("encoder")), "lacks encoder"),
        (lambda t: t, with_info(lambda i: i["config"].update(width=10**9)), "width"),
        (lambda t: t, with_info(lambda i: i["config"].update(width=72)), "made for 72 channels.*trained on tiny"),
        (lambda t: t, with_info(lambda i: i["config"].update(erase_width=72)), "expected F32"),
        (lambda t: t, with_info(lambda i: i["config"].update(score_width=30)), "divisible"),
        (lambda t: t, with_info(lambda i: i["config"].update(surprise=1)), "damaged header"),
        (lambda t: t, with_info(lambda i: i["config"].update(concepts=[])), "concepts"),
        (lambda t: t, with_info(lambda i: i["config"].update(rank="7")), "rank"),
        (lambda t: t, with_info(lambda i: i["config"].update(gate_floor=float("nan"))), "gate_floor"),
        (lambda t: t, with_info(lambda i: i["config"].update(concept_gain=None)), "concept_gain"),
        (lambda t: t, with_info(lambda i: i["config"].update(clip=0)), "clip"),
        (lambda t: t, with_info(lambda i: i["config"].update(ensemble_weights=[1.0])), "ensemble_weights"),
        (lambda t: t, with_info(lambda i: i["config"]["rewrite"].update(rounds=10**6)), "rewrite.rounds"),
        (lambda t: t, with_info(lambda i: i["config"]["rewrite"].update(surprise=1)), "damaged header"),
        (lambda t: t, with_info(lambda i: i.update(report=[])), "report"),
        (lambda t: {k: v for k, v in t.items() if k != "mean"}, lambda m: m, "lacks the tensor mean"),
        (lambda t: {**t, "extra": torch.zeros(1)}, lambda m: m, "unknown tensor extra"),
        (lambda t: {**t, "mean": t["mean"].half()}, lambda m: m, "F16"),
        (lambda t: {**t, "mean": t["mean"][1:].clone()}, lambda m: m, "expected F32"),
        (lambda t: {**t, "mean": t["mean"] * float("nan")}, lambda m: m, "NaN"),
        (lambda t: {**t, "std": t["std"].fill_(float("inf"))}, lambda m: m, "infinity"),
    ],
)
def test_damage_is_one_clear_line(saved, tensors, metadata, words):
    rewrite(saved, tensors, metadata)
    with pytest.raises(SanitizerError, match=words) as caught:
        load(saved)
    assert str(saved) in str(caught.value) and "\n" not in str(caught.value)


def test_auto_finds_the_newest_file_for_the_encoder(masked, causal, tmp_path):
    for index, name in enumerate(["old", "new"]):
        save(masked[1], tmp_path / f"{name}.safetensors")
        os.utime(tmp_path / f"{name}.safetensors", (1000 + index, 1000 + index))
    save(causal[1], tmp_path / "other.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"no")
    assert find(masked[0].fingerprint, [tmp_path]).name == "new.safetensors"
    assert find(causal[0].fingerprint, [tmp_path]).name == "other.safetensors"
    assert find(Fingerprint("else", 1, 0, ""), [tmp_path]) is None


@pytest.mark.parametrize("version", [1, 2])
def test_the_golden_file_still_loads_and_gives_the_same_numbers(version):
    """Written by that version of the format: whoever changes the format has to keep reading it. The second file's
    constants are others than today's defaults, the first one's are not in the file."""
    folder = Path(__file__).resolve().parent.parent / "data"
    sanitizer = load(folder / f"golden_v{version}.safetensors")
    golden = load_file(folder / f"golden_v{version}_output.safetensors")
    out = sanitizer.sanitize(golden["rows"], golden["mask"].bool())
    assert torch.allclose(out.embeddings, golden["sanitized"], atol=1e-4)
    assert torch.allclose(out.scores.prompt, golden["prompt_scores"], atol=1e-4)
    assert out.flagged.tolist() == [True, False]


def test_size_for_768_channels():
    from sanitizer.model.config import ConceptSpec, SanitizerConfig
    from sanitizer.model.sanitizer import EmbeddingSanitizer

    training, concepts = TrainingConfig(), tuple(ConceptSpec(str(i)) for i in range(8))
    ranks = {"rank": training.rank, "pooled_rank": training.pooled_rank}
    ranks |= {"concept_rank": training.concept_rank, "pooled_concept_rank": training.concept_rank}
    config = SanitizerConfig(concepts, width=768, pooled_width=768, **ranks)
    size = sum(t.numel() * t.element_size() for t in EmbeddingSanitizer(config).state_dict().values())
    assert size < 4_000_000, size
