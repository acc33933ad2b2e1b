"""The erase net: what it writes inside and outside the concepts' own directions."""

import pytest
import torch
from torch import nn

from sanitizer.model.config import ConceptSpec, SanitizerConfig
from sanitizer.model.networks import EraseNet
from sanitizer.training.eraser import span

GAINS = {"concept_gain": 1.3, "residual_gain": 0.4}


def erase_net(concepts: int, pooled: int) -> EraseNet:
    torch.manual_seed(0)
    ranks = {"pooled_rank": 2, "pooled_concept_rank": concepts} if pooled else {}
    config = SanitizerConfig(
        (ConceptSpec("one"),), 6, pooled, erase_width=8, rank=4, concept_rank=concepts, **GAINS, **ranks
    )
    net = EraseNet(config, nn)
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
    net = erase_net(2, pooled)
    inputs = torch.randn(3, 7, 6), torch.ones(3, 7), torch.randn(3, pooled) if pooled else None
    (change, pooled_change), (predicted, pooled_predicted) = net(*inputs), net.predict(*inputs)
    _shares(change, predicted, net.concept_basis)
    if pooled:
        _shares(pooled_change, pooled_predicted, net.pooled_concept_basis)


def test_without_directions_it_writes_what_it_predicts():
    net = erase_net(0, 0)
    inputs = torch.randn(3, 7, 6), torch.ones(3, 7), None
    assert torch.equal(net(*inputs)[0], net.predict(*inputs)[0])
    assert "concept_basis" not in net.state_dict()


def test_span_is_orthonormal_holds_every_direction_and_is_filled_with_zeros():
    directions = [torch.tensor([3.0, 0, 0, 0]), torch.tensor([1.0, 1, 0, 0])]
    basis = span(directions, 3)
    assert basis.shape == (3, 4)
    assert torch.allclose(basis @ basis.T, torch.diag(torch.tensor([1.0, 1, 0])), atol=1e-6)
    for direction in directions:
        assert torch.allclose((direction @ basis.T) @ basis, direction, atol=1e-6)
