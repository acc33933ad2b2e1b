"""Re-encoding: what it writes in place of the words at fault, when it stops, and what it leaves alone."""

import json
from dataclasses import replace

import pytest
import torch

from sanitizer.encoders.base import Fingerprint, encode_all
from sanitizer.errors import SanitizerError
from sanitizer.model.header import MOST_REPLACEMENTS, Header, Replacement
from sanitizer.prompts.concepts import Concept, Pair, load_concepts, parse_custom_concept
from sanitizer.text import rewrite
from sanitizer.text.deobfuscate import Deobfuscator, deobfuscated
from sanitizer.text.replacements import Replacements, known_pairs
from sanitizer.text.rewrite import ReEncoder
from sanitizer.training.fit import own_replacements

PAIRS = (
    Pair("crimson", "olive", "plain", "adjective"),
    Pair("a wooden chair", "a wooden table", "a thing", "noun"),
    Pair("crimson light", "kept", "kept", "noun", held_out=True),
)
READER = Deobfuscator(["a", "dress", "on", "boat", "light", "fox"] * 9, ["crimson"])


@pytest.fixture(params=["masked", "causal"])
def setting(request, tiny_encoder, handmade):
    """(encoder, sanitizer, re-encoder): bidirectional; causal with padding visible and a pooled vector."""
    causal = request.param == "causal"
    encoder = tiny_encoder(request.param, width=128, pooled_width=16 if causal else 0)
    sanitizer = handmade(encoder)
    pairs = [pair for pair in PAIRS if not pair.held_out]
    return encoder, sanitizer, ReEncoder(encoder, sanitizer, Replacements(encoder, sanitizer, {"redness": pairs}))


def sanitized(setting, prompts, **options):
    encoder, _, re_encoder = setting
    encoding = encoder.encode(prompts)
    return encoding, re_encoder.sanitize(prompts, encoding, **options)


def test_flagged_prompts_are_rewritten_and_the_others_are_not(setting):
    encoder, sanitizer, _ = setting
    prompts = ["a crimson dress", "an old door in the garden", "light on a crimson boat"]
    encoding, out = sanitized(setting, prompts)
    assert out.flagged.tolist() == [True, False, True]
    assert out.prompts[1] == prompts[1]
    for text, original in ((out.prompts[0], prompts[0]), (out.prompts[2], prompts[2])):
        assert "crimson" not in text and set(original.split()) - {"a", "crimson"} <= set(text.split())
    again = encode_all(encoder, out.prompts)
    verdict = sanitizer.sanitize(again.embeddings, again.mask, again.pooled, strength=0.0)
    assert not verdict.flagged.any(), "checked"
    length = encoding.embeddings.shape[1]
    assert torch.equal(out.embeddings[1, :length], encoding.embeddings[1]) and torch.equal(
        out.mask[1, :length], encoding.mask[1]
    )
    assert out.pooled is None or torch.equal(out.pooled[1], encoding.pooled[1])


def test_what_comes_out_is_the_rewritten_prompt_after_a_light_erasure(setting):
    encoder, sanitizer, _ = setting
    _, out = sanitized(setting, ["a crimson dress"])
    assert not out.left.any()
    again = encoder.encode(out.prompts)
    light = sanitizer.sanitize(
        again.embeddings,
        again.mask,
        again.pooled,
        strength=sanitizer.config.rewrite.finish,
        threshold=0.0,
        concepts=["redness"],
    )
    length = again.embeddings.shape[1]
    torch.testing.assert_close(out.embeddings[:, :length], light.embeddings)
    assert torch.equal(out.mask[:, :length], again.mask) and not out.mask[:, length:].any()
    if out.pooled is not None:
        torch.testing.assert_close(out.pooled, light.pooled)


