"""Pairs of prompts that say the same thing in other words: what "the content is the target's" is measured by."""

import random

from ..errors import SanitizerError
from ..prompts.concepts import Concept
from ..prompts.generator import PromptGenerator
from ..prompts.templates import Templates, insert


def paraphrases(concept: Concept, templates: Templates, count: int, seed: int) -> list[tuple[str, str]]:
    """`count` times two target phrases of one group of the training split, in one frame of the calibration split.

    Raises SanitizerError for a concept without two phrases of one group.
    """
    groups: dict[tuple[str, str], list[str]] = {}
    for pair in concept.pairs:
        # Two sentences of one group are different scenes.
        if not pair.held_out and pair.kind != "sentence":
            groups.setdefault((pair.kind, pair.canonical), []).append(pair.target)
    several = [(kind, phrases) for (kind, _), phrases in groups.items() if len(phrases) > 1]
    if not several:
        raise SanitizerError(
            f"Concept {concept.name!r}: expected a group with two phrases at least, found none. Add phrases to it."
        )
    rng = random.Random(f"{seed}-paraphrases")
    generator = PromptGenerator([concept], templates, seed, split="calibration")
    found = []
    for _ in range(count):
        kind, phrases = rng.choice(several)
        frame = generator.filled_frame(kind)
        first, second = rng.sample(phrases, 2)
        found.append((insert(frame, first), insert(frame, second)))
    return found
