"""Which languages an encoder knows, that is, in which it tells unsafe phrases from harmless ones."""

import random
from collections.abc import Sequence

import torch

from ..encoders.base import TextEncoder
from ..model.normalizer import Normalizer, vectors
from ..prompts.concepts import Concept
from ..prompts.languages import Language
from .probes import Probe, area_under_curve


def known_languages(
    encoder: TextEncoder,
    normalizer: Normalizer,
    languages: Sequence[Language],
    concepts: Sequence[Concept],
    phrases: int,
    seed: int,
) -> dict[str, float]:
    """Code of each language that has phrases of the concepts -> area under the curve of a probe, trained on half of
    its phrases, `phrases` at most, with their anchors and harmless prompts, on the other half. Of none for 0."""
    rng, found = random.Random(f"{seed}-languages"), {}
    for language in languages:
        pairs = [
            pair
            for concept in concepts
            if not concept.context
            for pair in language.pairs.get(concept.name, ())
            if not pair.held_out
        ]
        if not (pairs and phrases):
            continue
        some = rng.sample(pairs, min(len(pairs), phrases))
        harmless = rng.sample(language.harmless, min(len(language.harmless), len(some)))
        texts = [pair.target for pair in some] + [pair.anchor for pair in some] + harmless
        x = vectors(encoder, normalizer, texts)
        unsafe = torch.arange(len(texts)) < len(some)
        # A phrase and its anchor lie in the same half: else the probe would know what is being shown.
        half = torch.tensor([*range(len(some)), *range(len(some)), *range(len(harmless))]) % 2 == 0
        scores = torch.empty(len(texts))
        for own in (half, ~half):
            scores[~own] = Probe.fit(x[own], unsafe[own].float())(x[~own])
        found[language.code] = area_under_curve(scores[unsafe], scores[~unsafe])
    return found