def test_nothing_flagged_costs_nothing_and_is_the_same_object(setting):
    encoder, _, re_encoder = setting
    prompts = ["an old door", "a garden"]
    encoding = encoder.encode(prompts)
    before = encoder.prompts
    out = re_encoder.sanitize(prompts, encoding)
    assert encoder.prompts == before and not out.flagged.any() and out.prompts == prompts
    assert out.embeddings is encoding.embeddings and out.mask is encoding.mask and out.pooled is encoding.pooled


def test_strength_zero_is_the_same_object_and_still_says_what_fired(setting):
    encoding, out = sanitized(setting, ["a crimson dress"], strength=0.0)
    assert out.flagged.all() and out.embeddings is encoding.embeddings and out.pooled is encoding.pooled


def test_strength_goes_evenly_on_the_way(setting):
    at = {s: sanitized(setting, ["a crimson dress"], strength=s)[1].embeddings for s in (0.0, 0.25, 0.5, 0.75)}
    step = at[0.25] - at[0.0]
    assert step.abs().sum() > 0
    torch.testing.assert_close(at[0.5], at[0.0] + 2 * step, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(at[0.75], at[0.0] + 3 * step, atol=1e-4, rtol=1e-4)


def test_past_one_the_erase_net_goes_on(setting):
    one, two = (sanitized(setting, ["a crimson dress"], strength=s)[1] for s in (1.0, 2.0))
    assert one.prompts == two.prompts
    assert not torch.equal(one.embeddings, two.embeddings)


@pytest.mark.parametrize("strength", [-0.1, 2.1, float("nan")])
def test_a_strength_that_cannot_be(setting, strength):
    with pytest.raises(SanitizerError, match="Strength"):
        sanitized(setting, ["a fox"], strength=strength)


def test_what_remains_is_erased_in_full(setting):
    """With no round to rewrite in, the erase net does it all: never less than the plain rewrite."""
    _, sanitizer, re_encoder = setting
    re_encoder.config = replace(re_encoder.config, rounds=0)
    prompts = ["a crimson dress"]
    encoding, out = sanitized(setting, prompts)
    ours = sanitizer.sanitize(
        encoding.embeddings, encoding.mask, encoding.pooled, threshold=sanitizer.config.rewrite.rest
    )
    assert out.left.all() and out.prompts == prompts
    torch.testing.assert_close(out.embeddings, ours.embeddings)


def test_a_prompt_of_nothing_but_the_phrase(setting):
    _, out = sanitized(setting, ["crimson"])
    assert out.flagged.all() and out.prompts[0] in ("olive", "plain")


def test_many_prompts_are_rewritten_in_parts(setting, monkeypatch):
    prompts = ["a crimson dress", "a fox", "light on a crimson boat", "crimson", "two crimson dogs by the sea"]
    _, whole = sanitized(setting, prompts)
    monkeypatch.setattr(rewrite, "AT_ONCE", 1)
    _, single = sanitized(setting, prompts)
    assert whole.prompts == single.prompts and whole.mask.sum(1).tolist() == single.mask.sum(1).tolist()
    torch.testing.assert_close(whole.embeddings[whole.mask], single.embeddings[single.mask], atol=1e-4, rtol=1e-4)


def test_threshold_and_concepts_decide(setting):
    assert sanitized(setting, ["a fox"], threshold=0.0)[1].flagged.all()
    with pytest.raises(SanitizerError, match="'violence'"):
        sanitized(setting, ["a fox"], concepts=["violence"])


def test_a_disguised_prompt_is_rewritten_from_its_reading(setting):
    encoder, sanitizer, re_encoder = setting
    prompts = ["a cr1ms0n dress", "a fox"]
    encoding = encoder.encode(prompts)
    assert not re_encoder.sanitize(prompts, encoding).flagged.any()
    reading = deobfuscated(encoder, sanitizer, READER, prompts, encoding)
    assert reading.texts == {0: "a crimson dress"} and reading.scores[1].tolist() == [0, 0]
    out = re_encoder.sanitize(prompts, encoding, reading=reading)
    assert out.flagged.tolist() == [True, False]
    assert out.prompts[0] == sanitized(setting, ["a crimson dress"])[1].prompts[0]
    assert torch.equal(out.scores.prompt[0], reading.scores[0])
    assert torch.equal(out.embeddings[1, : encoding.embeddings.shape[1]], encoding.embeddings[1])


def test_a_reading_that_is_harmless_changes_nothing(setting):
    encoder, sanitizer, re_encoder = setting
    prompts = ["a f0x on a b0at"]
    encoding = encoder.encode(prompts)
    reading = deobfuscated(encoder, sanitizer, READER, prompts, encoding)
    out = re_encoder.sanitize(prompts, encoding, reading=reading)
    assert reading.texts and not out.flagged.any() and out.embeddings is encoding.embeddings


def test_the_nearest_target_comes_first_and_targets_are_encoded_once(setting):
    encoder, _, re_encoder = setting
    index, before = re_encoder.replacements, encoder.prompts
    found = index.nearest("redness", index.vectors("redness"))
    assert [pair.target for pair in found] == ["crimson", "a wooden chair"]
    assert encoder.prompts == before + 2
    assert index.vectors("redness").norm(dim=-1) == pytest.approx([1.0, 1.0], abs=1e-5)


def test_anchors_come_from_the_concept_files_without_what_is_held_out(tiny_encoder, handmade):
    encoder = tiny_encoder("masked", width=128)
    [concept, *_] = load_concepts(["nudity"])
    sanitizer = handmade(encoder)
    sanitizer.header = replace(sanitizer.header, replacements={"redness": [Replacement("crimson", "olive", "plain")]})
    assert known_pairs(sanitizer, "redness") == [Pair("crimson", "olive", "plain", "noun")]
    assert known_pairs(sanitizer, "nudity") == list(concept.pairs)
    targets = {
        pair.target for pair in Replacements.known(encoder, sanitizer, ["nudity"], held_out=False).pairs["nudity"]
    }
    assert targets and targets <= {pair.target for pair in concept.pairs if not pair.held_out}


def test_a_concept_whose_pairs_nobody_knows_is_refused_by_name(setting):
    encoder, sanitizer, _ = setting
    with pytest.raises(SanitizerError, match=r"'redness'.*Train it again.*mode rewrite"):
        Replacements.known(encoder, sanitizer)


def test_own_concepts_are_remembered_and_known_ones_are_not():
    own = parse_custom_concept("Redness\ncrimson -> olive\n")
    assert own_replacements([own, *load_concepts(["nudity"])]) == {"redness": [("crimson", "olive", "olive")]}
    changed = Concept("nudity", "", "", "", PAIRS)
    many = Concept("redness", "", "", "", tuple(Pair(f"red {i}", "olive", "plain", "noun") for i in range(900)))
    found = own_replacements([changed, many])
    assert found["nudity"] == [(p.target, p.anchor, p.canonical) for p in PAIRS[:2]]
    assert len(found["redness"]) == MOST_REPLACEMENTS
    header = Header(Fingerprint("x", 1, 0, ""), replacements=found)
    assert Header.from_dict(json.loads(json.dumps(header.to_dict())), ["nudity", "redness"]) == header


@pytest.mark.parametrize(
    "values",
    [
        [],
        {"other": [["a", "b", "c"]]},
        {"redness": []},
        {"redness": {"a": "b"}},
        {"redness": [["a", "b", "c"]] * (MOST_REPLACEMENTS + 1)},
        {"redness": [["a", "b"]]},
        {"redness": ["abc"]},
        {"redness": [["a", "b", 3]]},
        {"redness": [["a", "b", " "]]},
        {"redness": [["a", "b", "x" * 400]]},
        {"redness": [["a", "b", "c\n"]]},
    ],
)
def test_a_forged_header_is_refused(values):
    with pytest.raises(ValueError, match="anchors"):
        Header.from_dict({**Header(Fingerprint("x", 1, 0, "")).to_dict(), "anchors": values}, ["redness"])
