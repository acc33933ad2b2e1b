"""Adoption: a sanitizer for an encoder whose weights alone differ from those of the one it was trained on, as a LoRA or
a fine-tune leaves them, without training.

The networks and thresholds stay; the statistics of the channels, and those that tell the encoder's own embeddings, are
measured anew. Then the very prompts of the sanitizer's own report are tried on the new encoder, so that two figures of
the same prompts are compared, and the sanitizer is kept only where it is as good as it was, within stated bounds.
Thresholds are not set anew: a thousand harmless prompts tell them less well than the many of the training did (of
unseen phrases 46 % were flagged with such thresholds and 48 % with those of the file, on its own encoder, `minilm`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from ..encoders.base import Progress, TextEncoder
from ..errors import SanitizerError
from ..model.config import UNLIMITED, SanitizerConfig, readable
from ..model.header import ADOPTED, TRAINED_ON
from ..model.normalizer import Normalizer
from ..model.report import Report
from ..model.sanitizer import EmbeddingSanitizer
from ..prompts.concepts import Concept, digest
from ..prompts.generator import training_prompts
from ..prompts.templates import Templates, load_templates
from .config import TrainingConfig
from .dataset import EncodedDataset, measure_encoder
from .provenance import measure_provenance
from .report import make_report


@dataclass(frozen=True)
class AdoptionConfig:
    """Bounds of an adoption, in shares of prompts; a sanitizer that is worse by more than one of them is not kept."""

    prompts: int = 1024
    """Training prompts that the statistics are measured on, at most; a sixteenth of those that the sanitizer was
    trained on where that is fewer."""
    fewest: int = 128
    """And at least."""
    recall: float = 0.02
    """Of unseen phrases, all concepts together, that are flagged no more."""
    recall_of_one: float = 0.06
    """The same of one concept, which has a seventh of the phrases."""
    harmless: float = 0.01
    """Of harmless prompts that are touched where they were not."""
    gain: float = 0.1
    """Of what erasing brings a flagged prompt nearer to its safe counterpart, in cosines."""


@dataclass(frozen=True)
class Adoption:
    """A sanitizer with the statistics of another encoder, and how it does there."""

    sanitizer: EmbeddingSanitizer
    """In evaluation mode on the CPU, its header that of the new encoder."""
    before: Report
    """On the encoder that it was trained on."""
    after: Report
    """On the new one, of the same prompts."""
    reasons: tuple[str, ...]
    """What is worse than it may be, in words; nothing: it is kept."""

    @property
    def kept(self) -> bool:
        return not self.reasons

    @property
    def near(self) -> bool:
        """Whether its networks are worth training on from: of the sizes of today, and they still find half of what they
        found."""
        config, names = self.sanitizer.config, self.sanitizer.erasable
        today = SanitizerConfig(config.concepts, config.width, gated=True)
        sizes = ("gated", "heads", "score_width", "erase_width", "erase_blocks")
        return all(getattr(config, name) == getattr(today, name) for name in sizes) and (
            2 * (self.after.found(names) or 0.0) >= (self.before.found(names) or 0.0)
        )

    def beats(self, trained: Report, config: AdoptionConfig | None = None) -> bool:
        """Whether it finds more unseen phrases than what was trained on from it, and leaves as many harmless prompts as
        they are, within the bound. A quarter of a set may find less than the networks did before."""
        names, bound = self.sanitizer.erasable, (config or AdoptionConfig()).harmless
        more = (self.after.found(names) or 0.0) > (trained.found(names) or 0.0)
        return more and (self.after.benign_identical or 0.0) >= (trained.benign_identical or 0.0) - bound


def adopt(
    encoder: TextEncoder,
    known: EmbeddingSanitizer,
    concepts: Sequence[Concept],
    *,
    templates: Templates | None = None,
    progress: Progress | None = None,
    config: AdoptionConfig | None = None,
) -> Adoption:
    """Try a sanitizer on an encoder of the same kind that it was not trained on.

    known: a trained sanitizer; it is left as it is. concepts: all of its concepts, in its order, with their held-out
    phrases. Raises SanitizerError where the encoder's embeddings have another form (widths, windows, constant
    beginning), where `concepts` are not those that the sanitizer was trained on, and where its file has no figures to
    compare with.
    """
    progress = progress or (lambda stage, done, total, values: None)
    config, training, templates = config or AdoptionConfig(), TrainingConfig(), templates or load_templates()
    before, seed, examples = _known(known, concepts)
    with torch.inference_mode(False), torch.random.fork_rng():
        torch.manual_seed(seed)
        prompts = training_prompts(concepts, templates, training.statistics_prompts, seed, training.prompts)
        normalizer = measure_encoder(encoder, [prompt.text for prompt in prompts], training)
        prompts = prompts[: min(config.prompts, max(config.fewest, examples // 16))]
        texts = [prompt.text for prompt in prompts]
        dataset = EncodedDataset.encode(encoder, texts, training, progress, normalizer)
        sanitizer = _copied(known)
        _check_form(encoder, sanitizer, normalizer)
        provenance = None
        if sanitizer.provenance is not None:
            directions = sanitizer.provenance.directions
            provenance = measure_provenance(encoder, dataset, texts, training, seed, progress, directions)
        sanitizer.set_statistics(normalizer, provenance)
        after = make_report(
            sanitizer, encoder, concepts, templates, prompts, dataset, training, like=before, seed=seed,
            progress=progress,
        )  # fmt: skip
    after.examples = examples
    assert known.header is not None
    origin = {"from": str(known.fingerprint), "found": round(before.found(known.erasable) or 0.0, 4)}
    sanitizer.header = replace(
        known.header,
        encoder=encoder.fingerprint,
        training={**known.header.training, ADOPTED: origin},
        report=after.to_dict(),
    )
    return Adoption(sanitizer, before, after, tuple(_reasons(before, after, known.erasable, config)))


def _known(known: EmbeddingSanitizer, concepts: Sequence[Concept]) -> tuple[Report, int, int]:
    """The sanitizer's own report, the seed of its training, and its number of training prompts."""
    header = known.header
    before = Report.from_dict(header.report) if header else Report()
    if header is None or before.found(known.erasable) is None or before.benign_identical is None:
        raise SanitizerError("Adoption: the sanitizer's file has no figures to compare with. Train without it.")
    digests = {concept.name: digest(concept) for concept in concepts}
    if header.training.get(TRAINED_ON) != digests or known.concepts != tuple(digests):
        raise SanitizerError("Adoption: the sanitizer was trained on other word lists than these. Train without it.")
    seed, examples = header.training.get("seed", 0), header.training.get("examples", 0)
    assert isinstance(seed, int) and isinstance(examples, int)
    return before, seed, examples


