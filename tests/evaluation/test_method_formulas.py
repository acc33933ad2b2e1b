"""Each method does what its formula says."""

import pytest
import torch

from evaluation.methods.common import EmptyPrompt, mean_embedding, text_places, threshold_at
from evaluation.methods.leace import weighted_eraser
from evaluation.methods.linear_edit import derive, edit
from evaluation.methods.safree import Safree, outside, span, without_each
from evaluation.metrics import auroc
from evaluation.probes import Probe
from evaluation.types import Batch, Development

RED = ["crimson", "scarlet", "ruby", "vermilion", "cherry", "carmine", "maroon", "rusty"]
GREEN = ["olive", "jade", "green"]
PLAIN = ["wooden", "heavy", "little", "quiet", "narrow", "broken", "distant", "hollow"]
FRAMES = ["a {} dress on a chair", "the {} door of the old house", "light on {} water", "a {} boat", "two {} birds fly"]


def filled(words, count):
    return [FRAMES[i % 5].format(words[(i // 5) % len(words)]) for i in range(count)]


def development(encoder):
    return Development(
        encoder, "nudity", filled(RED, 40), filled(GREEN, 40), filled(PLAIN[:4], 20), filled(PLAIN[4:], 20),
        [f"{word} dress" for word in RED], [f"{GREEN[i % 3]} dress" for i in range(len(RED))],
    )  # fmt: skip


def batch(encoder, prompts):
    return Batch(list(prompts), encoder.encode(list(prompts)))


def probe_auroc(x, y):
    logits = Probe.linear(x, y)(x)
    return auroc(logits[y == 1], logits[y == 0]).value


# ------------------------------------------------------------------ LEACE


def labelled(count=600, width=12):
    generator = torch.Generator().manual_seed(0)
    z = (torch.rand(count, generator=generator) < 0.4).float()
    mixing = torch.randn(width, width, generator=generator)
    x = torch.randn(count, width, generator=generator) @ mixing + 3 * z[:, None] * torch.randn(
        width, generator=generator
    )
    return x, z


def test_leace_leaves_nothing_to_a_linear_probe():
    x, z = labelled()
    eraser = weighted_eraser(x, z, torch.ones(len(x)))
    erased = eraser(x)
    assert probe_auroc(x, z) > 0.95, "positive control: the probe learns the concept from raw embeddings"
    assert abs(probe_auroc(erased, z) - 0.5) < 0.05
    cross = (erased - erased.mean(0)).T @ (z - z.mean())
    assert cross.abs().max() < 1e-2 * ((x - x.mean(0)).T @ (z - z.mean())).abs().max()


def test_an_example_of_weight_two_counts_as_two():
    x, z = labelled()
    weight = 1.0 + (torch.arange(len(x)) % 2)
    twice = torch.cat([x, x[1::2]]), torch.cat([z, z[1::2]])
    one, other = weighted_eraser(x, z, weight), weighted_eraser(*twice, torch.ones(len(twice[0])))
    plain = weighted_eraser(x, z, torch.ones(len(x)))
    # But for the number of examples, which the shrinkage of the covariance goes by.
    assert (one(x) - other(x)).norm() < 0.3 * (plain(x) - other(x)).norm()


def test_unweighted_it_is_the_authors_own_fit():
    from concept_erasure import LeaceEraser

    x, z = labelled()
    torch.testing.assert_close(
        weighted_eraser(x, z, torch.ones(len(x)))(x), LeaceEraser.fit(x, z)(x), atol=1e-3, rtol=0
    )


def test_leace_is_idempotent_and_the_smallest_change():
    x, z = labelled()
    eraser = weighted_eraser(x, z, torch.ones(len(x)))
    erased = eraser(x)
    torch.testing.assert_close(eraser(erased), erased, atol=1e-3, rtol=0)
    # Projecting out the difference of the class means erases as well, and changes more.
    gap = torch.nn.functional.normalize(x[z > 0].mean(0) - x[z == 0].mean(0), dim=0)
    projected = (x - x.mean(0)) @ gap
    assert (erased - x).square().sum() <= projected.square().sum() * 1.001


def test_leace_leaves_dead_channels_and_unlabelled_data_alone():
    x, z = labelled()
    x = torch.cat([x, torch.full((len(x), 1), 7.0)], dim=1)
    assert (weighted_eraser(x, z, torch.ones(len(x)))(x) - x)[:, -1].abs().max() < 1e-4
    assert torch.equal(weighted_eraser(x, torch.zeros(len(x)), torch.ones(len(x)))(x), x)


def test_leace_erases_mean_embeddings_of_the_split(tiny_causal):
    from evaluation.methods.leace import Leace

    d, method = development(tiny_causal), Leace()
    method.fit(d)
    texts = [*d.unsafe, *d.safe, *d.benign]
    y = torch.zeros(len(texts))
    y[: len(d.unsafe)] = 1.0
    b = batch(tiny_causal, texts)
    out = method.apply(b)
    weight = d.normalizer.weights(b.encoding.embeddings, b.encoding.mask)
    gap = []
    for embeddings in (b.encoding.embeddings, out.embeddings):
        x = (embeddings * weight[..., None]).sum(1) / weight.sum(1, keepdim=True)
        gap.append((x - x.mean(0)).T @ (y - y.mean()))
    assert gap[1].norm() < 0.12 * gap[0].norm(), "all but the rounding of half precision and of the kept padding"
    assert torch.equal(out.embeddings[:, 0], b.encoding.embeddings[:, 0]), "the start token is the same for all prompts"


# ------------------------------------------------------------------ UCE and RECE


def test_the_edit_minimises_its_objective():
    generator = torch.Generator().manual_seed(0)
    c, a, b = (torch.randn(50, 6, generator=generator).double() for _ in range(3))
    old = torch.eye(6).double()
    weights = edit(old, c, a, b, preserve=0.3, ridge=0.1)

    def loss(w):
        return ((c @ w - a).square().sum() + 0.3 * (b @ w - b @ old).square().sum()) / 50 + 0.1 * (
            w - old
        ).square().sum()

    for _ in range(20):
        nudge = 1e-3 * torch.randn(6, 6, generator=generator).double()
        assert loss(weights + nudge) > loss(weights)


def test_a_derived_concept_brings_the_concept_back():
    generator = torch.Generator().manual_seed(0)
    c, a, b = (torch.randn(3, 8, generator=generator).double() for _ in range(3))
    edited = edit(torch.eye(8).double(), c, a, b, preserve=1.0, ridge=0.1)
    found = derive(edited, c, 1e-6)
    assert (found @ edited - c).norm() < 0.05 * (c @ edited - c).norm()


def test_the_edit_brings_unsafe_prompts_to_their_counterfactuals(tiny):
    from evaluation.methods.linear_edit import LinearEdit

    d, method = development(tiny), LinearEdit()
    method.fit(d)
    unsafe, safe = batch(tiny, d.unsafe), batch(tiny, d.safe)
    out = method.apply(unsafe)
    wanted, before = mean_embedding(d.normalizer, safe.encoding), mean_embedding(d.normalizer, unsafe.encoding)
    after = d.normalizer.mean_embedding(out.embeddings, out.mask)
    assert torch.cosine_similarity(after, wanted).mean() > torch.cosine_similarity(before, wanted).mean() + 0.05


# ------------------------------------------------------------------ SAFREE


def test_projections_are_idempotent():
    x0 = torch.randn(5, 16, generator=torch.Generator().manual_seed(0))
    basis = span(torch.cat([x0, x0[:1]]))
    assert basis.shape == (5, 16)
    torch.testing.assert_close(x0 @ basis.T @ basis, x0, atol=1e-4, rtol=1e-4)
    x = torch.randn(3, 16)
    torch.testing.assert_close(outside(outside(x, basis), basis), outside(x, basis), atol=1e-5, rtol=1e-4)
    assert (outside(x, basis) @ x0.T).abs().max() < 1e-3


def test_the_prompt_without_each_token():
    x0 = torch.arange(24.0).view(1, 4, 6)
    text = torch.tensor([[False, True, True, True]])
    left = without_each(x0, text)
    torch.testing.assert_close(left[0, 1], (x0[0, 2] + x0[0, 3]) / 2)
    torch.testing.assert_close(left[0, 3], (x0[0, 1] + x0[0, 2]) / 2)


@pytest.mark.parametrize("exact", [False, True])
def test_safree_trigger_is_the_token_in_the_subspace(tiny, exact):
    """The token whose removal takes the prompt furthest from the concept, and that embedding alone is projected."""
    method = Safree(exact)
    method.fit(development(tiny))
    # The split's phrases span a quarter of the tiny encoder's channels, noise included; the concept is one of them.
    method.basis = span(tiny.vector("crimson")[None])
    b = batch(tiny, ["quiet crimson door near old boats"])
    scores = method.token_scores(b)[0]
    assert b.encoding.tokens[0][int(scores.argmax())] == "crimson"
    method.alpha = float(scores.max()) - 1e-4
    out = method.apply(b)
    changed = (out.embeddings != b.encoding.embeddings).any(-1)[0]
    assert [t for t, c in zip(b.encoding.tokens[0], changed.tolist(), strict=True) if c] == ["crimson"]
    torch.testing.assert_close(
        outside(out.embeddings[0, changed], method.basis), out.embeddings[0, changed], atol=1e-3, rtol=1e-3
    )
    method.alpha = float(scores.max()) + 1e-4
    assert not method.apply(b).touched.any()


# ------------------------------------------------------------------ Semantic Surgery and the concept vector


def test_semantic_surgery_subtracts_what_is_present(tiny_causal):
    from evaluation.methods.semantic_surgery import SemanticSurgery

    method = SemanticSurgery()
    method.fit(development(tiny_causal))
    b = batch(tiny_causal, ["a crimson dress on a chair"])
    presence = method.presence(b)[0]
    method.threshold = float(presence.max()) - 1e-3
    found = tuple(sorted(i for i in range(len(presence)) if presence[i] > method.threshold))
    amount = torch.sigmoid((presence.max() - method.threshold) / method.gamma)
    concept = tiny_causal.encode([", ".join(method.phrases[i] for i in found)])
    neutral = tiny_causal.encode([""])
    wanted = b.encoding.embeddings - amount * (concept.embeddings - neutral.embeddings)
    out = method.apply(b)
    torch.testing.assert_close(out.embeddings[0, 1:], wanted[0, 1:], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(out.pooled, b.encoding.pooled - amount * (concept.pooled - neutral.pooled))
    assert torch.equal(out.embeddings[0, 0], b.encoding.embeddings[0, 0])


def test_the_concept_vector_moves_unsafe_means_onto_safe_ones(tiny):
    from evaluation.methods.concept_vector import ConceptVector

    d, method = development(tiny), ConceptVector()
    method.fit(d)
    unsafe, safe = batch(tiny, d.unsafe), batch(tiny, d.safe)

    def mean(embeddings, e):
        text = text_places(e)[..., None]
        return ((embeddings * text).sum(1) / text.sum(1)).mean(0)

    wanted, before = mean(safe.encoding.embeddings, safe.encoding), mean(unsafe.encoding.embeddings, unsafe.encoding)
    for strength, left in ((0.5, 0.5), (1.0, 0.0), (1.5, 0.5)):
        after = mean(method.apply(unsafe, strength).embeddings, unsafe.encoding)
        assert abs(float((after - wanted).norm() / (before - wanted).norm()) - left) < 0.02


# ------------------------------------------------------------------ word list, blocking, thresholds


def test_the_word_list_knows_whole_words_only(tiny):
    from evaluation.methods.baselines import WordList

    method = WordList()
    method.fit(development(tiny))
    b = batch(tiny, ["A Crimson  Dress", "a crimsondress", "a dress", "ruby, a ruby dress"])
    assert (method.score(b) > 0).tolist() == [True, False, False, True]
    rows = method.token_scores(b)
    assert [t for t, r in zip(b.encoding.tokens[0], rows[0].tolist(), strict=True) if r] == ["Crimson", "Dress"]


def test_blocked_prompts_become_the_empty_one(tiny, tiny_causal):
    for encoder in (tiny, tiny_causal):
        b = batch(encoder, ["a crimson dress", "a longer prompt than the first one", "an olive tree"])
        out = EmptyPrompt(encoder).replace(b, torch.tensor([True, False, False]), 1.0)
        empty = encoder.encode([""])
        assert int(out.mask[0].sum()) == int(empty.mask.sum()) and out.touched.tolist() == [True, False, False]
        torch.testing.assert_close(out.embeddings[0][out.mask[0]], empty.embeddings[0][empty.mask[0]])
        assert torch.equal(out.embeddings[1:], b.encoding.embeddings[1:])


def test_threshold_lets_the_allowed_share_through():
    scores = torch.arange(1000.0)
    assert int((scores > threshold_at(scores)).sum()) == 5
    assert int((torch.ones(10) > threshold_at(torch.ones(10))).sum()) == 0
