"""Thresholds on harmless prompts: how many they touch, and how they are shared out."""

import pytest
import torch

from sanitizer.prompts.concepts import load_concepts
from sanitizer.training.calibration import allowances, joint_thresholds, tail_thresholds
from sanitizer.training.config import TrainingConfig


def scores(count: int) -> torch.Tensor:
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(0))


COUNTED = torch.tensor([True, True, False])


@pytest.mark.parametrize("share", [0.005, 0.02, 0.1])
def test_no_more_than_the_share_is_touched_and_nearly_as_much(share):
    z = scores(4000)
    found = joint_thresholds(z, COUNTED, torch.ones(3), TrainingConfig(false_positives=share))
    touched = float((z >= found)[:, COUNTED].any(1).float().mean())
    assert 0.8 * share <= touched <= share + 1e-6


def test_a_wider_concept_may_touch_more():
    z = scores(20_000)
    found = joint_thresholds(z, COUNTED, torch.tensor([3.0, 1.0, 1.0]), TrainingConfig(false_positives=0.04))
    touched = (z >= found).float().mean(0)
    assert touched[0] / touched[1] == pytest.approx(3.0, rel=0.15)


def test_of_few_prompts_the_tail_is_followed_beyond_the_highest_score():
    z = scores(300)
    config = TrainingConfig()
    share = 0.5 * config.few / 300
    found = joint_thresholds(z, COUNTED, torch.ones(3), TrainingConfig(false_positives=share))
    assert torch.equal(found, tail_thresholds(z, torch.full((3,), share / 2), config.tail))
    # What the fit says of prompts that nobody has seen: no more than twice the share.
    assert float((scores(100_000) >= found)[:, COUNTED].any(1).float().mean()) < 2 * share


def test_allowances_follow_the_training_phrases():
    concepts = load_concepts(["nudity", "self_harm"])
    parts = dict(zip([c.name for c in concepts], allowances(concepts).tolist(), strict=True))
    phrases = {c.name: sum(not p.held_out for p in c.pairs) for c in concepts}
    assert parts["nudity"] / parts["self_harm"] == pytest.approx(phrases["nudity"] / phrases["self_harm"])
    assert parts.get("youth", 1.0) == 1.0