def _copied(known: EmbeddingSanitizer) -> EmbeddingSanitizer:
    sanitizer = EmbeddingSanitizer(known.config)
    sanitizer.load_state_dict(known.state_dict())
    return sanitizer.eval().requires_grad_(False)


def _check_form(encoder: TextEncoder, sanitizer: EmbeddingSanitizer, normalizer: Normalizer) -> None:
    config, own = sanitizer.config, encoder.fingerprint
    wanted = (config.width, config.pooled_width, config.window, config.constant_embeddings)
    found = (own.width, own.pooled_width, normalizer.window or UNLIMITED, len(normalizer.constant))
    if found != wanted:
        raise SanitizerError(
            f"Adoption: expected an encoder of channels, pooled channels, window and constant embeddings {wanted}, "
            f"found {found}. Train a sanitizer for it."
        )


def _reasons(before: Report, after: Report, erasable: Sequence[str], config: AdoptionConfig) -> Iterator[str]:
    for names, most in ((erasable, config.recall), *(((name,), config.recall_of_one) for name in erasable)):
        was, found = before.found(names), after.found(names)
        if was is not None and found is not None and was - found > most:
            what = "all concepts" if len(names) > 1 else readable(names[0])
            yield f"{100 * found:.0f} % of unseen phrases are found, and not {100 * was:.0f} % ({what})"
    was, untouched = before.benign_identical or 0.0, after.benign_identical or 0.0
    if was - untouched > config.harmless:
        yield f"{100 * untouched:.1f} % of harmless prompts are untouched, and not {100 * was:.1f} %"
    was, gained = _gain(before), _gain(after)
    if gained < (1 - config.gain) * was:
        yield f"erasing brings prompts nearer to their safe counterparts by {gained:.3f}, and not by {was:.3f}"


def _gain(report: Report) -> float:
    """Mean over concepts of what erasing gains in nearness, 0 where none was measured."""
    gains = [
        c.nearness_after - c.nearness_before
        for c in report.concepts
        if c.nearness_before is not None and c.nearness_after is not None
    ]
    return sum(gains) / len(gains) if gains else 0.0
