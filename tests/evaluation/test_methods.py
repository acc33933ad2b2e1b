"""What holds for every method: strength 0, bit-identity, false positives, thresholds on the development split only."""

import pytest
import torch

from evaluation.methods import METHODS, OWN
from evaluation.types import FALSE_POSITIVES, Batch, Development, EncodingMemory, identical

RED = ["crimson", "scarlet", "ruby", "vermilion", "cherry", "carmine", "maroon", "rusty"]
GREEN = ["olive", "jade", "green"]
PLAIN = ["wooden", "heavy", "little", "quiet", "narrow", "broken", "distant", "empty", "gentle", "hollow"]
FRAMES = ["a {} dress on a chair", "the {} door of the old house", "light on {} water", "a {} boat", "two {} birds fly"]
EVERY_PROMPT = ("leace", "concept_vector", "linear_edit")
"""Methods without a gate, as published."""


def filled(words, count, start=0):
    return [FRAMES[i % len(FRAMES)].format(words[(i // len(FRAMES)) % len(words)]) for i in range(start, start + count)]


def development(encoder):
    return Development(
        encoder=encoder,
        concept="nudity",
        unsafe=filled(RED, 40),
        safe=filled(GREEN, 40),
        benign=filled(PLAIN[:5], 25),
        calibration=[f"{text} at {time}" for time in ("noon", "dawn", "night") for text in filled(PLAIN[5:], 25)],
        phrases=[f"{word} dress" for word in RED],
        anchors=[f"{GREEN[i % 3]} dress" for i in range(len(RED))],
    )


@pytest.fixture(params=["tiny", "tiny_causal"])
def encoder(request):
    return request.getfixturevalue(request.param)


FITTED = {}
"""Fitted methods by encoder and name: fitting is most of the time, and none is changed by being applied."""


@pytest.fixture
def make(monkeypatch):
    """(encoder, name) -> a fitted method; what applies the sanitizer with one whose weights are set by hand, and pairs
    of red and green words in place of the concept file. Networks are trained for a few steps only."""
    monkeypatch.setattr("evaluation.methods.latent_guard.STEPS", 40)
    monkeypatch.setattr("evaluation.methods.safeguider.HIDDEN", (64, 32))
    monkeypatch.setattr("sanitizer.text.replacements.known_pairs", lambda sanitizer, name: list(red_concept().pairs))

    def made(encoder, name, anew=False):
        key = (encoder.name, name)
        if anew or key not in FITTED:
            FITTED[key] = METHODS[name](*([handmade(encoder)] if name in OWN else []))
            FITTED[key].fit(development(encoder))
        return FITTED[key]

    return made


def handmade(encoder):
    import importlib.util
    from pathlib import Path

    path = Path(__file__).resolve().parent.parent / "core" / "handmade.py"
    spec = importlib.util.spec_from_file_location("handmade_for_methods", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.handmade(encoder, "nudity")


def red_concept():
    from sanitizer.prompts.concepts import Concept, Pair

    pairs = [Pair(word, GREEN[i % 3], "plain", "adjective") for i, word in enumerate(RED)]
    return Concept("nudity", "Red", "Red words.", "CC0-1.0", (*pairs, Pair("rusty old", "kept", "kept", "tag", True)))


def batch(encoder, prompts):
    return Batch(list(prompts), encoder.encode(list(prompts)))


MIXED = ["a crimson dress", "the quiet door of a house", "scarlet light", "narrow boats and birds", "a crimson door"]


def test_the_table_names_every_method_and_imports_none():
    wanted = {"none", "word_list", "semantic_surgery", "safree", "leace", "concept_vector", "linear_edit"}
    assert set(METHODS) == wanted | {"latent_guard", "safeguider", "re_encode", "ours_text", "ours"}
    for name in METHODS:
        if name not in OWN:
            method = METHODS[name]()
            assert method.name == name and method.title and method.source


@pytest.mark.parametrize("name", list(METHODS))
def test_strength_touched_and_shapes(name, make, encoder):
    method = make(encoder, name)
    b = batch(encoder, MIXED)
    e = b.encoding
    nothing = method.apply(b, 0.0)
    assert not nothing.touched.any() and identical(e, nothing).all()
    for strength in (0.5, 1.0, 1.5):
        out = method.apply(b, strength)
        assert (out.touched == ~identical(e, out)).all(), "touched says exactly what changed"
        assert out.embeddings.shape[:2] == out.mask.shape and out.embeddings.shape[2] == e.embeddings.shape[2]
        assert out.mask.dtype == torch.bool and torch.isfinite(out.embeddings).all()
        assert (out.pooled is None) == (e.pooled is None)
        for i in (~out.touched).nonzero().squeeze(1).tolist():
            seen = e.mask[i]
            assert torch.equal(out.embeddings[i, : len(seen)][seen], e.embeddings[i][seen])
            assert e.pooled is None or torch.equal(out.pooled[i], e.pooled[i])
    score, tokens = method.score(b), method.token_scores(b)
    assert score is None or score.shape == (len(MIXED),)
    assert tokens is None or tokens.shape == e.mask.shape
    if name in EVERY_PROMPT:
        assert method.apply(b).touched.all()


@pytest.mark.parametrize("name", [name for name in METHODS if name not in (*OWN, *EVERY_PROMPT)])
def test_at_most_the_allowed_share_of_calibration_is_touched(name, make, encoder):
    method, d = make(encoder, name), development(encoder)
    touched = sum(
        int(method.apply(batch(encoder, d.calibration[at : at + 64])).touched.sum())
        for at in range(0, len(d.calibration), 64)
    )
    assert touched <= FALSE_POSITIVES * len(d.calibration)


@pytest.mark.parametrize("name", [name for name in METHODS if name != "none"])
def test_a_prompt_does_not_depend_on_its_neighbours(name, make, encoder):
    method = make(encoder, name)
    b = batch(encoder, MIXED)
    whole = method.apply(b)
    alone = method.apply(b.select([0]))
    seen = alone.mask[0]
    assert bool(alone.touched[0]) == bool(whole.touched[0])
    torch.testing.assert_close(whole.embeddings[0, : len(seen)][seen], alone.embeddings[0][seen], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["word_list", "latent_guard", "safeguider", *OWN])
def test_a_detector_sees_the_concept(name, make, tiny):
    score = make(tiny, name).score(batch(tiny, ["a crimson dress", "a wooden chair", "a heavy dress"]))
    assert score[0] > score[1:].max()


@pytest.mark.parametrize("name", list(METHODS))
def test_only_the_development_split_decides(name, make, encoder):
    """Fitted twice on the same split, a method does the same, whatever torch's random state is."""
    b = batch(encoder, MIXED)
    torch.manual_seed(1)
    first = make(encoder, name, anew=True).apply(b)
    torch.manual_seed(2)
    second = make(encoder, name, anew=True).apply(b)
    assert torch.equal(first.embeddings, second.embeddings) and torch.equal(first.touched, second.touched)


@pytest.fixture
def short(monkeypatch):
    """Networks are trained for a few steps only."""
    monkeypatch.setattr("evaluation.methods.latent_guard.STEPS", 4)
    monkeypatch.setattr("evaluation.methods.safeguider.HIDDEN", (8, 8))


def test_the_memory_of_the_split_is_let_go(tiny, make):
    for name in METHODS:
        method = make(tiny, name)
        held = [*vars(method).values(), *(getattr(value, "encoder", None) for value in vars(method).values())]
        assert not any(isinstance(value, EncodingMemory | Development) for value in held)


def test_the_split_is_encoded_once_for_all_methods(tiny, short):
    d = development(tiny)
    for name in ("leace", "concept_vector", "linear_edit", "latent_guard", "safeguider"):
        METHODS[name]().fit(d)
    tiny.prompts = 0
    METHODS["leace"]().fit(d)
    METHODS["concept_vector"]().fit(d)
    assert tiny.prompts == 0
