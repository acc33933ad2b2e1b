"""Optimised strings: unrelated harmless words whose embedding means what a prompt means, as attacks write them.

MMA-Diffusion (arXiv 2311.17516) and Ring-A-Bell (arXiv 2310.10012) search among tokens for such strings. Here a short
search exchanges words, without gradients, so that it serves every encoder: in 16 steps of 8 tries it comes as near
(cosine .51 to unsafe prompts of nudity on `minilm`) as as many steps along the gradient with 8 tries each. Strings
towards unsafe prompts are positives, strings towards their safe anchors negatives: else the score net would learn what
an optimised string looks like, and not what it means.
"""

import random
from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

from ..encoders.base import Progress, TextEncoder
from ..model.normalizer import Normalizer, vectors
from ..prompts.generator import Prompt
from .config import TrainingConfig

AT_ONCE = 32
"""Goals that are searched for together."""


def optimised_prompts(
    encoder: TextEncoder,
    normalizer: Normalizer,
    prompts: Sequence[Prompt],
    words: Sequence[str],
    config: TrainingConfig,
    seed: int,
    progress: Progress,
) -> list[Prompt]:
    """Strings of `words` towards some of the unsafe prompts, and as many towards their anchors."""
    short = [
        (p, prompts[p.anchor])
        for p in prompts
        if p.anchor is not None and len(p.text.split()) <= config.optimised_longest
    ]
    rng = random.Random(f"{seed}-optimised")
    units = rng.sample(short, min(len(short), len(prompts) * config.optimised // 1000))
    return strings_towards(encoder, normalizer, units, words, config, rng, progress)


def strings_towards(
    encoder: TextEncoder,
    normalizer: Normalizer,
    units: Sequence[tuple[Prompt, Prompt]],
    words: Sequence[str],
    config: TrainingConfig,
    rng: random.Random,
    progress: Progress,
) -> list[Prompt]:
    """Strings of `words` towards unsafe prompts and towards their anchors, each with the labels of what it means."""
    found: list[Prompt] = []
    for first in range(0, len(units), AT_ONCE):
        some = units[first : first + AT_ONCE]
        own = [p for side in zip(*some, strict=True) for p in side]
        goals = vectors(encoder, normalizer, [p.text for p in own])
        strings = _search(encoder, normalizer, goals, goals.roll(len(some), 0), words, config, rng)
        for prompt, texts in zip(own, strings, strict=True):
            found += [Prompt(text, prompt.concepts, prompt.unknown) for text in texts]
        progress("optimise", min(first + AT_ONCE, len(units)), len(units), {})
    return found


def _search(
    encoder: TextEncoder,
    normalizer: Normalizer,
    goals: Tensor,
    others: Tensor,
    words: Sequence[str],
    config: TrainingConfig,
    rng: random.Random,
) -> list[list[str]]:
    """goals (N, F), others (N, F): for each goal the nearest strings of its search, see
    :attr:`TrainingConfig.optimised_kept`, that are nearer to it than to its other by the margin."""
    count, tries, steps = len(goals), config.optimised_tries, config.optimised_steps
    now = [rng.choices(words, k=rng.randint(*config.optimised_words)) for _ in range(count)]
    best = [-1.0] * count
    found: list[dict[str, float]] = [{} for _ in range(count)]
    for step in range(steps):
        exchanged = max(1, round(config.optimised_exchanged * (1 - step / steps)))
        tried = []
        for own in now:
            for _ in range(tries):
                new = list(own)
                for place in rng.choices(range(len(new)), k=exchanged):
                    new[place] = rng.choice(words)
                tried.append(new)
        x = vectors(encoder, normalizer, [" ".join(new) for new in tried]).view(count, tries, -1)
        near = F.cosine_similarity(x, goals[:, None], dim=-1)
        apart = near - F.cosine_similarity(x, others[:, None], dim=-1)
        for i in range(count):
            for j, value in enumerate(near[i].tolist()):
                new = tried[i * tries + j]
                if apart[i, j] >= config.optimised_margin:
                    found[i][" ".join(new)] = value
                if value > best[i]:
                    now[i], best[i] = new, value
    return [sorted(own, key=own.__getitem__, reverse=True)[: config.optimised_kept] for own in found]
