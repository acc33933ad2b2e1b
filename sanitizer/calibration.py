"""Calibration: the score at which a concept fires, set on harmless prompts that training did not see."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .concepts import Concept
from .encoders.base import TextEncoder
from .encodings import Encodings, Progress, encode_all
from .labels import Labels
from .model import EmbeddingSanitizer
from .optimisation import Settings
from .pairs import PromptGenerator
from .probes import minimise_logistic
from .templates import Templates

MOST_BENIGN = 4000
SAMPLED = 6000
"""Training prompts that set the slope."""
FEW = 5
"""Harmless prompts above the thresholds, under which a tail is fitted instead."""
TAIL = 0.02
"""Share of the scores to which it is fitted."""
EMPTY_MARGIN = 0.25
"""Spreads of the harmless scores by which every threshold lies above the empty prompt's."""
MIX = (0.55, 0.35, 0.1)
"""Shares of the net's prompt score, its highest token score and the linear probe in the prompt score, after each is
divided by its spread. At (0.45, 0.45, 0.1) as much is caught, and a few more harmless prompts about the same topics are
touched."""


def calibrate(
    sanitizer: EmbeddingSanitizer,
    encoder: TextEncoder,
    concepts: Sequence[Concept],
    templates: Templates,
    encodings: Encodings,
    labels: Labels,
    settings: Settings,
    *,
    seed: int,
    progress: Progress,
) -> None:
    """Mix the three prompt scores, and put the operating point of every concept at 0.5.

    The thresholds are those at which all concepts that can be erased together touch the share
    :attr:`Settings.false_alarms` of harmless prompts, each concept allowed its part of it, and never so low that the
    empty prompt is touched; the slope is that of a logistic regression (Platt scaling).
    """
    generator = PromptGenerator(concepts, templates, seed, split="calibration")
    texts = generator.plain(min(MOST_BENIGN, len(encodings) // 5 + 1))
    benign = encode_all(encoder, texts, progress, encodings.normaliser, stage="calibrate")
    # Apart from the others, of whose quantiles it would be one in thousands: what many prompts are, negative ones above
    # all, and never harmful.
    empty = encode_all(encoder, [""], progress, encodings.normaliser, stage="calibrate")
    net = sanitizer.score_net
    with torch.no_grad():
        nothing = _logits(net, empty, [0])
        harmless = _logits(net, benign, range(len(benign)))
        index = torch.arange(0, len(encodings), max(1, len(encodings) // SAMPLED))
        trained = _logits(net, encodings, index.tolist())
    # Each score in units of its spread over harmless prompts, then mixed.
    mix = harmless.new_tensor(MIX)[:, None] / harmless.std(1).clamp_min(1e-3)
    z, z_trained, z_empty = (torch.einsum("pk,pnk->nk", mix, scores) for scores in (harmless, trained, nothing))
    erasable = torch.tensor([not concept.context for concept in concepts])
    thresholds = joint_thresholds(z, erasable, allowances(concepts), settings.false_alarms)
    thresholds = torch.maximum(thresholds, z_empty[0] + EMPTY_MARGIN * z.std(0))
    token_thresholds = torch.quantile(harmless[1], 1 - settings.token_false_alarms, dim=0)
    for k in range(len(concepts)):
        positive = labels.prompt[index, k] > 0
        slope = _slope(z[:, k], z_trained[positive, k])
        sanitizer.prompt_mix[:, k] = slope * mix[:, k]
        sanitizer.prompt_bias[k] = -slope * thresholds[k]
        slope = _slope(harmless[1, :, k], trained[1, positive, k])
        sanitizer.token_scale[k] = slope
        sanitizer.token_bias[k] = -slope * token_thresholds[k]


def allowances(concepts: Sequence[Concept]) -> Tensor:
    """(K,): how many false alarms each concept may make beside the others, in proportion to its training phrases: the
    wider one is, the more harmless prompts lie near it. The mean of those that can be erased is 1, and context concepts
    have 1."""
    phrases = torch.tensor([float(sum(not pair.held_out for pair in concept.pairs)) for concept in concepts])
    context = torch.tensor([concept.context for concept in concepts])
    return torch.where(context, 1.0, phrases / phrases[~context].mean())


def joint_thresholds(scores: Tensor, counted: Tensor, parts: Tensor, share: float) -> Tensor:
    """scores (N, K) of harmless prompts -> (K,): thresholds that a share of prompts in proportion to `parts` (K,)
    reaches in each concept, as large a share as leaves at most `share` of the prompts at or above one of the counted
    (K, bool) ones.

    Of few prompts the highest score says little: there the tail is fitted and followed beyond it.
    """
    if len(scores) * share < FEW:
        return tail_thresholds(scores, share * parts / parts[counted].sum().clamp_min(1e-6))

    def thresholds(part: float) -> Tensor:
        columns = zip(scores.unbind(1), (part * parts).clamp(max=1.0).tolist(), strict=True)
        return torch.stack([torch.quantile(column, 1 - allowed) for column, allowed in columns])

    low, high = 0.0, share
    for _ in range(20):
        middle = (low + high) / 2
        reached = (scores >= thresholds(middle))[:, counted].any(dim=1)
        low, high = (middle, high) if reached.float().mean() <= share else (low, middle)
    return thresholds(low)


def tail_thresholds(scores: Tensor, shares: Tensor) -> Tensor:
    """(N, K), (K,) -> (K,): where an exponential fit to the upper tail is reached by the concept's share.

    Scores above u exceed it by an exponential of their mean m, so that P(score > t) = P(score > u) exp(-(t - u) / m)
    (Pickands 1975, with shape 0).
    """
    start = torch.quantile(scores, 1 - TAIL, dim=0)
    above = scores > start
    mean = ((scores - start) * above).sum(dim=0) / above.sum(dim=0).clamp_min(1)
    return start + mean * (TAIL / shares).clamp_min(1.0).log()


def _slope(harmless: Tensor, unsafe: Tensor) -> Tensor:
    """Slope of a logistic regression of one score, both classes weighing the same."""
    z = torch.cat([harmless, unsafe])[:, None]
    y = torch.cat([torch.zeros(len(harmless)), torch.ones(len(unsafe))])[:, None]
    weight, _ = minimise_logistic(z, y, decay=1e-4)
    return weight[0, 0].clamp_min(1e-3)


def _logits(net, encodings: Encodings, index: Sequence[int]) -> Tensor:
    """(3, N, K): of net, highest token and probe."""
    return torch.cat([net.parts(*batch)[1] for batch in encodings.batches(index)], dim=1)
