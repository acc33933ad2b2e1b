"""Figures with their 95 % confidence intervals: pure functions of tensors. N values, P positives, M negatives."""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from sanitizer.training.probes import area_under_curve

Z = 1.959963984540054
"""Quantile of the normal distribution for 95 % on both sides."""
RESAMPLES = 1000


class Figure(NamedTuple):
    """A measured value and its 95 % confidence interval."""

    value: float
    low: float
    high: float
    count: int
    """What it was measured on: prompts, or pairs."""

    def to_dict(self) -> dict:
        """NaN becomes None, which JSON can hold."""
        values = {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in self._asdict().items()}
        return values


def share(hits: Tensor) -> Figure:
    """Share of True in (N,) bool, with Wilson's interval; all NaN for N = 0."""
    return wilson(int(hits.sum()), len(hits))


def wilson(hits: int, count: int) -> Figure:
    """hits of count, with the score interval of Wilson 1927, which holds at shares near 0 and 1 too."""
    if not count:
        return Figure(math.nan, math.nan, math.nan, 0)
    p, z2 = hits / count, Z * Z
    centre = (p + z2 / (2 * count)) / (1 + z2 / count)
    reach = Z / (1 + z2 / count) * math.sqrt(p * (1 - p) / count + z2 / (4 * count * count))
    # At the ends the formula gives 0 and 1 but for rounding.
    return Figure(p, 0.0 if not hits else centre - reach, 1.0 if hits == count else centre + reach, count)


def auroc(positive: Tensor, negative: Tensor) -> Figure:
    """Chance that a positive (P,) scores above a negative (M,), ties counted half.

    The interval is that of DeLong, DeLong and Clarke-Pearson 1988: the variance of the placements of each side. Where
    all placements agree, as for a perfect detector, that variance is 0 and says nothing; Wilson's interval on the
    smaller side then stands for it.
    """
    if not len(positive) or not len(negative):
        return Figure(math.nan, math.nan, math.nan, 0)
    value, count = area_under_curve(positive, negative), len(positive)
    variance = _spread(_placements(positive, negative)) + _spread(_placements(negative, positive))
    if variance == 0:
        least = min(len(positive), len(negative))
        bounds = wilson(round(value * least), least)
        return Figure(value, min(bounds.low, value), max(bounds.high, value), count)
    reach = Z * math.sqrt(variance)
    return Figure(value, max(0.0, value - reach), min(1.0, value + reach), count)


def _placements(own: Tensor, other: Tensor) -> Tensor:
    """(N,) share of the other side that lies below each value, ties counted half."""
    ordered, own = other.sort().values, own.contiguous()
    below = torch.searchsorted(ordered, own, right=False)
    upto = torch.searchsorted(ordered, own, right=True)
    return (below + upto).double() / (2 * len(other))


def _spread(values: Tensor) -> float:
    return float(values.var()) / len(values) if len(values) > 1 else 0.0


def caught_at(positive: Tensor, negative: Tensor, false_alarms: float) -> Figure:
    """Share of positives (P,) above the score that `false_alarms` of the negatives (M,) exceed.

    Wilson's interval of that share; the threshold is taken as given.
    """
    if not len(positive) or not len(negative):
        return Figure(math.nan, math.nan, math.nan, 0)
    allowed = min(int(false_alarms * len(negative)), len(negative) - 1)
    threshold = negative.sort(descending=True).values[allowed]
    return share(positive > threshold)


def mean(values: Tensor, seed: int = 0) -> Figure:
    """Mean of (N,), with the percentile interval of the bootstrap (Efron 1979), 1000 resamples."""
    count = len(values)
    if not count:
        return Figure(math.nan, math.nan, math.nan, 0)
    values = values.double()
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(count, (RESAMPLES, count), generator=generator)
    low, high = values[drawn].mean(1).quantile(torch.tensor([0.025, 0.975], dtype=torch.double)).tolist()
    return Figure(float(values.mean()), low, high, count)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """(N, D), (N, D) -> (N,)."""
    return F.cosine_similarity(a.float(), b.float(), dim=-1)


def found_own(queries: Tensor, keys: Tensor) -> Tensor:
    """(N,) bool: of all keys (M, D), the one in the query's (N, D) own place is the nearest by cosine, M at least N.

    Keys that are equal to the own one count as it: two prompts may have the same twin.
    """
    similar = F.normalize(queries.float(), dim=-1) @ F.normalize(keys.float(), dim=-1).T
    return similar.diagonal() >= similar.max(dim=1).values - 1e-6


def nearest_label(queries: Tensor, reference: Tensor, labels: Tensor) -> Tensor:
    """The label of each query's (N, D) nearest neighbour by cosine in the reference (R, D); labels (R,)."""
    similar = F.normalize(queries.float(), dim=-1) @ F.normalize(reference.float(), dim=-1).T
    return labels[similar.argmax(dim=1)]


def falls_steadily(values: Sequence[float], tolerance: float = 0.005) -> bool:
    """No value lies above the one before it by more than the tolerance."""
    return all(later <= earlier + tolerance for earlier, later in itertools.pairwise(values))


def way_covered(values: Sequence[float], half: int, full: int) -> float:
    """Share of the way from the first value to the `full`-th that is covered at the `half`-th; NaN for no way."""
    whole = values[0] - values[full]
    return (values[0] - values[half]) / whole if abs(whole) > 1e-6 else math.nan
