"""The file: a round trip, and one clear line for everything that can be wrong with it."""

import copy
import json
import os
import pickle
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sanitizer.encoders import Fingerprint
from sanitizer.errors import SanitizerError
from sanitizer.model.artifact import FORMAT_VERSION, WHOLE_VERSION, find, load, read_info, save
from sanitizer.model.config import ConceptSpec, SanitizerConfig
from sanitizer.model.header import Replacement, check_plain
from sanitizer.model.quality import own_lists
from sanitizer.prompts.concepts import digest, load_concepts
from sanitizer.training.config import TrainingConfig
from sanitizer.training.fit import fit

DATA = Path(__file__).resolve().parent.parent / "data"


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
    assert info.version == WHOLE_VERSION
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
        (lambda t: t, with_info(lambda i: i.update(format_version=FORMAT_VERSION + 1)), "Update"),
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
        (lambda t: t, with_info(lambda i: i["config"].update(erase_blocks="7")), "erase_blocks"),
        (lambda t: t, with_info(lambda i: i["config"].update(gate_floor=float("nan"))), "gate_floor"),
        (lambda t: t, with_info(lambda i: i["config"].update(concept_gain=None)), "concept_gain"),
        (lambda t: t, with_info(lambda i: i["config"].update(clip=0)), "clip"),
        (lambda t: t, with_info(lambda i: i["config"].update(ensemble_weights=[1.0])), "ensemble_weights"),
        (lambda t: t, with_info(lambda i: i["config"]["rewrite"].update(rounds=10**6)), "rewrite.rounds"),
        (lambda t: t, with_info(lambda i: i["config"]["rewrite"].update(surprise=1)), "damaged header"),
        (lambda t: t, with_info(lambda i: i.update(report=[])), "report"),
        (lambda t: t, with_info(lambda i: i.update(anchors={"redness": [["crimson", "olive"]]})), "anchors of"),
        (lambda t: {k: v for k, v in t.items() if k != "mean"}, lambda m: m, "lacks the tensor mean"),
        (lambda t: {**t, "extra": torch.zeros(1)}, lambda m: m, "unknown tensor extra"),
        (lambda t: {**t, "mean": t["mean"].half()}, lambda m: m, "F16"),
        (lambda t: {**t, "mean": t["mean"][1:].clone()}, lambda m: m, "expected F32"),
        (lambda t: {**t, "mean": t["mean"] * float("nan")}, lambda m: m, "NaN"),
        (lambda t: {**t, "mean": t["mean"] * 0 + 3e38}, lambda m: m, "mean holds NaN, infinity or a number beyond"),
        *(
            (lambda t: t, with_info(change), words)
            for change, words in (
                (lambda i: i["config"]["concepts"][0].update(lowers={"redness": float("nan")}), "lowers.*nan"),
                (lambda i: i["config"]["concepts"][0].update(lowers={"redness": float("inf")}), "lowers.*inf"),
                (lambda i: i["config"]["concepts"][0].update(lowers={"redness": "2"}), "lowers of 'redness'.*'2'"),
                (lambda i: i["config"]["concepts"][0].update(lowers={"redness": [2]}), "lowers of 'redness'"),
                (lambda i: i["config"]["concepts"][0].update(lowers={"redness": -1}), "lowers of 'redness'"),
                (lambda i: i["config"]["concepts"][0].update(lowers={"redness": True}), "lowers of 'redness'"),
                (lambda i: i["config"]["concepts"][0].update(lowers="redness"), "lowers of 'redness'.*an object"),
                (lambda i: i["config"]["concepts"][0].update(lowers=["redness"]), "lowers of 'redness'.*an object"),
                (lambda i: i["config"]["concepts"][0].update(context="yes"), "context of 'redness'.*true or false"),
                (lambda i: i["config"]["concepts"][0].update(context=1), "context of 'redness'.*true or false"),
                (lambda i: i["config"]["concepts"][0].update(context=True), "a concept that can be erased"),
                (lambda i: i["config"]["concepts"][0].update(name=7), "name of a concept"),
                (lambda i: i["config"]["concepts"][0].update(name="a\nb"), "name of a concept"),
                (lambda i: i["config"].update(concepts="redness"), "a list of objects"),
                (lambda i: i["config"].update(concepts=["redness"]), "a list of objects"),
                (lambda i: i["config"].update(concepts=i["config"]["concepts"] * 2), "different concepts"),
                (lambda i: i["config"].update(width=float("inf")), "config.width: found the number inf"),
                (lambda i: i["config"].update(erase_width=float("nan")), "config.erase_width: found the number nan"),
                (lambda i: i["config"].update(width=64.0), "width: expected a whole number"),
                (lambda i: i["config"].update(width=True), "width: expected a whole number"),
                (lambda i: i["config"].update(rewrite=[]), "rewrite: expected an object"),
                (lambda i: i["config"]["rewrite"].update(word_scores=[0.5] * 99), "word_scores"),
                (lambda i: i["config"]["rewrite"].update(word_scores=0.5), "damaged header"),
                (lambda i: i.update(config=[]), "config: expected an object"),
                (lambda i: i.update(encoder="bert"), "encoder: expected an object"),
                (lambda i: i["encoder"].update(width=float("inf")), "encoder.width: found the number inf"),
                (lambda i: i["encoder"].update(width="64"), "encoder, width"),
                (lambda i: i["encoder"].update(weights=[]), "encoder, weights: expected a text"),
                (lambda i: i["encoder"].pop("architecture"), "lacks 'architecture'"),
                (lambda i: i.update(training="much"), "training: found str"),
                (lambda i: i["training"].update(examples="many"), "training, examples"),
                (lambda i: i["training"].update(config=[]), "training, config"),
                (lambda i: i["training"].update(concepts=["redness"]), "training, concepts"),
                (lambda i: i.update(licence=5), "licence: found int"),
                (lambda i: i.update(licence={"code": 5}), "licence: expected texts"),
                (lambda i: i.update(licence="\ud800"), "licence: found half a surrogate pair"),
                (lambda i: i["report"].update(of_2031=1.0), "report: unknown figure 'of_2031', perhaps of a newer"),
                (lambda i: i["report"].update(benign_identical="all"), "benign_identical: expected 0 to 1 or null"),
                (lambda i: i["report"].update(benign_identical=1.5), "benign_identical: expected 0 to 1 or null"),
                (lambda i: i["report"].update(benign=-1), "benign: expected a whole number"),
                (lambda i: i["report"].update(concepts={}), "report, concepts: expected a list"),
                (lambda i: i["report"].update(concepts=[5]), "concept 1: expected an object"),
                (lambda i: i["report"]["concepts"][0].pop("name"), "concept 1: expected a name"),
                (lambda i: i["report"]["concepts"][0].update(auroc=float("nan")), "auroc: found the number nan"),
                (lambda i: i["report"]["concepts"][0].update(flagged=True), "flagged: expected 0 to 1"),
            )
        ),
        (lambda t: t, lambda m: {"embedding-sanitizer": "[" * 100_000}, "damaged header"),
        (lambda t: t, lambda m: {"embedding-sanitizer": '{"a":' * 900 + "1" + "}" * 900}, "inside each other"),
        (lambda t: t, lambda m: {"embedding-sanitizer": '{"format_version": ' + "9" * 4000 + "}"}, "Update it"),
        (lambda t: t, lambda m: {"embedding-sanitizer": '{"format_version": ' + "9" * 5000 + "}"}, "damaged header"),
        (lambda t: t, lambda m: {"embedding-sanitizer": m["embedding-sanitizer"].replace("64", "1e999", 1)}, "inf"),
        (lambda t: {**t, "std": t["std"].fill_(float("inf"))}, lambda m: m, "infinity"),
    ],
)
def test_damage_is_one_clear_line(saved, tensors, metadata, words):
    rewrite(saved, tensors, metadata)
    with pytest.raises(SanitizerError, match=words) as caught:
        load(saved)
    assert str(saved) in str(caught.value) and "\n" not in str(caught.value)


