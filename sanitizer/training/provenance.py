"""The statistics that tell the encoder's own embeddings from others, see :mod:`..model.provenance`.

N prompts, D channels, P pooled channels, K directions, S sizes.
"""

import math
import random
from collections.abc import Sequence

import torch
from torch import Tensor

from ..encoders.base import Progress, TextEncoder
from ..model.provenance import Provenance, basis
from .config import TrainingConfig
from .dataset import EncodedDataset


def measure_provenance(
    encoder: TextEncoder,
    dataset: EncodedDataset,
    texts: Sequence[str],
    config: TrainingConfig,
    seed: int,
    progress: Progress,
    directions: Tensor | None = None,
) -> Provenance | None:
    """Measure them on training prompts and on others of all lengths, cut from the same texts; None where neither token
    embeddings nor a pooled vector are to be told. directions (K, D): known ones, which few prompts are enough to
    measure along, where thousands are needed to find them.

    One half of the prompts gives the directions and what is expected along them, the other half the variances and the
    bounds: along the directions in which few prompts vary least, by construction, the same prompts hardly vary at all.
    """
    normalizer = dataset.normalizer
    width = len(normalizer.mean)
    count = 0 if normalizer.causal else min(width, config.directions) if directions is None else len(directions)
    if not count and dataset.pooled is None:
        return None
    varied = EncodedDataset.encode(
        encoder, of_all_lengths(texts, config.varied_for(len(dataset)), seed), config, progress, normalizer, "measure"
    )
    # At random, since the training prompts take turns: targets, their anchor, another harmless one.
    draw = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(dataset), generator=draw)[: config.provenance_prompts]
    parts = [*dataset.batches(chosen.tolist()), *varied.batches()]
    known = basis(torch.cat([weight.sum(dim=1) for _, weight, _ in parts]))
    one = torch.rand(len(known), generator=draw) < 0.5
    scale = torch.where(normalizer.std > 0, 1 / normalizer.std.clamp_min(1e-12), 0.0)
    # What rounding may do to each channel, in its normalized units, squared.
    rounding = (config.rounding * normalizer.mean * scale) ** 2 + config.rounding**2 * (scale > 0)
    if directions is None:
        directions = torch.zeros(count, width)
        if count:
            means = torch.cat([_mean(x, weight) for x, weight, _ in parts])
            rest = means[one] - known[one] @ _fitted(known[one], means[one])
            live = scale > 0
            covariance = torch.cov(rest[:, live].T) + torch.diag(rounding[live])
            directions[:, live] = torch.linalg.eigh(covariance).eigenvectors[:, :count].T
    # The bounds are all that is missing, and readings do not need them.
    unbound = Provenance(normalizer, directions, *(torch.zeros(0),) * 3)
    readings = torch.cat([unbound.readings(*part) for part in parts])
    mean = _fitted(known[one], readings[one])
    known, off = known[~one], readings[~one] - known[~one] @ mean
    floor = torch.zeros(readings.shape[1])
    floor[:count] = (directions**2) @ rounding
    variance = _variances(known[:, :2], off**2, config.least_variance) + torch.stack([floor, torch.zeros_like(floor)])
    values = off / (known[:, :2] @ variance).sqrt()
    distance = (values[:, :count] ** 2).mean(dim=1) if count else torch.zeros(len(values))
    told = torch.cat([distance[:, None], values[:, count:]], dim=1)
    ends = torch.quantile(told, torch.tensor([config.provenance_share, 1 - config.provenance_share]), dim=0)
    # Never nearer than what chance alone makes of few prompts.
    bounds = config.provenance_margin * torch.stack([ends[0].clamp_max(-1.0), ends[1].clamp_min(1.0)])
    bounds[0, 0] = 0.0
    # However much the sizes vary; of the shortest prompts, whose deviations are the largest. A size is a square.
    farthest = 2 * math.log(config.farthest_scale) / variance[:, count:].sum(dim=0).sqrt()
    bounds[:, 1:] = torch.minimum(bounds[:, 1:].abs(), farthest) * bounds[:, 1:].sign()
    return Provenance(normalizer, directions, mean, variance, bounds)


def of_all_lengths(texts: Sequence[str], count: int, seed: int, most: int = TrainingConfig.most_words) -> list[str]:
    """Texts of 1 to `most` words, about as many between 1 and 10 as between 10 and 100, cut from the joined texts at
    random."""
    rng = random.Random(f"{seed}-provenance")
    found = []
    for _ in range(count):
        length = round(most ** rng.random())
        words: list[str] = []
        while len(words) < 2 * length:
            words += rng.choice(texts).split() or [""]
        first = rng.randrange(len(words) - length + 1)
        found.append(" ".join(words[first : first + length]))
    return found


def _mean(x: Tensor, weight: Tensor) -> Tensor:
    """(B, L, D), (B, L) -> (B, D)."""
    return torch.einsum("bld,bl->bd", x, weight / weight.sum(dim=1, keepdim=True).clamp_min(1e-6))


def _fitted(known: Tensor, values: Tensor) -> Tensor:
    """Least squares: known (N, 3), values (N, C) -> (3, C). Where all prompts are as long as each other, the solution
    of least norm."""
    return torch.linalg.lstsq(known, values, driver="gelsd").solution


def _variances(known: Tensor, squares: Tensor, least: float) -> Tensor:
    """known (N, 2): 1 and 1 / n; squared deviations (N, C) -> (2, C): a variance a + b / n with b ≥ 0 and a at least
    the share `least` of the mean square."""
    mean = squares.mean(dim=0)
    a, b = _fitted(known, squares)
    a, b = torch.where(b < 0, mean, a), b.clamp_min(0.0)
    return torch.stack([torch.maximum(a, least * mean).clamp_min(1e-12), b])
