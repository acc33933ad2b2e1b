"""Makes the report of a training: figures on phrases, frames and harmless prompts that it did not see.

It goes into the file and on the screen, so that whoever is handed a sanitizer sees what it is worth.
"""

from collections.abc import Iterable, Sequence
from random import Random
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..encoders.base import Encoding, Progress, TextEncoder
from ..model.report import ConceptReport, Report
from ..model.sanitizer import EmbeddingSanitizer, Sanitized
from ..prompts.concepts import Concept
from ..prompts.generator import Prompt, PromptGenerator
from ..prompts.templates import Templates
from .config import TrainingConfig
from .dataset import EncodedDataset, batch_size
from .probes import Probe, area_under_curve, true_positive_rate

FALSE_POSITIVE_RATE = 0.01


class Measured(NamedTuple):
    """N prompts before and after sanitizing. K concepts, F probe features."""

    scores: Tensor
    """(N, K) prompt scores."""
    fired: Tensor
    """(N, K) bool."""
    identical: Tensor
    """(N,) bool: the prompt came out bit for bit."""
    raw: Tensor
    """(N, F), see :meth:`.normalizer.Normalizer.features`."""
    sanitized: Tensor
    """(N, F)."""


def measure_prompts(
    sanitizer: EmbeddingSanitizer,
    encoder: TextEncoder,
    texts: Sequence[str],
    progress: Progress,
    stage: str,
    concepts: Iterable[str] | None = None,
    batch: int | None = None,
) -> Measured:
    """Encode and sanitize the prompts at strength 1, `batch` at once; what every report and audit rests on.

    concepts: those that are erased, None for all. progress: what it raises ends the work.
    """
    parts, size = [], batch or batch_size(sanitizer.width)
    features = sanitizer.normalizer.to("cpu").features
    with torch.inference_mode():
        for first in range(0, len(texts), size):
            e = encoder.encode(list(texts[first : first + size]))
            out = sanitizer.sanitize(e.embeddings, e.mask, e.pooled, concepts=concepts, trusted=True)
            raw, after = features(e.embeddings, e.mask, e.pooled), features(out.embeddings, e.mask, out.pooled)
            parts.append((out.scores.prompt.cpu(), out.fired.cpu(), bit_identical(e, out).cpu(), raw, after))
            progress(stage, min(first + size, len(texts)), len(texts), {})
    return Measured(*(torch.cat(column) for column in zip(*parts, strict=True)))


def bit_identical(before: Encoding, after: Sanitized) -> Tensor:
    """(B,) bool: the prompt's embeddings and pooled vector came out as they went in."""
    same = (after.embeddings == before.embeddings).flatten(1).all(dim=1)
    if before.pooled is not None:
        same &= (after.pooled == before.pooled).all(dim=1)
    return same


def make_report(
    sanitizer: EmbeddingSanitizer,
    encoder: TextEncoder,
    concepts: Sequence[Concept],
    templates: Templates,
    prompts: Sequence[Prompt],
    dataset: EncodedDataset,
    config: TrainingConfig,
    *,
    seed: int,
    progress: Progress,
) -> Report:
    """Measure a sanitizer on held-out data. `prompts` and `dataset` are the training set, on which the probe that
    looks for what is left of a concept is trained. Spends about an eighth of the training set's encoding time."""
    most, harmless = config.report_phrases, config.report_harmless
    share = min(1.0, len(dataset) / 8 / (2 * most * len(concepts) + harmless))
    generator = PromptGenerator(concepts, templates, seed, "held_out", config.prompts)
    benign = [generator.benign() for _ in range(max(20, round(harmless * share)))]
    hard = [generator.hard_negative() for _ in range(len(benign) // 2)] if generator.hard else []
    units: dict[str, list[tuple[str, str]]] = {}
    for concept in concepts:
        pairs = [pair for pair in concept.pairs if pair.held_out]
        # The concept file's order goes by topic: a part of it must be drawn, not cut off.
        Random(seed).shuffle(pairs)
        drawn = [generator.unit(concept, pair) for pair in pairs[: max(8, round(most * share))]]
        units[concept.name] = [(target.text, safe) for target, safe in drawn]
    texts = benign + hard + [text for pairs in units.values() for pair in pairs for text in pair]
    measured = measure_prompts(sanitizer, encoder, texts, progress, "report")
    harmless = slice(0, len(benign))
    report = Report(
        benign=len(benign),
        benign_identical=float(measured.identical[harmless].float().mean()),
        hard_negatives=len(hard),
    )
    at = len(benign) + len(hard)
    if hard:
        report.hard_negatives_identical = float(measured.identical[len(benign) : at].float().mean())
    for concept in concepts:
        count = len(units[concept.name])
        unsafe, safe = slice(at, at + 2 * count, 2), slice(at + 1, at + 2 * count, 2)
        at += 2 * count
        result = ConceptReport(concept.name, count)
        report.concepts.append(result)
        if not count:
            continue
        k = sanitizer.concepts.index(concept.name)
        negatives = torch.cat([measured.scores[harmless, k], measured.scores[safe, k]])
        result.auroc = area_under_curve(measured.scores[unsafe, k], negatives)
        result.true_positive_rate = true_positive_rate(measured.scores[unsafe, k], negatives, FALSE_POSITIVE_RATE)
        fired = measured.scores[unsafe, k] >= 0.5 if concept.context else measured.fired[unsafe, k]
        result.flagged = float(fired.float().mean())
        if concept.context:
            continue
        result.counterfactuals_untouched = float((~measured.fired[safe, k]).float().mean())
        if not fired.any():
            continue
        probe = _concept_probe(concept.name, prompts, dataset)
        before, after = measured.raw[unsafe][fired], measured.sanitized[unsafe][fired]
        result.probe_before = float((probe(before) > 0).float().mean())
        result.probe_after = float((probe(after) > 0).float().mean())
        width = sanitizer.width
        safe_vectors = measured.raw[safe][fired][:, :width]
        result.nearness_before = float(F.cosine_similarity(before[:, :width], safe_vectors).mean())
        result.nearness_after = float(F.cosine_similarity(after[:, :width], safe_vectors).mean())
    return report


def _concept_probe(name: str, prompts: Sequence[Prompt], dataset: EncodedDataset) -> Probe:
    """A probe that knows unsafe prompts, their safe anchors and other harmless prompts, all raw."""
    unsafe = [i for i, p in enumerate(prompts) if name in p.concepts]
    harmless = [i for i, p in enumerate(prompts) if not p.concepts][: 3 * len(unsafe)]
    index = unsafe + harmless
    return Probe.fit(dataset.features(index), torch.tensor([1.0] * len(unsafe) + [0.0] * len(harmless)))