def test_numbers_that_are_no_json_are_not_saved(masked, tmp_path):
    broken = copy.deepcopy(masked[1])
    broken.header = replace(broken.header, report={"seconds": float("nan")})
    with pytest.raises(SanitizerError, match=r"Not saved.*seconds: found the number nan"):
        save(broken, tmp_path / "x.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_header_without_end_is_refused_unread(saved, monkeypatch):
    data = saved.read_bytes()
    # As it says of itself: 20 MB of header, and they are there.
    saved.write_bytes((20_000_000).to_bytes(8, "little") + data[8:] + bytes(20_000_000))
    with pytest.raises(SanitizerError, match="longer than 16,777,216 bytes"):
        read_info(saved)
    saved.write_bytes((2**63).to_bytes(8, "little") + data[8:])
    with pytest.raises(SanitizerError, match="truncated or corrupt"):
        read_info(saved)
    saved.write_bytes(data)
    monkeypatch.setattr("sanitizer.model.artifact.MOST_HEADER_BYTES", 5000)
    rewrite(saved, change_metadata=with_info(lambda info: info.update(licence="x" * 6000)))
    with pytest.raises(SanitizerError, match="longer than 5,000 bytes"):
        read_info(saved)


def test_a_context_concept_may_not_lower_what_is_not_there():
    """Files up to version 2 do, where a part of the pack's concepts was trained: it never acted, and is left out."""
    concepts = (ConceptSpec("redness"), ConceptSpec("youth", True, {"blueness": 2.0}))
    config = SanitizerConfig(concepts, width=4, gated=True)
    with pytest.raises(ValueError, match="lowers of 'youth': 'blueness' is none of its concepts"):
        config.check()


def test_an_older_file_of_a_part_of_the_concepts_still_loads(saved, tmp_path):
    def lower(info):
        info["config"]["concepts"][-1]["lowers"]["violence"] = 2.0

    path = tmp_path / "older.safetensors"
    path.write_bytes((DATA / "golden_v2.safetensors").read_bytes())
    rewrite(path, change_metadata=with_info(lower))
    assert load(path).config.concepts[-1].lowers == {"golden": 2.0}
    rewrite(saved, change_metadata=with_info(lower))
    with pytest.raises(SanitizerError, match="'violence' is none of its concepts"):
        load(saved)


def test_plain_values():
    check_plain({"a": [1, 2.5, None, True, "ü🦊", {"b": []}]})
    for value in ([float("nan")], {"a": {"b": float("-inf")}}, "\udc80", {"\udc80": 1}):
        with pytest.raises(ValueError, match="found"):
            check_plain(value)


def test_auto_finds_the_newest_file_for_the_encoder(masked, causal, tmp_path):
    for index, name in enumerate(["old", "new"]):
        save(masked[1], tmp_path / f"{name}.safetensors")
        os.utime(tmp_path / f"{name}.safetensors", (1000 + index, 1000 + index))
    save(causal[1], tmp_path / "other.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"no")
    assert find(masked[0].fingerprint, [tmp_path]).name == "new.safetensors"
    assert find(causal[0].fingerprint, [tmp_path]).name == "other.safetensors"
    assert find(Fingerprint("else", 1, 0, ""), [tmp_path]) is None


def test_one_bad_file_never_stops_auto_and_is_named(masked, saved, caplog):
    folder = saved.parent
    (folder / "broken.safetensors").write_bytes(b"no")
    (folder / "folder.safetensors").mkdir()
    (folder / "gone.safetensors").symlink_to(folder / "nowhere")
    (folder / "nested.safetensors").write_bytes(saved.read_bytes())
    rewrite(folder / "nested.safetensors", change_metadata=lambda m: {"embedding-sanitizer": "[" * 100_000})
    assert find(masked[0].fingerprint, [folder, folder / "missing"]) == saved
    for name in ("broken", "folder", "gone", "nested"):
        assert sum(f"{name}.safetensors" in record.getMessage() for record in caplog.records) == 1


def measured(sanitizer, figures, **changes):
    """The sanitizer with these held-out figures: concept -> (phrases, auroc, flagged)."""
    sanitizer = copy.deepcopy(sanitizer)
    report = {
        "concepts": [
            {"name": name, "phrases": phrases, "auroc": auroc, "flagged": flagged}
            for name, (phrases, auroc, flagged) in figures.items()
        ]
    }
    sanitizer.header = replace(sanitizer.header, report=report if figures else {}, **changes)
    return sanitizer


def test_auto_takes_the_best_measured_file(masked, tmp_path):
    """Figures stand in the order of their age, the best ones in the oldest file."""
    encoder, sanitizer, _ = masked
    kinds = {
        "good": {"redness": (300, 0.97, 0.6)},
        "few_phrases": {"redness": (8, 1.0, 0.75)},
        "weak": {"redness": (300, 0.85, 0.7)},
        "worthless": {"redness": (300, 0.5, 0.9)},
        "too_few_to_say": {"redness": (2, 1.0, 1.0)},
        "no_figures": {},
    }
    for age, (name, figures) in enumerate(kinds.items()):
        save(measured(sanitizer, figures), tmp_path / f"{name}.safetensors")
        os.utime(tmp_path / f"{name}.safetensors", (1000 + age, 1000 + age))
    # Each is the best once those before it are gone; of files without figures, the newest.
    for name in ("good", "few_phrases", "weak", "worthless", "no_figures", "too_few_to_say"):
        found = find(encoder.fingerprint, [tmp_path], ["redness"])
        assert found.stem == name
        assert find(encoder.fingerprint, [tmp_path]) == found
        found.unlink()
    assert find(encoder.fingerprint, [tmp_path]) is None


def test_auto_takes_a_file_that_covers_the_concepts(masked, tmp_path):
    encoder, sanitizer, _ = masked
    save(sanitizer, tmp_path / "redness.safetensors")
    assert find(encoder.fingerprint, [tmp_path], ["redness"]).stem == "redness"
    assert find(encoder.fingerprint, [tmp_path], ["redness", "violence"]) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"replacements": {"nudity": [Replacement("a bald cat", "a cat", "a cat")]}},
        {"training": {"concepts": {"nudity": "0123456789abcdef"}}},
    ],
)
def test_a_concept_that_is_called_like_one_of_the_packs_does_not_pass_for_it(masked, tmp_path, changes):
    """The words of somebody's own list, in a file from before the digest and in one with it."""
    encoder, sanitizer, _ = masked
    config = replace(sanitizer.config, concepts=(ConceptSpec("nudity"),))
    named = measured(sanitizer, {"nudity": (300, 0.99, 0.9)}, replacements={}, training={})
    named.config = config
    save(named, tmp_path / "packs.safetensors")
    own = measured(named, {"nudity": (300, 1.0, 1.0)}, **changes)
    save(own, tmp_path / "own.safetensors")
    assert own_lists(own.header) == {"nudity"}
    for concepts in (["nudity"], None):
        assert find(encoder.fingerprint, [tmp_path], concepts).stem == "packs"
    (tmp_path / "packs.safetensors").unlink()
    for concepts in (["nudity"], None):
        assert find(encoder.fingerprint, [tmp_path], concepts) is None


