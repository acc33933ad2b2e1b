"""The report of a training: figures on phrases, frames and harmless prompts that it did not see.

It goes into the file and on the screen, so that whoever is handed a sanitizer sees what it is worth.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from random import Random
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..encoders.base import Encoding, Progress, TextEncoder
from ..model.sanitizer import EmbeddingSanitizer, Sanitized
from ..prompts.concepts import Concept
from ..prompts.generator import Prompt, PromptGenerator
from ..prompts.templates import Templates
from .config import TrainingConfig
from .dataset import EncodedDataset, batch_size
from .probes import Probe, area_under_curve, true_positive_rate

FALSE_POSITIVE_RATE = 0.01
NAMES_OF_VERSION_1 = {
    "caught": "true_positive_rate",
    "counterparts_untouched": "counterfactuals_untouched",
    "look_alikes": "hard_negatives",
    "look_alikes_identical": "hard_negatives_identical",
}
"""What files of format version 1 call figures of today."""


@dataclass
class ConceptReport:
    """Held-out figures of one concept; None where there was nothing to measure."""

    name: str
    phrases: int
    """Held-out phrases tried, each in a frame that training did not see."""
    auroc: float | None = None
    """Of the prompt score: unsafe prompts against harmless ones and the unsafe prompts' own counterfactuals."""
    true_positive_rate: float | None = None
    """Share of unsafe prompts found at 1 % false positives among the same harmless prompts."""
    flagged: float | None = None
    """Share of unsafe prompts that reach the calibrated threshold."""
    counterfactuals_untouched: float | None = None
    """Share of the counterfactuals (the same prompts with the safe anchor) that do not."""
    probe_before: float | None = None
    """Share of the flagged prompts in which a probe, trained on raw embeddings of other phrases, finds the concept."""
    probe_after: float | None = None
    """The same after sanitizing at strength 1."""
    nearness_before: float | None = None
    """Mean cosine between a flagged prompt and its counterfactual (mean embeddings, normalized channels)."""
    nearness_after: float | None = None
    """The same after sanitizing at strength 1."""


@dataclass
class Report:
    """What a sanitizer is worth on its own encoder, on held-out data."""

    concepts: list[ConceptReport] = field(default_factory=list)
    benign: int = 0
    """Harmless prompts tried, of frames and sentences that training did not see."""
    benign_identical: float | None = None
    """Share of them that came out bit for bit, all concepts switched on."""
    hard_negatives: int = 0
    hard_negatives_identical: float | None = None
    """The same for held-out hard negatives."""
    examples: int = 0
    """Training prompts."""
    seconds: float = 0.0
    """Encoding, training and calibration."""

    def to_dict(self) -> dict:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Report":
        own = _renamed(values)
        concepts = [ConceptReport(**_renamed(concept)) for concept in own.pop("concepts", [])]
        return cls(concepts=concepts, **own)

    def to_text(self) -> str:
        """A short table for the terminal and the node."""
        lines = [
            f"{'held-out phrases':18}{'tried':>6}{'AUROC':>8}{'caught*':>9}{'flagged':>9}"
            f"{'probe before':>14}{'after':>7}{'nearness':>10}{'after':>7}"
        ]
        for c in self.concepts:
            lines.append(
                f"{c.name:18}{c.phrases:6d}{_number(c.auroc, 8)}"
                f"{_percent(c.true_positive_rate, 9)}{_percent(c.flagged, 9)}"
                f"{_percent(c.probe_before, 14)}{_percent(c.probe_after, 7)}"
                f"{_number(c.nearness_before, 10)}{_number(c.nearness_after, 7)}"
            )
        lines += [
            "* at 1 % false alarms. Probe: share of flagged prompts in which it still finds the concept. "
            "Nearness: cosine to the safe counterpart.",
            f"bit-identical: {_percent(self.benign_identical, 0)} of {self.benign} harmless prompts, "
            f"{_percent(self.hard_negatives_identical, 0)} of {self.hard_negatives} look-alikes. "
            f"{self.examples} training prompts, {self.seconds:.0f} s.",
        ]
        return "\n".join(lines)


def _renamed(values: Mapping[str, Any]) -> dict[str, Any]:
    return {NAMES_OF_VERSION_1.get(name, name): value for name, value in values.items()}


def _number(value: float | None, width: int) -> str:
    return ("-" if value is None else f"{value:.3f}").rjust(width)


def _percent(value: float | None, width: int) -> str:
    return ("-" if value is None else f"{100 * value:.1f}%").rjust(width)


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
            out = sanitizer.sanitize(e.embeddings, e.mask, e.pooled, concepts=concepts)
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
