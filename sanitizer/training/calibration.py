"""Calibration: the score at which a concept fires, set on harmless prompts that training did not see.

A prompt has several votes (:attr:`..model.config.SanitizerConfig.vote_weights`), and each of them fires by itself: the
prompt head, the strongest token and the probe each see what the others miss, and what one of them sees in one span of
a long prompt is not averaged away. All votes of all concepts share one budget of false positives.

Shapes: N prompts, S spans, V votes, K concepts.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..encoders.base import Progress, TextEncoder
from ..model.sanitizer import EmbeddingSanitizer, highest
from ..prompts.concepts import Concept
from ..prompts.generator import PromptGenerator
from ..prompts.templates import Templates
from .config import TrainingConfig
from .dataset import READ, Spans, batch_size
from .probes import minimise_logistic

STRONGEST_TOKEN = (0.0, 1.0, 0.0)
"""The vote whose scale the scores of single tokens have, so that no prompt scores below a word of it."""


class Votes(NamedTuple):
    """What the votes say of N harmless prompts, each in units of its spread over everyday ones."""

    scores: Tensor
    """(N, V, K)."""
    spans: Tensor
    """(N,): spans of each prompt."""


class Harmless(NamedTuple):
    """The prompts that thresholds are set on."""

    everyday: Votes
    """Captions and prompts, a quarter of them about the concepts' own topics."""
    borderline: Votes
    """Hard negatives, and prompts that talk about the concepts."""
    empty: Votes
    """The empty prompt."""
    longer: Votes
    """Several of the everyday prompts, one behind the other."""
    longest: Votes
    """The same, of the greatest lengths."""
    phrases: int
    """Different phrases of which the borderline prompts are made."""


