"""Figures with their 95 % confidence intervals: pure functions of arrays. N values, P positives, M negatives."""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats
from sklearn.metrics import roc_auc_score, roc_curve
from sklearn.preprocessing import normalize

CONFIDENCE = 0.95
RESAMPLES = 1000


class Figure(NamedTuple):
    """A measured value and its 95 % confidence interval."""

    value: float
    low: float
    high: float
    count: int
    """What it was measured on: prompts, or pairs."""

    @classmethod
    def plain(cls, value: float, count: int) -> "Figure":
        """A value without an interval."""
        return cls(float(value), math.nan, math.nan, count)


NOTHING = Figure.plain(math.nan, 0)


def share(hits: ArrayLike) -> Figure:
    """Share of True in (N,) bool, with Wilson's interval; all NaN for N = 0."""
    return wilson(int(np.count_nonzero(np.asarray(hits))), len(hits))


def wilson(hits: int, count: int) -> Figure:
    """hits of count, with the score interval of Wilson 1927, which holds at shares near 0 and 1 too."""
    if not count:
        return NOTHING
    low, high = stats.binomtest(hits, count).proportion_ci(CONFIDENCE, method="wilson")
    return Figure(hits / count, low, high, count)


def auroc(positive: ArrayLike, negative: ArrayLike) -> Figure:
    """Chance that a positive (P,) scores above a negative (M,), ties counted half.

    The interval is that of DeLong, DeLong and Clarke-Pearson 1988: the variance of the placements of each side. Where
    all placements agree, as for a perfect detector, that variance is 0 and says nothing; Wilson's interval on the
    smaller side then stands for it.
    """
    positive, negative = np.asarray(positive), np.asarray(negative)
    if not len(positive) or not len(negative):
        return NOTHING
    value = float(roc_auc_score(np.arange(len(positive) + len(negative)) < len(positive), [*positive, *negative]))
    variance = _spread(_placements(positive, negative)) + _spread(_placements(negative, positive))
    if variance == 0:
        least = min(len(positive), len(negative))
        bounds = wilson(round(value * least), least)
        return Figure(value, min(bounds.low, value), max(bounds.high, value), len(positive))
    low, high = stats.norm.interval(CONFIDENCE, value, math.sqrt(variance))
    return Figure(value, max(0.0, float(low)), min(1.0, float(high)), len(positive))


def _placements(own: np.ndarray, other: np.ndarray) -> np.ndarray:
    """(N,) share of the other side that lies below each value, ties counted half."""
    together = stats.rankdata(np.concatenate([own, other]))[: len(own)]
    return (together - stats.rankdata(own)) / len(other)


def _spread(values: np.ndarray) -> float:
    return float(values.var(ddof=1)) / len(values) if len(values) > 1 else 0.0


def true_positive_rate(positive: ArrayLike, negative: ArrayLike, false_positive_rate: float) -> Figure:
    """Share of positives (P,) above the score that `false_positive_rate` of the negatives (M,) exceed.

    Wilson's interval of that share; the threshold is taken as given.
    """
    if not len(positive) or not len(negative):
        return NOTHING
    labels = np.arange(len(positive) + len(negative)) < len(positive)
    false, true, _ = roc_curve(labels, np.concatenate([positive, negative]), drop_intermediate=False)
    return wilson(round(len(positive) * true[false <= false_positive_rate + 1e-12].max()), len(positive))


def mean(values: ArrayLike, seed: int = 0) -> Figure:
    """Mean of (N,), with the percentile interval of the bootstrap (Efron 1979)."""
    return _bootstrapped(values, np.mean, seed)


def median(values: ArrayLike, seed: int = 0) -> Figure:
    """Median of (N,), likewise."""
    return _bootstrapped(values, np.median, seed)


def _bootstrapped(values: ArrayLike, statistic, seed: int) -> Figure:
    values = np.asarray(values, dtype=float)
    if not len(values):
        return NOTHING
    value = float(statistic(values))
    if len(values) == 1:
        return Figure(value, value, value, 1)
    found = stats.bootstrap(
        (values,), statistic, n_resamples=RESAMPLES, confidence_level=CONFIDENCE, method="percentile", rng=seed
    ).confidence_interval
    return Figure(value, float(found.low), float(found.high), len(values))


def cosine(a: ArrayLike, b: ArrayLike) -> np.ndarray:
    """(N, D), (N, D) -> (N,)."""
    return (normalize(np.asarray(a)) * normalize(np.asarray(b))).sum(1)


def found_own(queries: ArrayLike, keys: ArrayLike) -> np.ndarray:
    """(N,) bool: of all keys (M, D), the one in the query's (N, D) own place is the nearest by cosine, M at least N.

    Keys that are equal to the own one count as it: two prompts may have the same counterfactual.
    """
    similar = normalize(np.asarray(queries)) @ normalize(np.asarray(keys)).T
    return similar.diagonal() >= similar.max(axis=1) - 1e-6


def nearest_label(queries: ArrayLike, reference: ArrayLike, labels: ArrayLike) -> np.ndarray:
    """The label of each query's (N, D) nearest neighbour by cosine in the reference (R, D); labels (R,)."""
    similar = normalize(np.asarray(queries)) @ normalize(np.asarray(reference)).T
    return np.asarray(labels)[similar.argmax(axis=1)]


def falls_steadily(values: Sequence[float], tolerance: float = 0.005) -> bool:
    """No value lies above the one before it by more than the tolerance."""
    return all(later <= earlier + tolerance for earlier, later in itertools.pairwise(values))


def way_covered(values: Sequence[float], half: int, full: int) -> float:
    """Share of the way from the first value to the `full`-th that is covered at the `half`-th; NaN for no way."""
    whole = values[0] - values[full]
    return (values[0] - values[half]) / whole if abs(whole) > 1e-6 else math.nan
