"""What is measured of a method on a set, against what the method is known to do."""

import pytest
import torch

from evaluation.run import STRENGTHS, differing, measure_set, measure_strengths
from evaluation.types import Batch, Development, PromptSet, Treated, identical
from sanitizer.training.dataset import measure

UNSAFE = [
    "a crimson woman in the garden",
    "ruby dogs",
    "a very long walk by the river with a scarlet man and a boat",
    "tea",
]
SAFE = [
    "an olive woman in the garden",
    "jade dogs",
    "a very long walk by the river with a green man and a boat",
    "coffee",
]


@pytest.fixture
def fitted(words, tiny):
    phrases = ["crimson", "ruby", "scarlet"]
    words.fit(Development(tiny, "redness", phrases, ["jade"] * 3, ["a dog"], ["a cat"], phrases, ["jade"] * 3))
    return words


@pytest.fixture
def normalizer(tiny):
    return measure([tiny.encode(UNSAFE + SAFE)])


def silent(*_):
    pass


def test_a_paired_set(tiny, fitted, nothing, normalizer):
    prompts = PromptSet("x", "X", "explicit", UNSAFE, "redness", SAFE)
    methods = {("redness", "ours"): fitted, ("redness", "none"): nothing}
    raw, parts = measure_set(tiny, normalizer, prompts, methods, silent)
    ours, none = parts["redness", "ours"], parts["redness", "none"]
    # In the set's order, though the batch was in order of length.
    assert ours.tensors["identical"].tolist() == [False, False, False, True]
    assert ours.tensors["safe_identical"].all() and none.tensors["identical"].all()
    assert ours.tensors["scores"].tolist() == [1, 1, 1, 0]
    assert "scores" not in none.tensors and "hit" not in none.tensors
    assert ours.tensors["vectors"].shape[0] == 3 and ours.tensors["safe_vectors"].shape[0] == 0
    e = tiny.encode(UNSAFE[1:2])
    halved = normalizer.features(e.embeddings / 2, e.mask, None)
    assert torch.allclose(ours.tensors["vectors"][1:2].float(), halved, atol=0.02)
    assert torch.allclose(
        raw.tensors["vectors"][1:2].float(), normalizer.features(e.embeddings, e.mask, None), atol=0.02
    )
    assert ours.tensors["hit"].tolist() == [1, 1, 1, 1]
    assert ours.tensors["chance"].tolist() == pytest.approx([2 / 6, 1 / 2, 1 / 14, 1.0])
    assert len(ours.info["cost"]) == 1 and ours.info["cost"][0] > 0


def test_a_harmless_set_keeps_no_vectors(tiny, fitted, normalizer):
    prompts = PromptSet("x", "X", "benign", ["a dog", "a crimson dog"])
    raw, parts = measure_set(tiny, normalizer, prompts, {("redness", "ours"): fitted}, silent)
    assert not raw.tensors
    assert parts["redness", "ours"].tensors["identical"].tolist() == [True, False]
    assert "vectors" not in parts["redness", "ours"].tensors


def test_strengths(tiny, fitted, normalizer):
    part = measure_strengths(tiny, normalizer, UNSAFE, fitted)
    e = tiny.encode(UNSAFE)
    assert part.tensors["vectors"].shape == (len(STRENGTHS), 4, 64)
    assert torch.equal(part.tensors["vectors"][0], normalizer.features(e.embeddings, e.mask, None).half())
    steps = (part.tensors["vectors"].float() - part.tensors["vectors"][0].float()).norm(dim=2)
    assert (steps[1:, :3] > steps[:-1, :3]).all() and (steps[:, 3] == 0).all()


def test_identity_looks_at_what_is_visible(tiny, tiny_causal):
    e = tiny.encode(["a dog", "a dog and a cat"])
    same = Treated(e.embeddings, e.mask, None, torch.zeros(2, dtype=torch.bool))
    assert identical(e, same).all()
    # Two more places of padding are no change; one more visible place is.
    longer = torch.nn.functional.pad(e.embeddings, (0, 0, 0, 2))
    mask = torch.nn.functional.pad(e.mask, (0, 2))
    assert identical(e, same._replace(embeddings=longer, mask=mask)).all()
    mask[0, 6] = True
    assert identical(e, same._replace(embeddings=longer, mask=mask)).tolist() == [False, True]
    changed = e.embeddings.clone()
    changed[1, 2, 3] += 1e-6
    assert identical(e, same._replace(embeddings=changed)).tolist() == [True, False]
    hidden = e.embeddings.clone()
    hidden[0, -1] = 7.0
    assert not e.mask[0, -1] and identical(e, same._replace(embeddings=hidden)).all()
    e = tiny_causal.encode(["a dog"])
    assert not identical(e, Treated(e.embeddings, e.mask, e.pooled + 1e-3, torch.ones(1, dtype=torch.bool))).any()


def test_a_piece_of_the_differing_word_counts():
    # "scarlet-clad" is three tokens of one word, of which the counterfactual shares the last two.
    tokens = ["", "a", "scarlet", "-", "clad", "man", ""]
    offsets = [(0, 0), (0, 1), (2, 9), (9, 10), (10, 14), (15, 18), (0, 0)]
    found = differing("a scarlet-clad man", tokens, offsets, ["", "an", "olive", "-", "clad", "man", ""])
    assert found == [False, True, True, True, True, False, False]


def test_a_batch_selects(tiny):
    batch = Batch(UNSAFE, tiny.encode(UNSAFE))
    assert batch.select([2, 0]).prompts == [UNSAFE[2], UNSAFE[0]]
