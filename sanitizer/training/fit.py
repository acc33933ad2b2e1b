"""Training: a text encoder and concepts in, a sanitizer and its report out.

Two trunks, trained one after the other on the same encodings: the score net with token and prompt labels, and the
erase net on aligned embeddings of target and anchor. Then the calibration, on harmless prompts that training did not
see. Deterministic for a seed on one machine.
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ..encoders.base import Progress, TextEncoder
from ..errors import SanitizerError
from ..model.config import UNLIMITED, ConceptSpec, SanitizerConfig
from ..model.header import LANGUAGES, MOST_REPLACEMENTS, TRAINED_ON, Header, Replacement
from ..model.provenance import Provenance
from ..model.sanitizer import EmbeddingSanitizer
from ..prompts.concepts import FOLDER, Concept, available, digest, evenly, load_concept, load_concepts
from ..prompts.generator import Prompt, PromptGenerator, full_size, training_prompts
from ..prompts.languages import Language, load_languages, with_languages
from ..prompts.templates import Templates, load_templates
from .calibration import calibrate
from .config import TrainingConfig
from .dataset import EncodedDataset, Labels, Spans, measure_encoder
from .detector import train_detector
from .eraser import train_eraser
from .known_languages import known_languages
from .optimised import optimised_prompts
from .provenance import measure_provenance
from .report import Report, make_report

FEWEST_PROMPTS = 64
TIMED_STEPS = 5
"""Optimiser steps by which :func:`step_seconds` tells the time of one."""
LICENCE = "CC-BY-4.0 for the trained weights, as for the concept files; the text encoder keeps its own licence"


def fit(
    encoder: TextEncoder,
    concepts: Sequence[Concept] | None = None,
    *,
    examples: int | None = None,
    steps: int | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    progress: Progress | None = None,
    templates: Templates | None = None,
    languages: Sequence[Language] | None = None,
    start: EmbeddingSanitizer | None = None,
    encodings: Path | None = None,
    config: TrainingConfig | None = None,
) -> tuple[EmbeddingSanitizer, Report]:
    """Train a sanitizer for an encoder.

    examples: number of training prompts, None for the full set (:func:`pairs.full_size`). steps: optimiser steps of
    both nets together, None for the default. device: where to train, None for the CPU. progress is called often with
    (stage, done, total, values); what it raises interrupts the training, and nothing is written. languages: beside
    English, None for those of concepts/languages/ where no templates are given; phrases of a language that the encoder
    does not know are left out. start: a sanitizer of the same concepts for an encoder that differs in its weights
    alone; training goes on from its networks, with smaller steps and, where `steps` does not say, fewer of them.
    encodings: a folder for the encoded prompts, gigabytes for a full set; a training that was interrupted finds them
    there and goes on. It is the caller's to delete. config: every other number.

    Returns the sanitizer, in evaluation mode on the CPU, with the report and the replacement pairs of the user's own
    concepts in its header, and the report.
    Raises SanitizerError for settings that cannot work and encoders that put out NaN.
    """
    began = time.monotonic()
    progress = progress or (lambda stage, done, total, values: None)
    concepts = load_concepts() if concepts is None else list(concepts)
    if languages is None:
        # Whoever brings templates brings the harmless text, in whatever language it is.
        languages = load_languages() if templates is None else ()
    templates = templates or load_templates()
    config = config or TrainingConfig()
    if examples is not None and examples < FEWEST_PROMPTS:
        raise SanitizerError(f"Examples: expected at least {FEWEST_PROMPTS}, found {examples}.")
    if steps is not None and steps < 2:
        raise SanitizerError(f"Steps: expected at least 2, found {steps}.")
    # ComfyUI runs nodes under inference mode, whose tensors cannot be trained.
    with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng():
        torch.manual_seed(seed)
        sample = training_prompts(concepts, templates, config.statistics_prompts, seed, config.prompts)
        normalizer = measure_encoder(encoder, [prompt.text for prompt in sample], config)
        count = full_size(concepts, config.prompts) if examples is None else examples
        phrases = config.language_phrases_for(count, len(languages))
        told_apart = known_languages(encoder, normalizer, languages, concepts, phrases, seed)
        known = [code for code, value in told_apart.items() if value >= config.language_known]
        every, frames = with_languages(concepts, templates, languages, known)
        count = full_size(every, config.prompts) if examples is None else examples
        config = config.for_examples(count, steps, warm=start is not None)
        prompts = training_prompts(every, frames, count, seed, config.prompts)
        if config.optimised:
            words = PromptGenerator(concepts, templates, seed, config=config.prompts).words
            prompts += optimised_prompts(encoder, normalizer, prompts, words, config, seed, progress)
        texts = [prompt.text for prompt in prompts]
        dataset = EncodedDataset.encode(encoder, texts, config, progress, normalizer, folder=encodings)
        prompts = _whole_units(prompts, len(dataset))
        labels = Labels(prompts, dataset, concepts)
        provenance = measure_provenance(encoder, dataset, texts[: len(dataset)], config, seed, progress)
        sanitizer = _new_sanitizer(encoder, concepts, dataset, labels, provenance, config)
        if start is not None:
            sanitizer.take_networks(start)
        sanitizer.to(device or "cpu").train()
        spans = Spans(dataset, labels, sanitizer.config.score_span)
        train_detector(sanitizer, spans, config, progress)
        train_eraser(sanitizer, dataset, labels, prompts, config, progress, begun=start is not None)
        sanitizer.cpu().eval().requires_grad_(False)
        calibrate(sanitizer, encoder, every, frames, spans, config, examples=len(dataset), seed=seed, progress=progress)
    seconds = time.monotonic() - began
    report = make_report(
        sanitizer, encoder, concepts, templates, prompts, dataset, config,
        languages=languages, known=known, seed=seed, progress=progress,
    )  # fmt: skip
    report.examples, report.seconds = len(prompts), seconds
    sanitizer.header = Header(
        encoder=encoder.fingerprint,
        training={
            "examples": len(prompts),
            "steps": config.score_steps + config.erase_steps,
            "seed": seed,
            "config": config.to_dict(),
            LANGUAGES: {code: round(value, 3) for code, value in told_apart.items()},
            TRAINED_ON: {concept.name: digest(concept) for concept in concepts},
        },
        report=report.to_dict(),
        licence=LICENCE,
        replacements=own_replacements(concepts),
    )
    return sanitizer, report


def step_seconds(
    encoder: TextEncoder,
    concept: Concept,
    *,
    device: str | torch.device | None = None,
    templates: Templates | None = None,
    seed: int = 0,
) -> tuple[float, float]:
    """Seconds of an optimiser step of the score net and of the erase net, timed on a few of each for this encoder; what
    a training of that many steps takes beside its encoding. device as for :func:`fit`. Encodes about
    :data:`FEWEST_PROMPTS` prompts."""
    times: dict[str, list[float]] = {}

    def clock(stage: str, _done: int, _total: int, _values: dict[str, float]) -> None:
        times.setdefault(stage, []).append(time.monotonic())

    config = TrainingConfig(score_steps=TIMED_STEPS, erase_steps=TIMED_STEPS)
    with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng():
        torch.manual_seed(seed)
        prompts = training_prompts([concept], templates or load_templates(), FEWEST_PROMPTS, seed, config.prompts)
        dataset = EncodedDataset.encode(encoder, [prompt.text for prompt in prompts], config, clock)
        labels = Labels(prompts, dataset, [concept])
        sanitizer = _new_sanitizer(encoder, [concept], dataset, labels, None, config)
        sanitizer.to(device or "cpu").train()
        train_detector(sanitizer, Spans(dataset, labels, sanitizer.config.score_span), config, clock)
        train_eraser(sanitizer, dataset, labels, prompts, config, clock)
    # From the end of the first step, which is slower, to that of the last.
    score, erase = ((times[stage][-1] - times[stage][0]) / (TIMED_STEPS - 1) for stage in ("score net", "erase net"))
    return score, erase


def _whole_units(prompts: list[Prompt], encoded: int) -> list[Prompt]:
    """The encoded part, its last targets cut off where their anchors were not encoded."""
    kept = prompts[:encoded]
    return [replace(p, anchor=None) if p.anchor is not None and p.anchor >= encoded else p for p in kept]


def _new_sanitizer(
    encoder: TextEncoder,
    concepts,
    dataset: EncodedDataset,
    labels: Labels,
    provenance: Provenance | None,
    training: TrainingConfig,
) -> EmbeddingSanitizer:
    fingerprint, normalizer = encoder.fingerprint, dataset.normalizer
    if not labels.aligned:
        raise SanitizerError("Training: expected pairs of target and anchor, found none. Give more examples.")
    width, pooled = fingerprint.width, fingerprint.pooled_width
    names = [concept.name for concept in concepts]
    config = SanitizerConfig(
        concepts=tuple(ConceptSpec(c.name, c.context, {n: v for n, v in c.lowers if n in names}) for c in concepts),
        width=width,
        pooled_width=pooled,
        window=normalizer.window or UNLIMITED,
        constant_embeddings=len(normalizer.constant),
        score_span=0 if normalizer.window else training.score_span,
        gated=True,
        strength_curve=training.strength_curve,
        verified=True,
        directions=0 if provenance is None else len(provenance.directions),
    )
    sanitizer = EmbeddingSanitizer(config)
    sanitizer.set_statistics(normalizer, provenance)
    return sanitizer


def own_replacements(concepts: Sequence[Concept]) -> dict[str, list[Replacement]]:
    """Concept -> its pairs, without what is held out, of the concepts that can be erased and that differ from the
    files in concepts/ or have none there: re-encoding finds the others' pairs in those files."""
    own = {}
    for concept in concepts:
        pairs = [pair for pair in concept.pairs if not pair.held_out]
        if concept.context or not pairs:
            continue
        if concept.name in available() and load_concept(FOLDER / f"{concept.name}.toml").pairs == concept.pairs:
            continue
        kept = (Replacement(p.target, p.anchor, p.canonical) for p in evenly(pairs, MOST_REPLACEMENTS))
        own[concept.name] = list(dict.fromkeys(kept))
    return own
