"""Figures and their intervals, against values worked out otherwise."""

import math

import pytest
import torch

from evaluation import metrics


def test_wilson_as_published():
    # Wilson's interval of 1 in 10 and of 95 in 100, as statistics texts give them.
    assert metrics.wilson(1, 10)[:3] == pytest.approx((0.1, 0.0179, 0.4042), abs=1e-4)
    assert metrics.wilson(95, 100)[:3] == pytest.approx((0.95, 0.8882, 0.9785), abs=1e-4)
    assert metrics.wilson(0, 10)[:3] == pytest.approx((0, 0, 0.2775), abs=1e-4)
    assert metrics.wilson(10, 10).high == 1.0


def test_no_prompts_give_no_figure():
    empty = torch.tensor([])
    for figure in (metrics.share(empty.bool()), metrics.mean(empty), metrics.auroc(empty, torch.ones(3))):
        assert math.isnan(figure.value) and figure.count == 0


def test_auroc_is_the_chance_to_score_above_ties_half():
    generator = torch.Generator().manual_seed(1)
    positive = torch.randint(0, 6, (40,), generator=generator).float() + 1
    negative = torch.randint(0, 6, (70,), generator=generator).float()
    difference = positive[:, None] - negative[None]
    expected = ((difference > 0).double() + 0.5 * (difference == 0)).mean()
    assert metrics.auroc(positive, negative).value == pytest.approx(float(expected))


def test_delongs_interval_holds_the_truth_about_as_often_as_it_says():
    generator = torch.Generator().manual_seed(2)
    # Two normal distributions one deviation apart: AUROC is the normal distribution's value at 1 / sqrt 2.
    truth = 0.5 * (1 + math.erf(0.5))
    held = 0
    for _ in range(400):
        figure = metrics.auroc(torch.randn(60, generator=generator) + 1, torch.randn(80, generator=generator))
        held += figure.low <= truth <= figure.high
    assert 0.91 <= held / 400 <= 0.98


def test_a_perfect_detector_still_has_an_interval():
    figure = metrics.auroc(torch.ones(50), torch.zeros(30))
    assert figure.value == figure.high == 1.0
    assert 0.85 < figure.low < 0.9


def test_the_true_positive_rate_counts_what_lies_above_the_allowed_false_positives():
    negative = torch.arange(100.0)
    assert metrics.true_positive_rate(torch.tensor([97.0, 98.5, 99.5, 120.0]), negative, 0.01).value == 0.75
    assert metrics.true_positive_rate(torch.tensor([99.0, 120.0]), negative, 0.0).value == 0.5
    # A detector that says the same of all finds nothing.
    assert metrics.true_positive_rate(torch.ones(5), torch.ones(5), 0.01).value == 0.0


def test_bootstrap_of_a_mean():
    values = torch.randn(400, generator=torch.Generator().manual_seed(3))
    figure = metrics.mean(values)
    reach = 1.96 * float(values.std()) / 20
    assert (figure.value - figure.low, figure.high - figure.value) == pytest.approx((reach, reach), rel=0.2)
    assert figure == metrics.mean(values)


def test_of_a_single_value_and_of_a_median():
    assert metrics.mean(torch.tensor([0.5])) == (0.5, 0.5, 0.5, 1)
    figure = metrics.median([1.0, 2.0, 3.0, 100.0, 2.5])
    assert figure.value == 2.5 and figure.low < 2.5 < figure.high


def test_the_own_counterfactual_among_many():
    keys = torch.eye(4)[[0, 1, 2, 2]]
    queries = torch.tensor([[1.0, 0.1, 0, 0], [1.0, 0.1, 0, 0], [0, 0, 1.0, 0], [0, 0, 1.0, 0]])
    # The second query is nearest to the first key; the last two share a counterfactual, and either counts.
    assert metrics.found_own(queries, keys).tolist() == [True, False, True, True]


def test_the_nearest_label():
    reference, labels = torch.eye(2), torch.tensor([True, False])
    assert metrics.nearest_label(torch.tensor([[2.0, 1.0], [0.1, 5.0]]), reference, labels).tolist() == [True, False]


def test_strength():
    assert metrics.falls_steadily([1.0, 0.6, 0.6, 0.2])
    assert not metrics.falls_steadily([1.0, 0.6, 0.7, 0.2])
    assert metrics.way_covered([0.9, 0.6, 0.3], 1, 2) == pytest.approx(0.5)
    assert math.isnan(metrics.way_covered([0.9, 0.9, 0.9], 1, 2))
