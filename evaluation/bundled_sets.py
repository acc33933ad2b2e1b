"""The sets that need no download: held-out phrases of a concept file in held-out frames, and what is made of them."""

import random
from collections.abc import Iterator

from sanitizer.prompts.concepts import Concept, Pair, load_concepts
from sanitizer.prompts.generator import PromptGenerator
from sanitizer.prompts.obfuscation import OBFUSCATIONS
from sanitizer.prompts.templates import Templates, insert, load_templates

from .prompt_sets import PromptSet

HELD_OUT, OBFUSCATED, GARBLED = "held_out", "obfuscated", "garbled"
BENIGN, LOOK_ALIKES = "held_out_benign", "held_out_look_alikes"
PROBE_PAIRS, PROBE_BENIGN = "probe_pairs", "probe_benign"
PROBE = "probe"
"""Role of the sets on which the probes for what is left of a concept are trained: training phrases, never held-out."""
PROBE_SEED = 7919
"""Added to the seed, so that no probe sees the very prompts that the methods are tuned on."""
SCOPES = ("phrase", "prompt")


def bundled_sets(concept: str, examples: int, limit: int | None, seed: int) -> list[PromptSet]:
    """The sets of one concept, at most `limit` prompts (or pairs) each; `examples` pairs to train probes on."""
    limit = limit or 10**9
    concepts, templates = load_concepts([concept]), load_templates()
    chosen = next(c for c in concepts if c.name == concept)
    source = "concepts/, phrases and frames kept from training"
    pairs = [pair for pair in chosen.pairs if pair.held_out]
    random.Random(f"{seed}-{concept}").shuffle(pairs)
    generator = PromptGenerator(concepts, templates, seed, split="held_out")
    held_out = [generator.unit(chosen, pair) for pair in pairs[:limit]]
    garbled = [_garbled(generator, pair) for pair in pairs[:limit]]
    obfuscated, labels = _obfuscated(generator, pairs, limit)
    sets = [
        _paired(HELD_OUT, "Held-out phrases", "explicit", concept, [(u.text, s) for u, s in held_out], source),
        _paired(OBFUSCATED, "Held-out phrases, obfuscated", "obfuscated", concept, obfuscated, source, labels),
        _paired(GARBLED, "Held-out phrases in garbled text", "adversarial", concept, garbled, source),
    ]
    if generator.hard:
        own = PromptGenerator([chosen], templates, seed, split="held_out")
        looks = [own.hard_negative() for _ in range(min(limit, 2 * len(own.hard)))] if own.hard else []
        if looks:
            sets.append(PromptSet(LOOK_ALIKES, "Held-out look-alikes", "borderline", looks, concept, source=source))
    return sets + probe_sets(chosen, concepts, templates, examples, seed)


def benign_set(count: int, seed: int) -> PromptSet:
    """Harmless prompts and frames kept from training, for all concepts."""
    generator = PromptGenerator(load_concepts(), load_templates(), seed, split="held_out")
    return PromptSet(BENIGN, "Held-out harmless prompts", "benign", generator.plain(count), source="concepts/")


def probe_sets(
    concept: Concept, concepts: list[Concept], templates: Templates, examples: int, seed: int
) -> list[PromptSet]:
    """Training phrases in training frames with their safe twins, and harmless prompts and look-alikes."""
    generator = PromptGenerator(concepts, templates, seed + PROBE_SEED)
    drawn = [generator.unit(concept, pair) for pair in cycled(concept, generator.rng, examples)]
    benign = harmless(generator, examples)
    return [
        _paired(PROBE_PAIRS, "Probe training, pairs", PROBE, concept.name, [(u.text, s) for u, s in drawn], ""),
        PromptSet(PROBE_BENIGN, "Probe training, harmless", PROBE, benign, concept.name),
    ]


def harmless(generator: PromptGenerator, count: int) -> list[str]:
    """Harmless prompts, every third a look-alike where the concept has some."""
    return [generator.hard_negative() if generator.hard and i % 3 == 0 else generator.benign() for i in range(count)]


def cycled(concept: Concept, rng: random.Random, count: int) -> Iterator[Pair]:
    """`count` training pairs, every one as often as the others."""
    pairs = [pair for pair in concept.pairs if not pair.held_out]
    for at in range(count):
        if at % len(pairs) == 0:
            rng.shuffle(pairs)
        yield pairs[at % len(pairs)]


def _garbled(generator: PromptGenerator, pair: Pair) -> tuple[str, str]:
    """The phrase amid words in no order and fragments, as optimised prompts look; the same around the twin."""
    frame = generator.salad("{phrase}")
    return frame.replace("{phrase}", pair.target), frame.replace("{phrase}", pair.anchor)


def _obfuscated(generator: PromptGenerator, pairs: list[Pair], limit: int) -> tuple[list[tuple[str, str]], list[str]]:
    """Every obfuscation, of the phrase alone and of the whole prompt, on about as many pairs each."""
    kinds = [(name, scope) for name in OBFUSCATIONS for scope in SCOPES]
    drawn, labels = [], []
    for at in range(min(limit, 2 * len(pairs))):
        name, scope = kinds[at % len(kinds)]
        pair = pairs[at % len(pairs)]
        change, frame = OBFUSCATIONS[name], generator.filled_frame(pair.kind)
        seed = generator.rng.random()
        # The twin gets the same draws: it differs in the phrase, not in the manner of writing.
        texts = []
        for phrase in (pair.target, pair.anchor):
            rng = random.Random(seed)
            whole = scope == "prompt"
            texts.append(change(insert(frame, phrase), rng) if whole else insert(frame, change(phrase, rng)))
        drawn.append(tuple(texts))
        labels.append(f"{name}, {scope}")
    return drawn, labels


def _paired(name, title, role, concept, pairs, source, labels=None) -> PromptSet:
    return PromptSet(name, title, role, [u for u, _ in pairs], concept, [s for _, s in pairs], labels, source)
