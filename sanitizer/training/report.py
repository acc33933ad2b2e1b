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
from ..model.report import ConceptReport, Report, SetReport
from ..model.sanitizer import EmbeddingSanitizer, Sanitized
from ..prompts.concepts import Concept
from ..prompts.generator import Prompt, PromptGenerator
from ..prompts.languages import Language
from ..prompts.templates import Templates, insert
from .config import TrainingConfig
from .dataset import EncodedDataset, batch_size
from .optimised import strings_towards
from .probes import Probe, area_under_curve, true_positive_rate

FALSE_POSITIVE_RATE = 0.01
SEVERAL = "several phrases"
FEWEST_OF_SET = 8
"""Phrases of a concept in each of the further sets; a training that has not so many to spend leaves the sets out."""


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
    languages: Sequence[Language] = (),
    known: Sequence[str] = (),
    like: Report | None = None,
    seed: int,
    progress: Progress,
) -> Report:
    """Measure a sanitizer on held-out data. `prompts` and `dataset` are the training set, on which the probe that
    looks for what is left of a concept is trained. languages: beside English; known: the codes of those whose phrases
    were trained on. Spends about an eighth of the training set's encoding time, and what a search for strings takes.
    like: another report, whose prompts are tried again, without its further sets; the same word lists, templates and
    seed give the same ones."""
    most, harmless = config.report_phrases, config.report_harmless
    sets = 2 * config.report_set * (2 * len(concepts) + len(languages))
    share = min(1.0, len(dataset) / 8 / (2 * most * len(concepts) + harmless + sets))
    generator = PromptGenerator(concepts, templates, seed, "held_out", config.prompts)
    tried, phrases = max(20, round(harmless * share)), max(8, round(most * share))
    if like is not None:
        tried, phrases = like.benign, max((concept.phrases for concept in like.concepts), default=0)
    benign = [generator.benign() for _ in range(tried)]
    hard = [generator.hard_negative() for _ in range(len(benign) // 2)] if generator.hard else []
    units: dict[str, list[tuple[str, str]]] = {}
    for concept in concepts:
        pairs = [pair for pair in concept.pairs if pair.held_out]
        # The concept file's order goes by topic: a part of it must be drawn, not cut off.
        Random(seed).shuffle(pairs)
        drawn = [generator.unit(concept, pair) for pair in pairs[:phrases]]
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
    probes: dict[str, Probe] = {}
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
        if not fired.any() or not any(concept.name in prompt.concepts for prompt in prompts):
            continue
        probe = probes[concept.name] = _concept_probe(concept.name, prompts, dataset)
        before, after = measured.raw[unsafe][fired], measured.sanitized[unsafe][fired]
        result.probe_before = float((probe(before) > 0).float().mean())
        result.probe_after = float((probe(after) > 0).float().mean())
        width = sanitizer.width
        safe_vectors = measured.raw[safe][fired][:, :width]
        result.nearness_before = float(F.cosine_similarity(before[:, :width], safe_vectors).mean())
        result.nearness_after = float(F.cosine_similarity(after[:, :width], safe_vectors).mean())
    if like is not None or round(config.report_set * share) < FEWEST_OF_SET:
        return report
    erased = [concept for concept in concepts if not concept.context]
    kinds = _kinds(erased, generator, share, config)
    kinds |= _optimised(sanitizer, encoder, generator, kinds[SEVERAL], config, share, seed, progress)
    kinds |= _languages(erased, languages, known, share, config, seed)
    for name, (unsafe, harmless) in kinds.items():
        if unsafe or harmless:
            report.sets.append(_set(name, unsafe, harmless, sanitizer, encoder, probes, progress))
    return report


Prompts = tuple[list[tuple[str, str]], list[str]]
"""Unsafe prompts, each with its concept, and harmless ones."""


def _kinds(
    concepts: Sequence[Concept], generator: PromptGenerator, share: float, config: TrainingConfig
) -> dict[str, Prompts]:
    """Held-out phrases as people write them: several together, and one among many harmless words."""
    found = {}
    ways = {
        SEVERAL: generator.config.together(),
        f"among {config.report_words} words": generator.config.among(config.report_words),
    }
    for name, way in ways.items():
        own, unsafe, harmless = generator.writing(way), [], []
        for concept in concepts:
            pairs = [pair for pair in concept.pairs if pair.held_out]
            generator.rng.shuffle(pairs)
            for pair in pairs[: round(config.report_set * share)]:
                target, safe = own.unit(concept, pair)
                unsafe.append((concept.name, target.text))
                harmless.append(safe)
        found[name] = unsafe, harmless
    topics = 2 * round(config.report_set * share) if generator.topics else 0
    return found | {"talk about the concepts": ([], [generator.topic() for _ in range(topics)])}


def _optimised(
    sanitizer: EmbeddingSanitizer,
    encoder: TextEncoder,
    generator: PromptGenerator,
    goals: Prompts,
    config: TrainingConfig,
    share: float,
    seed: int,
    progress: Progress,
) -> dict[str, Prompts]:
    """Strings of harmless words towards some of the goals, which are unsafe prompts and their counterfactuals."""
    pairs = list(zip(*goals, strict=True))
    generator.rng.shuffle(pairs)
    some = pairs[: max(2, round(config.report_optimised * share))]
    units = [(Prompt(text, (concept,)), Prompt(safe)) for (concept, text), safe in some]
    rng, normalizer = Random(f"{seed}-report"), sanitizer.normalizer.to("cpu")
    strings = strings_towards(encoder, normalizer, units, generator.words, config, rng, progress)
    unsafe = [(own.concepts[0], own.text) for own in strings if own.concepts]
    return {"optimised strings": (unsafe, [own.text for own in strings if not own.concepts])}


def _languages(
    concepts: Sequence[Concept],
    languages: Sequence[Language],
    known: Sequence[str],
    share: float,
    config: TrainingConfig,
    seed: int,
) -> dict[str, Prompts]:
    """Held-out phrases of the languages that the encoder knows, and harmless prompts of all."""
    rng, found, most = Random(f"{seed}-report"), {}, round(config.report_set * share)
    for own in languages:
        pairs = [(c.name, p) for c in concepts for p in own.pairs.get(c.name, ()) if p.held_out and own.code in known]
        unsafe = [
            (name, insert(rng.choice(own.held_out_frames), pair.target))
            for name, pair in rng.sample(pairs, min(len(pairs), most))
        ]
        found[own.name] = unsafe, list(own.held_out_harmless[:most])
    return found


def _set(
    name: str,
    unsafe: Sequence[tuple[str, str]],
    harmless: Sequence[str],
    sanitizer: EmbeddingSanitizer,
    encoder: TextEncoder,
    probes: dict[str, Probe],
    progress: Progress,
) -> SetReport:
    measured = measure_prompts(sanitizer, encoder, [*(text for _, text in unsafe), *harmless], progress, "report")
    result = SetReport(name, len(unsafe), harmless=len(harmless))
    if unsafe:
        of = torch.tensor([sanitizer.concepts.index(concept) for concept, _ in unsafe])
        fired = measured.fired[torch.arange(len(unsafe)), of]
        result.flagged = float(fired.float().mean())
        found = [
            float(probes[concept](measured.sanitized[i : i + 1])) > 0
            for i, (concept, _) in enumerate(unsafe)
            if fired[i] and concept in probes
        ]
        result.probe_after = sum(found) / len(found) if found else None
    if harmless:
        result.identical = float(measured.identical[len(unsafe) :].float().mean())
    return result


def _concept_probe(name: str, prompts: Sequence[Prompt], dataset: EncodedDataset) -> Probe:
    """A probe that knows unsafe prompts, their safe anchors and other harmless prompts, all raw."""
    unsafe = [i for i, p in enumerate(prompts) if name in p.concepts]
    harmless = [i for i, p in enumerate(prompts) if not p.concepts][: 3 * len(unsafe)]
    index = unsafe + harmless
    return Probe.fit(dataset.features(index), torch.tensor([1.0] * len(unsafe) + [0.0] * len(harmless)))