def calibrate(
    sanitizer: EmbeddingSanitizer,
    encoder: TextEncoder,
    concepts: Sequence[Concept],
    templates: Templates,
    spans: Spans,
    config: TrainingConfig,
    *,
    examples: int,
    seed: int,
    progress: Progress,
) -> None:
    """Put the operating point of every vote of every concept at 0.5, see :func:`operating_points`; the slope is that of
    a logistic regression (Platt scaling). spans: of the `examples` training prompts."""
    generator = PromptGenerator(concepts, templates, seed, "calibration", config.prompts)
    count = min(config.calibration_prompts, examples // 5 + 1)
    groups = {
        "everyday": generator.plain(count),
        "borderline": [
            *(generator.hard_negative() for _ in range(count // 4 if generator.hard else 0)),
            *(generator.topic() for _ in range(count // 8 if generator.topics else 0)),
        ],
        "empty": [""],
        "longer": [text for words in config.long_words for text in generator.long(words, count // config.long_share)],
        "longest": [text for words in config.longest for text in generator.long(words, count // config.long_share)],
    }
    owner, parts, number = _evidence(sanitizer, encoder, list(groups.values()), progress)
    with torch.no_grad():
        index = torch.arange(0, len(spans), max(1, len(spans) // config.slope_prompts))
        trained = torch.cat([sanitizer.score_net.parts(*spans.batch(some))[1] for some in index.split(READ)], dim=1)
    # Each score in units of its spread over everyday prompts, then mixed: (V, 3, K).
    weights = parts.new_tensor(sanitizer.config.vote_weights)
    everyday = parts[:, owner < len(groups["everyday"])]
    mix = weights[..., None] / everyday.std(dim=1).clamp_min(1e-3)
    scores = highest(torch.einsum("vpk,psk->svk", mix, parts), owner, len(number))
    sizes = [len(texts) for texts in groups.values()]
    votes = [Votes(*both) for both in zip(scores.split(sizes), number.split(sizes), strict=True)]
    known = Harmless(*votes, phrases=len(generator.hard) + len(generator.topics))
    thresholds, length_slopes = operating_points(known, concepts, config)
    unsafe = torch.einsum("vpk,psk->svk", mix, trained)
    for v, vote in enumerate(sanitizer.config.vote_weights):
        for k in range(len(concepts)):
            positive = spans.labels[index, k] > 0
            scale = _slope(known.everyday.scores[:, v, k], unsafe[positive, v, k])
            sanitizer.vote_mix[v, :, k] = scale * mix[v, :, k]
            sanitizer.vote_bias[v, k] = -scale * thresholds[v, k]
            sanitizer.vote_slope[v, k] = scale * length_slopes[v, k]
            if vote == STRONGEST_TOKEN:
                sanitizer.token_scale[k] = sanitizer.vote_mix[v, 1, k]
                sanitizer.token_bias[k] = sanitizer.vote_bias[v, k]
                sanitizer.token_slope[k] = sanitizer.vote_slope[v, k]


def operating_points(known: Harmless, concepts: Sequence[Concept], config: TrainingConfig) -> tuple[Tensor, Tensor]:
    """(V, K) thresholds t, and (V, K) slopes b: a prompt of n spans fires at t + b log n.

    t are the lowest ones at which all votes of all concepts that can be erased together touch at most the share
    :attr:`TrainingConfig.false_positives` of everyday prompts, :attr:`TrainingConfig.borderline` of hard negatives, or
    one phrase of them more, and :attr:`TrainingConfig.long_false_positives` of longer ones, each concept allowed its
    part, and never so low that the empty prompt is touched. b are the lowest ones at which they touch at most that
    share of the longest. They may be negative: the more words an encoder reads, the less of each is in an embedding.
    """
    votes, count = known.empty.scores.shape[1:]
    parts = allowances(concepts).repeat(votes)
    counted = torch.tensor([not concept.context for concept in concepts]).repeat(votes)
    middle = _log(known.everyday).median()
    slopes = torch.zeros_like(parts)

    def level(own: Votes) -> Tensor:
        return own.scores.flatten(1) - slopes * (_log(own) - middle)

    # One phrase more: of a few it is chance whether one lies near, and a single one must not decide.
    borderline = config.borderline + 1 / max(1, known.phrases)
    limits = [config.false_positives, borderline, config.long_false_positives]
    longer = _log(known.longest)[:, 0] > middle
    longest = Votes(known.longest.scores[longer], known.longest.spans[longer])
    thresholds = torch.empty(0)
    # Each is set given the other; after three rounds they hardly move.
    for _ in range(3):
        everyday = level(known.everyday)
        levels = [everyday, level(known.borderline), level(known.longer)]
        thresholds = joint_thresholds(everyday, counted, parts, config, list(zip(levels, limits, strict=True)))
        thresholds = torch.maximum(thresholds, level(known.empty)[0] + config.empty_margin * everyday.std(0))
        if not len(longest.spans):
            break
        above = (longest.scores.flatten(1) - thresholds) / (_log(longest) - middle)
        slopes = joint_thresholds(above, counted, parts, config, [(above, config.long_false_positives)])
    return (thresholds - slopes * middle).reshape(votes, count), slopes.reshape(votes, count)


def _log(own: Votes) -> Tensor:
    """(N, 1): logarithm of the number of spans."""
    return own.spans.clamp_min(1).float().log()[:, None]


def allowances(concepts: Sequence[Concept]) -> Tensor:
    """(K,): how many false positives each concept may make beside the others, in proportion to its training phrases:
    the wider one is, the more harmless prompts lie near it. The mean of those that can be erased is 1, and context
    concepts have 1."""
    phrases = torch.tensor([float(sum(not pair.held_out for pair in concept.pairs)) for concept in concepts])
    context = torch.tensor([concept.context for concept in concepts])
    return torch.where(context, 1.0, phrases / phrases[~context].mean())


def joint_thresholds(
    scores: Tensor,
    counted: Tensor,
    parts: Tensor,
    config: TrainingConfig,
    limits: Sequence[tuple[Tensor, float]],
) -> Tensor:
    """scores (N, C) of harmless prompts -> (C,): the lowest thresholds, reached by shares of these prompts in
    proportion to `parts` (C,), that keep every limit: scores (M, C) and the share of them that may be at or above one
    of the counted (C, bool) thresholds.

    Where such a share lies is told by a fit to the tail and not by a quantile: one in a thousand of the prompts at hand
    is one or two of them, and the threshold of a whole concept would hang on these.
    """
    share = limits[0][1]

    def thresholds(part: float) -> Tensor:
        return tail_thresholds(scores, (part * parts).clamp(1e-9, 1.0), config.tail)

    if len(scores) * share < config.few:
        return thresholds(share / float(parts[counted].sum().clamp_min(1e-6)))

    def kept(found: Tensor) -> bool:
        touched = ((own >= found)[:, counted].any(dim=1).float().mean() <= most for own, most in limits if len(own))
        return all(touched)

    low, high = 0.0, share
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if kept(thresholds(middle)) else (low, middle)
    found = thresholds(low)
    # Above every one of these prompts, where the other limits ask for it.
    while not kept(found):
        found = found + 0.05 * scores.std(0).clamp_min(1e-3)
    return found


def tail_thresholds(scores: Tensor, shares: Tensor, tail: float) -> Tensor:
    """(N, K), (K,) -> (K,): what the concept's share of the scores reaches: a quantile, and for a share below `tail`,
    which few scores tell, an exponential fit to the upper tail, a share `tail` of the scores.

    Scores above u exceed it by an exponential of their mean m, so that P(score > t) = P(score > u) exp(-(t - u) / m)
    (Pickands 1975, with shape 0).
    """
    wide = [
        torch.quantile(own, 1 - max(share, tail)) for own, share in zip(scores.unbind(1), shares.tolist(), strict=True)
    ]
    start = torch.stack(wide)
    above = scores > start
    mean = ((scores - start) * above).sum(dim=0) / above.sum(dim=0).clamp_min(1)
    return start + mean * (tail / shares).clamp_min(1.0).log()


def _slope(harmless: Tensor, unsafe: Tensor) -> Tensor:
    """Slope of a logistic regression of one score, both classes weighing the same."""
    z = torch.cat([harmless, unsafe])[:, None]
    y = torch.cat([torch.zeros(len(harmless)), torch.ones(len(unsafe))])[:, None]
    weight, _ = minimise_logistic(z, y, decay=1e-4)
    return weight[0, 0].clamp_min(1e-3)


def _evidence(
    sanitizer: EmbeddingSanitizer, encoder: TextEncoder, groups: Sequence[Sequence[str]], progress: Progress
) -> tuple[Tensor, Tensor, Tensor]:
    """Of all prompts of the groups: the prompt of each span (S,), the score net's logits of it (3, S, K), and the
    number of spans of each prompt (N,)."""
    texts = [text for group in groups for text in group]
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    owner, parts, number = [], [], torch.zeros(len(texts), dtype=torch.long)
    size = batch_size(sanitizer.width)
    with torch.no_grad():
        for first in range(0, len(order), size):
            index = torch.tensor(order[first : first + size])
            e = encoder.encode([texts[i] for i in index])
            seen = sanitizer.evidence(e.embeddings, e.mask, e.pooled)
            owner.append(index[seen.owner])
            parts.append(seen.parts)
            number[index] = seen.spans
            progress("calibrate", min(first + size, len(texts)), len(texts), {})
    return torch.cat(owner), torch.cat(parts, dim=1), number