def test_training_says_which_word_lists_it_was_given(tiny_encoder):
    concepts = load_concepts(["nudity"])
    sanitizer, _ = fit(tiny_encoder(), concepts, examples=200, steps=4)
    assert sanitizer.header.training["concepts"] == {concept.name: digest(concept) for concept in concepts}
    assert own_lists(sanitizer.header) == set()
    changed = replace(concepts[0], pairs=concepts[0].pairs[1:])
    assert digest(changed) != digest(concepts[0])
    assert digest(replace(concepts[0], pairs=concepts[0].pairs[::-1])) == digest(concepts[0])


@pytest.mark.parametrize(("version", "strength"), [(1, 1.0), (2, 1.0), (3, 1.0), (4, 0.7)])
def test_the_golden_file_still_loads_and_gives_the_same_numbers(version, strength):
    """Written by that version of the format: whoever changes the format has to keep reading it. The constants
    of all but the first file, where they are not written, are others than today's defaults."""
    sanitizer = load(DATA / f"golden_v{version}.safetensors")
    golden = load_file(DATA / f"golden_v{version}_output.safetensors")
    out = sanitizer.sanitize(golden["rows"], golden["mask"].bool(), strength=strength)
    assert torch.allclose(out.embeddings, golden["sanitized"], atol=1e-4)
    assert torch.allclose(out.scores.prompt, golden["prompt_scores"], atol=1e-4)
    assert out.flagged.tolist() == [True, False]


def test_size_for_768_channels():
    from sanitizer.model.config import ConceptSpec, SanitizerConfig
    from sanitizer.model.sanitizer import EmbeddingSanitizer

    concepts = tuple(ConceptSpec(str(i)) for i in range(8))
    config = SanitizerConfig(concepts, width=768, pooled_width=768, gated=True)
    size = sum(t.numel() * t.element_size() for t in EmbeddingSanitizer(config).state_dict().values())
    assert size < 9_000_000, size
