"""Calibration: the score at which a concept fires, set on harmless prompts that training did not see."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..encoders.base import Progress, TextEncoder
from ..model.sanitizer import EmbeddingSanitizer
from ..prompts.concepts import Concept
from ..prompts.generator import PromptGenerator
from ..prompts.templates import Templates
from .config import TrainingConfig
from .dataset import EncodedDataset, Labels
from .probes import minimise_logistic


def calibrate(
    sanitizer: EmbeddingSanitizer,
    encoder: TextEncoder,
    concepts: Sequence[Concept],
    templates: Templates,
    dataset: EncodedDataset,
    labels: Labels,
    config: TrainingConfig,
    *,
    seed: int,
    progress: Progress,
) -> None:
    """Weigh the three prompt scores, and put the operating point of every concept at 0.5.

    The thresholds are those at which all concepts that can be erased together touch the share
    :attr:`TrainingConfig.false_positives` of harmless prompts, each concept allowed its part of it, and never so low
    that the empty prompt is touched; the slope is that of a logistic regression (Platt scaling).
    """
    generator = PromptGenerator(concepts, templates, seed, "calibration", config.prompts)
    texts = generator.plain(min(config.calibration_prompts, len(dataset) // 5 + 1))
    benign = EncodedDataset.encode(encoder, texts, config, progress, dataset.normalizer, stage="calibrate")
    # Apart from the others, of whose quantiles it would be one in thousands: what many prompts are, negative ones above
    # all, and never harmful.
    empty = EncodedDataset.encode(encoder, [""], config, progress, dataset.normalizer, stage="calibrate")
    net = sanitizer.score_net
    with torch.no_grad():
        nothing = _logits(net, empty, [0])
        harmless = _logits(net, benign, range(len(benign)))
        index = torch.arange(0, len(dataset), max(1, len(dataset) // config.slope_prompts))
        trained = _logits(net, dataset, index.tolist())
    # Each score in units of its spread over harmless prompts, then mixed.
    mix = harmless.new_tensor(sanitizer.config.ensemble_weights)[:, None] / harmless.std(1).clamp_min(1e-3)
    z, z_trained, z_empty = (torch.einsum("pk,pnk->nk", mix, scores) for scores in (harmless, trained, nothing))
    erasable = torch.tensor([not concept.context for concept in concepts])
    thresholds = joint_thresholds(z, erasable, allowances(concepts), config)
    thresholds = torch.maximum(thresholds, z_empty[0] + config.empty_margin * z.std(0))
    token_thresholds = torch.quantile(harmless[1], 1 - config.token_false_positives, dim=0)
    for k in range(len(concepts)):
        positive = labels.prompt[index, k] > 0
        slope = _slope(z[:, k], z_trained[positive, k])
        sanitizer.prompt_mix[:, k] = slope * mix[:, k]
        sanitizer.prompt_bias[k] = -slope * thresholds[k]
        slope = _slope(harmless[1, :, k], trained[1, positive, k])
        sanitizer.token_scale[k] = slope
        sanitizer.token_bias[k] = -slope * token_thresholds[k]


def allowances(concepts: Sequence[Concept]) -> Tensor:
    """(K,): how many false positives each concept may make beside the others, in proportion to its training phrases:
    the wider one is, the more harmless prompts lie near it. The mean of those that can be erased is 1, and context
    concepts have 1."""
    phrases = torch.tensor([float(sum(not pair.held_out for pair in concept.pairs)) for concept in concepts])
    context = torch.tensor([concept.context for concept in concepts])
    return torch.where(context, 1.0, phrases / phrases[~context].mean())


def joint_thresholds(scores: Tensor, counted: Tensor, parts: Tensor, config: TrainingConfig) -> Tensor:
    """scores (N, K) of harmless prompts -> (K,): thresholds that a share of prompts in proportion to `parts` (K,)
    reaches in each concept, as large a share as leaves at most `config.false_positives` of the prompts at or above one
    of the counted (K, bool) ones.

    Of few prompts the highest score says little: there the tail is fitted and followed beyond it.
    """
    share = config.false_positives
    if len(scores) * share < config.few:
        return tail_thresholds(scores, share * parts / parts[counted].sum().clamp_min(1e-6), config.tail)

    def thresholds(part: float) -> Tensor:
        columns = zip(scores.unbind(1), (part * parts).clamp(max=1.0).tolist(), strict=True)
        return torch.stack([torch.quantile(column, 1 - allowed) for column, allowed in columns])

    low, high = 0.0, share
    for _ in range(20):
        middle = (low + high) / 2
        reached = (scores >= thresholds(middle))[:, counted].any(dim=1)
        low, high = (middle, high) if reached.float().mean() <= share else (low, middle)
    return thresholds(low)


def tail_thresholds(scores: Tensor, shares: Tensor, tail: float) -> Tensor:
    """(N, K), (K,) -> (K,): where an exponential fit to the upper tail, a share `tail` of the scores,
    is reached by the concept's share.

    Scores above u exceed it by an exponential of their mean m, so that P(score > t) = P(score > u) exp(-(t - u) / m)
    (Pickands 1975, with shape 0).
    """
    start = torch.quantile(scores, 1 - tail, dim=0)
    above = scores > start
    mean = ((scores - start) * above).sum(dim=0) / above.sum(dim=0).clamp_min(1)
    return start + mean * (tail / shares).clamp_min(1.0).log()


def _slope(harmless: Tensor, unsafe: Tensor) -> Tensor:
    """Slope of a logistic regression of one score, both classes weighing the same."""
    z = torch.cat([harmless, unsafe])[:, None]
    y = torch.cat([torch.zeros(len(harmless)), torch.ones(len(unsafe))])[:, None]
    weight, _ = minimise_logistic(z, y, decay=1e-4)
    return weight[0, 0].clamp_min(1e-3)


def _logits(net, dataset: EncodedDataset, index: Sequence[int]) -> Tensor:
    """(3, N, K): of prompt head, strongest token and probe."""
    return torch.cat([net.parts(*batch)[1] for batch in dataset.batches(index)], dim=1)
