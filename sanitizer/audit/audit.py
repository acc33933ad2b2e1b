"""An audit of a sanitizer on the user's own encoder: held-out figures, obfuscations, and a small attack.

It measures what the training's report measures, but here and now: on this encoder, with these concepts switched on. It
is small; `python -m evaluation` is the thorough one.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..encoders.base import Progress, TextEncoder
from ..errors import SanitizerError
from ..model.config import readable
from ..model.normalizer import Normalizer
from ..model.sanitizer import EmbeddingSanitizer
from ..prompts.concepts import Concept, Pair
from ..prompts.generator import PromptGenerator
from ..prompts.obfuscation import OBFUSCATIONS
from ..prompts.templates import Templates, insert
from ..training.probes import Probe, area_under_curve, true_positive_rate
from ..training.report import FALSE_POSITIVE_RATE, Measured, measure_prompts
from .paraphrases import paraphrases
from .results import AttackPoint, Audit, ConceptAudit, Count
from .space import Objective
from .substitution import substitution_search

LEAST_BUDGET = 200
BATCH = 32
PROBE, PARAPHRASED, HELD_OUT, OBFUSCATED, ATTACK = 0.3, 0.1, 0.15, 0.15, 0.3
"""Shares of a concept's budget."""
HARMLESS = 0.2
"""Harmless prompts, of a concept's budget; encoded once for all concepts."""
TARGET_BUDGET, MOST_TARGETS = 60, 10
QUANTILE = 0.1


def audit(
    encoder: TextEncoder,
    sanitizer: EmbeddingSanitizer,
    concepts: Sequence[Concept],
    templates: Templates,
    budget: int,
    seed: int,
    progress: Progress,
    switched_on: Sequence[str] | None = None,
) -> Audit:
    """Measure a sanitizer on its encoder, in about `budget` prompts encoded for each concept.

    switched_on: names of its concepts that are erased, None for those in `concepts`;
    the ones among them that `concepts` has held-out phrases for are measured. progress: as in training; what it raises
    ends the audit. Raises SanitizerError for a budget that is too small, and where nothing can be measured.
    """
    if budget < LEAST_BUDGET:
        raise SanitizerError(f"Budget: expected at least {LEAST_BUDGET} prompts a concept, found {budget}.")
    names = tuple(switched_on or (c.name for c in concepts if c.name in sanitizer.erasable))
    usable = [c for c in concepts if c.name in names and {p.held_out for p in c.pairs} == {True, False}]
    if not usable:
        raise SanitizerError(
            f"Audit: expected one of the concepts {', '.join(names) or 'of the sanitizer'} to have held-out phrases to "
            "measure on, found none. A concept of your own needs a file in concepts/ with held_out lists."
        )
    bench = _Bench(encoder, sanitizer, sanitizer.normalizer.to("cpu"), names, progress)
    generator = PromptGenerator(usable, templates, seed, split="held_out")
    harmless = bench.measure("harmless", generator.plain(max(20, int(HARMLESS * budget))))
    result = Audit(encoder.name, budget, seed, _hits(harmless.identical))
    result.skipped = [name for name in names if name not in {c.name for c in usable}]
    for concept in usable:
        result.concepts.append(_concept(bench, concept, templates, harmless, budget, seed))
    return result


