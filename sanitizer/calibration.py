"""Calibration: the score at which a concept fires, set on harmless prompts that training did not see."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from .concepts import Concept
from .encoders.base import TextEncoder
from .encodings import Encodings, Progress, encode_all
from .labels import Labels
from .model import EmbeddingSanitizer
from .optimisation import Settings
from .pairs import PromptGenerator
from .templates import Templates

MOST_BENIGN = 4000
TAIL = 0.02
"""Share of the harmless scores to which the tail is fitted."""
SAMPLED = 6000
"""Training prompts that set the slope."""
MIX = (0.4, 0.4, 0.2)
"""Shares of the net's prompt score, its highest token score and the linear probe in the prompt score, after each is
divided by its spread."""


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

    The threshold of a concept is the score that a share of harmless prompts reaches, :attr:`Settings.false_alarms`
    divided by the number of concepts that can be erased; the slope is that of a logistic regression (Platt scaling).
    """
    generator = PromptGenerator(concepts, templates, seed, split="calibration")
    count = min(MOST_BENIGN, len(encodings) // 5 + 1)
    texts = [generator.benign() for _ in range(count)]
    benign = encode_all(encoder, texts, progress, encodings.normaliser, stage="calibrate")
    net = sanitizer.score_net
    with torch.no_grad():
        harmless, harmless_tokens = _logits(net, benign, range(len(benign)))
        index = torch.arange(0, len(encodings), max(1, len(encodings) // SAMPLED))
        trained, trained_tokens = _logits(net, encodings, index.tolist())
    erasable = sum(not concept.context for concept in concepts)
    share = settings.false_alarms / erasable
    for k in range(len(concepts)):
        positive = labels.prompt[index, k] > 0
        # Each score in units of its spread over harmless prompts, then mixed.
        mix = harmless.new_tensor(MIX) / harmless[:, :, k].std(1).clamp_min(1e-3)
        z, z_positive = mix @ harmless[:, :, k], mix @ trained[:, positive, k]
        sanitizer.prompt_mix[:, k], sanitizer.prompt_bias[k] = _operating_point(mix, z, z_positive, share)
        slope, bias = _operating_point(
            torch.ones(1), harmless_tokens[:, k], trained_tokens[positive, k], settings.token_false_alarms
        )
        sanitizer.token_scale[k], sanitizer.token_bias[k] = slope[0], bias


def _operating_point(mix: Tensor, harmless: Tensor, unsafe: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Slope by logistic regression, offset by the quantile: the scaled mix and the bias."""
    z = torch.cat([harmless, unsafe])
    y = torch.cat([torch.zeros(len(harmless)), torch.ones(len(unsafe))])
    weight = torch.where(y > 0, 1 / max(1, len(unsafe)), 1 / len(harmless))
    parameters = torch.tensor([4.0, 0.0], requires_grad=True)
    optimiser = torch.optim.LBFGS([parameters], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        logit = parameters[0] * z + parameters[1]
        loss = (weight * F.binary_cross_entropy_with_logits(logit, y, reduction="none")).sum()
        loss = loss + 1e-4 * parameters.square().sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    slope = parameters[0].detach().clamp_min(1e-3)
    return slope * mix, -slope * tail_threshold(harmless, share)


def tail_threshold(scores: Tensor, share: float) -> Tensor:
    """The score that a share of prompts like these reaches, by an exponential fit to the upper tail.

    A share of a thousandth is asked of some thousand prompts: the quantile itself would be one outlier. Peaks over a
    threshold u exceed it by an exponential of their mean m, so that P(score > t) = P(score > u) exp(-(t - u) / m)
    (Pickands 1975, with shape 0).
    """
    above = max(TAIL, share)
    start = torch.quantile(scores, 1 - above)
    excess = scores[scores > start] - start
    mean = excess.mean() if len(excess) else scores.new_zeros(())
    return start + mean * math.log(above / share)


def _logits(net, encodings: Encodings, index: Sequence[int]) -> tuple[Tensor, Tensor]:
    """(3, N, K) of net, highest token and probe; and (N, K), the highest token alone."""
    parts = []
    index = list(index)
    for first in range(0, len(index), 256):
        x, weight, pooled = encodings.batch(index[first : first + 256])
        tokens, prompt = net(x, weight, pooled)
        highest = tokens.masked_fill(weight[..., None] == 0, -math.inf).amax(dim=1)
        parts.append(torch.stack([prompt, highest, net.probe_logits(x, weight, pooled)]))
    joined = torch.cat(parts, dim=1)
    return joined, joined[1]
