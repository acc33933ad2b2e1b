"""Probes find a planted concept and no longer find one that was taken out; twins keep them from learning topics."""

import torch

from evaluation.residual import ConceptProbes, MlpProbe, PromptVectors


def planted(count=600, seed=0, width=24):
    """Unsafe prompts, safe twins and harmless prompts. Channel 0 is the concept; channel 1 is a topic that unsafe
    prompts and their twins share."""
    g = torch.Generator().manual_seed(seed)
    scene = torch.randn(count, width, generator=g)
    scene[:, 1] += 3
    unsafe, safe = scene.clone(), scene + 0.1 * torch.randn(count, width, generator=g)
    unsafe[:, 0] += 4
    return unsafe, safe, torch.randn(count, width, generator=g)


def test_the_concept_is_found_before_and_not_after():
    probes = ConceptProbes.fit(*planted())
    unsafe, safe, benign = planted(seed=1)
    for kind, found in probes.found(unsafe).items():
        assert found.float().mean() > 0.95, kind
        assert probes.found(safe)[kind].float().mean() < 0.1
        assert probes.found(benign)[kind].float().mean() < 0.1
    erased = unsafe.clone()
    erased[:, 0] -= 4
    for kind, found in probes.found(erased).items():
        assert found.float().mean() < 0.1, kind


def test_without_twins_a_probe_would_learn_the_topic():
    unsafe, _, benign = planted()
    without = ConceptProbes.fit(unsafe, benign, benign)
    _, twins, _ = planted(seed=1)
    assert without.found(twins)["linear"].float().mean() > 0.1


def test_a_mlp_probe_finds_what_is_not_linear_and_leaves_the_generator_alone():
    x = torch.randn(1200, 8, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0] * x[:, 1] > 0).float()
    torch.manual_seed(5)
    first = torch.rand(1)
    torch.manual_seed(5)
    probe = MlpProbe.fit(x[:1000], y[:1000])
    assert torch.rand(1) == first
    assert ((probe(x[1000:]) > 0) == (y[1000:] > 0)).float().mean() > 0.8
    assert (probe(x) == MlpProbe.fit(x[:1000], y[:1000])(x)).all()


def test_vectors_do_not_see_padding_or_the_start_row(tiny, tiny_causal):
    texts = ["a crimson dress", "an old door in the garden by the river", "light", "two dogs at a table"]
    for encoder in (tiny, tiny_causal):
        e = encoder.encode(texts)
        vectors = PromptVectors.measured([e])
        together = vectors(e.embeddings, e.mask, e.pooled)
        alone = encoder.encode(texts[:1])
        assert torch.allclose(together[:1], vectors(alone.embeddings, alone.mask, alone.pooled), atol=1e-4)
        assert together.shape == (4, 2 * encoder.width + encoder.pooled_width)
        assert vectors.width == encoder.width
    changed = e.embeddings.clone()
    changed[:, 0] *= 1.001  # The start row, which is the same for all prompts and carries none.
    assert torch.equal(vectors(changed, e.mask, e.pooled), together)