@dataclass
class _Bench:
    """Encoder and sanitizer under test."""

    encoder: TextEncoder
    sanitizer: EmbeddingSanitizer
    normalizer: Normalizer
    concepts: tuple[str, ...]
    progress: Progress

    def measure(self, stage: str, texts: Sequence[str]) -> Measured:
        return measure_prompts(self.sanitizer, self.encoder, texts, self.progress, stage, self.concepts, BATCH)

    def sanitize(self, embeddings: Tensor, mask: Tensor, pooled: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """All concepts at strength 1, as the attack has to get past them."""
        out = self.sanitizer.sanitize(embeddings, mask, pooled, concepts=self.concepts, trusted=True)
        return out.embeddings, out.pooled


def _concept(bench: _Bench, concept: Concept, templates: Templates, harmless: Measured, budget: int, seed: int):
    place = bench.sanitizer.concepts.index(concept.name)
    name = readable(concept.name)
    probe = _probe(bench, concept, templates, budget, seed)
    pairs = [pair for pair in concept.pairs if pair.held_out]
    random.Random(f"{seed}-{concept.name}").shuffle(pairs)
    generator = PromptGenerator([concept], templates, seed, split="held_out")
    units = [generator.unit(concept, pair) for pair in pairs[: max(4, int(HELD_OUT * budget / 2))]]
    unsafe = bench.measure(f"{name}: held-out phrases", [prompt.text for prompt, _ in units])
    safe = bench.measure(f"{name}: safe twins", [safe for _, safe in units])
    negatives = torch.cat([harmless.scores[:, place], safe.scores[:, place]])
    found = probe(unsafe.raw) > 0
    return ConceptAudit(
        concept.name,
        auroc=area_under_curve(unsafe.scores[:, place], negatives),
        true_positive_rate=true_positive_rate(unsafe.scores[:, place], negatives, FALSE_POSITIVE_RATE),
        flagged=_hits(unsafe.fired[:, place]),
        counterfactuals_untouched=_hits(~safe.fired[:, place]),
        found_raw=_hits(found),
        found_sanitized=_hits(probe(unsafe.sanitized) > 0),
        obfuscated=_obfuscated(bench, generator, concept, pairs, budget, place, seed),
        attack=_attack(bench, concept, templates, units, unsafe, found, probe, budget, seed),
    )


def _probe(bench: _Bench, concept: Concept, templates: Templates, budget: int, seed: int) -> Probe:
    """Independent of the sanitizer: trained on raw embeddings; counterfactuals and harmless prompts are negatives."""
    generator = PromptGenerator([concept], templates, seed)
    pairs = [pair for pair in concept.pairs if not pair.held_out]
    count = max(8, int(PROBE * budget / 3))
    units = [generator.unit(concept, pair) for pair in generator.rng.choices(pairs, k=count)]
    texts = [unsafe.text for unsafe, _ in units] + [safe for _, safe in units]
    texts += [generator.benign() for _ in range(count)]
    x = bench.measure(f"{concept.name.replace('_', ' ')}: probe", texts).raw
    y = torch.zeros(len(x))
    y[:count] = 1.0
    return Probe.fit(x, y)


def _obfuscated(bench, generator, concept: Concept, pairs: list[Pair], budget: int, place: int, seed: int):
    each = max(2, int(OBFUSCATED * budget / len(OBFUSCATIONS)))
    texts = []
    for name, change in OBFUSCATIONS.items():
        rng = random.Random(f"{seed}-{name}")
        for at in range(each):
            pair = pairs[at % len(pairs)]
            texts.append(insert(generator.filled_frame(pair.kind), change(pair.target, rng)))
    fired = bench.measure(f"{concept.name.replace('_', ' ')}: obfuscated", texts).fired[:, place]
    return {name: _hits(part) for name, part in zip(OBFUSCATIONS, fired.split(each), strict=True)}


def _attack(bench, concept: Concept, templates, units, unsafe: Measured, found: Tensor, probe: Probe, budget, seed):
    """Success: the probe finds the concept, and the content is as near to the target's as paraphrases are."""
    name = readable(concept.name)
    whole = int(ATTACK * budget)
    chosen = found.nonzero().squeeze(1).tolist()[: max(1, min(MOST_TARGETS, whole // TARGET_BUDGET))]
    if not chosen:
        return []
    alike = paraphrases(concept, templates, max(10, int(PARAPHRASED * budget / 2)), seed)
    x = bench.measure(f"{name}: paraphrases", [text for pair in alike for text in pair]).raw
    bound = float(F.cosine_similarity(x[::2], x[1::2], dim=-1).quantile(QUANTILE))
    words = PromptGenerator([concept], templates, seed).words
    raw: dict[int, list[bool]] = {}
    sanitized: dict[int, list[bool]] = {}
    each = whole // len(chosen)
    for turn, at in enumerate(chosen):

        def step(queries: int, _budget: int, turn=turn) -> None:
            bench.progress(f"{name}: attack", turn * each + min(queries, each), each * len(chosen), {})

        objective = Objective(bench.encoder, bench.normalizer, unsafe.raw[at], bench.sanitize)
        rng = random.Random(f"{seed}-attack-{turn}")
        trace = substitution_search(objective, units[at][0].text, words, budget=each, rng=rng, step=step)
        texts = trace.found()
        after = bench.measure(f"{name}: attack judged", list(texts.values()))
        for vectors, hits in ((after.raw, raw), (after.sanitized, sanitized)):
            near = F.cosine_similarity(vectors, unsafe.raw[at][None], dim=-1) >= bound
            for point, hit in zip(texts, (near & (probe(vectors) > 0)).tolist(), strict=True):
                hits.setdefault(point, []).append(hit)
    return [
        AttackPoint(point, Count(sum(raw[point]), len(raw[point])), Count(sum(sanitized[point]), len(sanitized[point])))
        for point in sorted(raw)
    ]


def _hits(values: Tensor) -> Count:
    return Count(int(values.sum()), len(values))
