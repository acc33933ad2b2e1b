"""Thresholds on harmless prompts: how many they touch, and how they are shared out."""

import pytest
import torch

from sanitizer.prompts.concepts import load_concepts
from sanitizer.training.calibration import (
    Harmless,
    Votes,
    allowances,
    joint_thresholds,
    operating_points,
    tail_thresholds,
)
from sanitizer.training.config import TrainingConfig


def scores(count: int) -> torch.Tensor:
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(0))


COUNTED = torch.tensor([True, True, False])


@pytest.mark.parametrize("share", [0.005, 0.02, 0.1])
def test_no_more_than_the_share_is_touched_and_nearly_as_much(share):
    z = scores(4000)
    found = joint_thresholds(z, COUNTED, torch.ones(3), TrainingConfig(), [(z, share)])
    touched = float((z >= found)[:, COUNTED].any(1).float().mean())
    assert 0.8 * share <= touched <= share + 1e-6


def test_a_wider_concept_may_touch_more():
    z = scores(20_000)
    found = joint_thresholds(z, COUNTED, torch.tensor([3.0, 1.0, 1.0]), TrainingConfig(), [(z, 0.04)])
    touched = (z >= found).float().mean(0)
    assert touched[0] / touched[1] == pytest.approx(3.0, rel=0.15)


def test_of_few_prompts_the_tail_is_followed_beyond_the_highest_score():
    z = scores(300)
    config = TrainingConfig()
    share = 0.5 * config.few / 300
    found = joint_thresholds(z, COUNTED, torch.ones(3), config, [(z, share)])
    assert torch.equal(found, tail_thresholds(z, torch.full((3,), share / 2), config.tail))
    # What the fit says of prompts that nobody has seen: no more than twice the share.
    assert float((scores(100_000) >= found)[:, COUNTED].any(1).float().mean()) < 2 * share


def test_allowances_follow_the_training_phrases():
    concepts = load_concepts(["nudity", "self_harm"])
    parts = dict(zip([c.name for c in concepts], allowances(concepts).tolist(), strict=True))
    phrases = {c.name: sum(not p.held_out for p in c.pairs) for c in concepts}
    assert parts["nudity"] / parts["self_harm"] == pytest.approx(phrases["nudity"] / phrases["self_harm"])
    assert parts.get("youth", 1.0) == 1.0


def votes(count: int, mean: float = 0.0, seed: int = 0, spans: int = 1) -> Votes:
    scores = mean + torch.randn(count, 2, 2, generator=torch.Generator().manual_seed(seed))
    return Votes(scores, torch.full((count,), spans))


def touched(own: Votes, start: torch.Tensor, slope: torch.Tensor) -> float:
    limit = start + slope * own.spans.log()[:, None, None]
    return float((own.scores >= limit).flatten(1).any(1).double().mean())


CONCEPTS = [c for c in load_concepts(["nudity", "self_harm"]) if not c.context]
EMPTY, NONE = votes(1, -9.0), votes(0)


def test_all_votes_share_one_budget():
    config = TrainingConfig()
    known = Harmless(votes(4000), NONE, EMPTY, NONE, votes(3000, 1.0, 1, spans=12), 0)
    points = operating_points(known, CONCEPTS, config)
    assert 0.7 * config.false_positives <= touched(known.everyday, *points) <= config.false_positives + 1e-6
    assert 0.7 * config.long_false_positives <= touched(known.longest, *points) <= config.long_false_positives + 1e-6


def test_borderline_longer_and_empty_prompts_raise_the_thresholds():
    config = TrainingConfig()
    plain = Harmless(votes(4000), NONE, EMPTY, NONE, NONE, 1000)
    start, slope = operating_points(plain, CONCEPTS, config)
    assert not slope.any()
    for name, share in (("borderline", config.borderline), ("longer", config.long_false_positives)):
        hard = plain._replace(**{name: votes(1000, 2.5, 2)})
        higher, slope = operating_points(hard, CONCEPTS, config)
        assert (higher > start).all()
        assert touched(getattr(hard, name), higher, slope) <= share + 1 / hard.phrases
    lifted, _ = operating_points(plain._replace(empty=votes(1, 12.0)), CONCEPTS, config)
    assert (lifted > 9.0).all()


def test_one_of_a_few_hard_negatives_does_not_decide():
    """A quarter of the prompts that are made of four phrases scores as high as unsafe ones."""
    config = TrainingConfig()
    plain = Harmless(votes(4000), NONE, EMPTY, NONE, NONE, 0)
    near = Votes(torch.cat([votes(300, -1.0).scores, votes(100, 9.0).scores]), torch.ones(400, dtype=torch.long))
    few, many = (
        operating_points(plain._replace(borderline=near, phrases=count), CONCEPTS, config)[0] for count in (4, 400)
    )
    assert torch.equal(few, operating_points(plain, CONCEPTS, config)[0])
    assert (many > few + 2).all()


def test_where_long_texts_score_less_their_thresholds_are_lower():
    known = Harmless(votes(4000), NONE, EMPTY, NONE, votes(3000, -2.0, 1, spans=8), 0)
    _, slope = operating_points(known, CONCEPTS, TrainingConfig())
    assert (slope < 0).all()
