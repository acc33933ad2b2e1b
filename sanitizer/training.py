"""Training: a text encoder and concepts in, a sanitizer and its report out.

Two trunks, trained one after the other on the same encodings: the score net with token and prompt labels, and the
erase net on aligned rows of target and anchor. Then the calibration, on harmless prompts that training did not see.
Deterministic for a seed on one machine.
"""

import time
from collections.abc import Sequence
from dataclasses import replace

import torch

from .calibration import calibrate
from .concepts import Concept, load_concepts
from .encoders.base import TextEncoder
from .encodings import Encodings, Progress, encode_all
from .erase_training import train_eraser
from .errors import SanitizerError
from .labels import Labels
from .model import ConceptSpec, EmbeddingSanitizer, SanitizerConfig
from .optimisation import Settings
from .pairs import Prompt, full_size, training_prompts
from .report import Report, make_report
from .score_training import train_scores
from .templates import Templates, load_templates

RANK = 128
POOLED_RANK = 64
"""Dimensions that the erase net writes: enough for the differences of all concepts, few enough for the file's size."""
CONCEPT_RANK = 12
"""Dimensions of what tells the targets of all concepts from their anchors; more of them hold what one phrase means."""
FEWEST_PROMPTS = 64
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
    settings: Settings | None = None,
) -> tuple[EmbeddingSanitizer, Report]:
    """Train a sanitizer for an encoder.

    examples: number of training prompts, None for the full set (:func:`pairs.full_size`). steps: optimiser steps of
    both nets together, None for the default. device: where to train, None for the encoder's rows' own. progress is
    called often with (stage, done, total, values); what it raises interrupts the training, and nothing is written.

    Returns the sanitizer, in evaluation mode on the CPU, with its report in `info`, and the report.
    Raises SanitizerError for settings that cannot work and encoders that put out NaN.
    """
    began = time.monotonic()
    progress = progress or (lambda stage, done, total, values: None)
    concepts = load_concepts() if concepts is None else list(concepts)
    templates = templates or load_templates()
    count = full_size(concepts) if examples is None else examples
    if count < FEWEST_PROMPTS:
        raise SanitizerError(f"Examples: expected at least {FEWEST_PROMPTS}, found {count}.")
    if steps is not None and steps < 2:
        raise SanitizerError(f"Steps: expected at least 2, found {steps}.")
    settings = settings or Settings.for_examples(count, steps)
    # ComfyUI runs nodes under inference mode, whose tensors cannot be trained.
    with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng():
        torch.manual_seed(seed)
        prompts = training_prompts(concepts, templates, count, seed)
        encodings = encode_all(encoder, [prompt.text for prompt in prompts], progress)
        prompts = _whole_units(prompts, len(encodings))
        labels = Labels(prompts, encodings, concepts)
        sanitizer = _new_sanitizer(encoder, concepts, encodings, labels)
        sanitizer.to(device or "cpu").train()
        train_scores(sanitizer, encodings, labels, settings, progress)
        train_eraser(sanitizer, encodings, labels, prompts, settings, progress)
        sanitizer.cpu().eval().requires_grad_(False)
        calibrate(sanitizer, encoder, concepts, templates, encodings, labels, settings, seed=seed, progress=progress)
    seconds = time.monotonic() - began
    report = make_report(sanitizer, encoder, concepts, templates, prompts, encodings, seed=seed, progress=progress)
    report.examples, report.seconds = len(prompts), seconds
    sanitizer.info |= {
        "encoder": encoder.fingerprint.to_dict(),
        "training": {"examples": len(prompts), "steps": settings.score_steps + settings.erase_steps, "seed": seed},
        "report": report.to_dict(),
        "licence": LICENCE,
    }
    return sanitizer, report


def _whole_units(prompts: list[Prompt], encoded: int) -> list[Prompt]:
    """The encoded part, its last targets cut off where their anchors were not encoded."""
    kept = prompts[:encoded]
    return [replace(p, anchor=None) if p.anchor is not None and p.anchor >= encoded else p for p in kept]


def _new_sanitizer(encoder: TextEncoder, concepts, encodings: Encodings, labels: Labels) -> EmbeddingSanitizer:
    fingerprint, normaliser = encoder.fingerprint, encodings.normaliser
    if not labels.aligned:
        raise SanitizerError("Training: expected pairs of target and anchor, found none. Give more examples.")
    width, pooled = fingerprint.width, fingerprint.pooled_width
    config = SanitizerConfig(
        concepts=tuple(ConceptSpec(c.name, c.context, dict(c.lowers)) for c in concepts),
        width=width,
        pooled_width=pooled,
        window=normaliser.window or 512,
        constant_rows=len(normaliser.constant),
        rank=min(width, RANK),
        pooled_rank=min(pooled, POOLED_RANK),
        concept_rank=min(width, CONCEPT_RANK),
        pooled_concept_rank=min(pooled, CONCEPT_RANK),
    )
    sanitizer = EmbeddingSanitizer(config)
    sanitizer.mean.copy_(normaliser.mean)
    sanitizer.std.copy_(normaliser.std)
    sanitizer.constant.copy_(normaliser.constant)
    if pooled:
        sanitizer.pooled_mean.copy_(normaliser.pooled_mean)
        sanitizer.pooled_std.copy_(normaliser.pooled_std)
    return sanitizer
