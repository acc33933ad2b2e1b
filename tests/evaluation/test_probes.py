"""Probes find a planted concept and no longer find one that was taken out; counterfactuals keep them from topics."""

import torch

from evaluation.probes import ConceptProbes, Probe


def planted(count=600, seed=0, width=24):
    """Unsafe prompts, safe counterfactuals and harmless prompts. Channel 0 is the concept; channel 1 is a topic that
    unsafe prompts and their counterfactuals share."""
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
        assert found.mean() > 0.95, kind
        assert probes.found(safe)[kind].mean() < 0.1
        assert probes.found(benign)[kind].mean() < 0.1
    erased = unsafe.clone()
    erased[:, 0] -= 4
    for kind, found in probes.found(erased).items():
        assert found.mean() < 0.1, kind


def test_without_counterfactuals_a_probe_would_learn_the_topic():
    unsafe, _, benign = planted()
    without = ConceptProbes.fit(unsafe, benign, benign)
    _, safe, _ = planted(seed=1)
    assert without.found(safe)["linear"].mean() > 0.1


def test_a_mlp_probe_finds_what_is_not_linear_and_leaves_the_generator_alone():
    x = torch.randn(1200, 8, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0] * x[:, 1] > 0).float()
    torch.manual_seed(5)
    first = torch.rand(1)
    torch.manual_seed(5)
    probe = Probe.mlp(x[:1000], y[:1000])
    assert torch.rand(1) == first
    assert ((probe(x[1000:]) > 0) == (y[1000:] > 0).numpy()).mean() > 0.8
    assert (probe(x) == Probe.mlp(x[:1000], y[:1000])(x)).all()


def test_the_linear_probe_is_the_core_s_own():
    """The same formula, by another optimiser: reports of training and of the harness speak of the same probe."""
    from sanitizer.training.probes import Probe as CoreProbe

    unsafe, safe, benign = planted(200)
    x, y = torch.cat([unsafe, safe, benign]), (torch.arange(600) < 200).float()
    ours, theirs = torch.tensor(Probe.linear(x, y)(x)), CoreProbe.fit(x, y)(x)
    assert torch.allclose(ours.float(), theirs, atol=0.02 * float(theirs.std()))


def test_far_from_the_edge_logits_stay_finite_and_in_order():
    x = torch.cat([torch.full((50, 2), -1.0), torch.full((50, 2), 1.0)])
    probe = Probe.mlp(
        x + 0.01 * torch.randn(100, 2, generator=torch.Generator().manual_seed(0)), torch.arange(100) >= 50
    )
    logits = probe(torch.tensor([[-900.0, -900.0], [-1.0, -1.0], [1.0, 1.0], [900.0, 900.0]]))
    assert abs(logits).max() < 40
    assert (logits[:-1] <= logits[1:]).all()
    assert len(probe(torch.zeros(0, 2))) == 0
