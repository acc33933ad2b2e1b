"""The erase nets."""

import pytest
import torch
from torch import nn

from sanitizer.model.config import ConceptSpec, SanitizerConfig
from sanitizer.model.networks import GatedEraser, SubspaceEraser

GAINS = {"concept_gain": 1.3, "residual_gain": 0.4}


def subspace_eraser(concepts: int, pooled: int, **gains) -> SubspaceEraser:
    torch.manual_seed(0)
    ranks = {"pooled_rank": 2, "pooled_concept_rank": concepts} if pooled else {}
    config = SanitizerConfig(
        (ConceptSpec("one"),), 6, pooled, erase_width=8, rank=4, concept_rank=concepts, **gains, **ranks
    )
    net = SubspaceEraser(config, nn)
    net.basis.copy_(torch.linalg.qr(torch.randn(6, 4)).Q.T)
    if concepts:
        net.concept_basis.copy_(torch.linalg.qr(torch.randn(6, concepts)).Q.T)
    if pooled:
        net.pooled_basis.copy_(torch.linalg.qr(torch.randn(pooled, 2)).Q.T)
    if pooled and concepts:
        net.pooled_concept_basis.copy_(torch.linalg.qr(torch.randn(pooled, concepts)).Q.T)
    return net.requires_grad_(False)


def _shares(change, predicted, basis):
    inside = (change @ basis.T) @ basis, (predicted @ basis.T) @ basis
    assert torch.allclose(inside[0], GAINS["concept_gain"] * inside[1], atol=1e-6)
    assert torch.allclose(change - inside[0], GAINS["residual_gain"] * (predicted - inside[1]), atol=1e-6)


@pytest.mark.parametrize("pooled", [0, 5])
def test_the_concepts_directions_are_written_in_full_and_the_others_in_part(pooled):
    net, plain = subspace_eraser(2, pooled, **GAINS), subspace_eraser(2, pooled, concept_gain=1.0, residual_gain=1.0)
    inputs = torch.randn(3, 7, 6), torch.ones(3, 7), torch.randn(3, pooled) if pooled else None, torch.zeros(3, 7, 1)
    (change, pooled_change), (predicted, pooled_predicted) = net(*inputs), plain(*inputs)
    _shares(change, predicted, net.concept_basis)
    if pooled:
        _shares(pooled_change, pooled_predicted, net.pooled_concept_basis)
    assert "concept_basis" not in subspace_eraser(0, 0).state_dict()


@pytest.mark.parametrize("pooled", [0, 5])
def test_a_gated_eraser_begins_near_nothing_and_hears_the_scores(pooled):
    torch.manual_seed(0)
    net = GatedEraser(SanitizerConfig((ConceptSpec("one"),), 6, pooled, erase_width=8, gated=True), nn)
    x, weight, vector = torch.randn(3, 7, 6), torch.ones(3, 7), torch.randn(3, pooled) if pooled else None
    scores = torch.rand(3, 7, 1)
    assert not torch.equal(net(x, weight, vector, scores)[0], net(x, weight, vector, 1 - scores)[0])
    net.start()
    change, pooled_change = net(x, weight, vector, scores)
    assert torch.allclose(x + change, 0.9526 * x, atol=1e-3)
    assert (pooled_change is None) == (not pooled)
    if pooled:
        assert torch.allclose(vector + pooled_change, 0.9526 * vector, atol=1e-3)
