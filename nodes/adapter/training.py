"""Training inside ComfyUI: memory, progress, interrupt, and the file at the end."""

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import comfy.model_management
import torch

from ...sanitizer.errors import SanitizerError
from ...sanitizer.model import artifact
from ...sanitizer.model.sanitizer import EmbeddingSanitizer
from ...sanitizer.prompts.concepts import Concept, load_concepts
from ...sanitizer.prompts.generator import full_size, training_prompts
from ...sanitizer.prompts.templates import load_templates
from ...sanitizer.training import fit as training
from ...sanitizer.training.adopt import Adoption
from ...sanitizer.training.adopt import adopt as adoption_of
from ...sanitizer.training.config import TrainingConfig
from . import folders
from .clip import ComfyTextEncoder
from .ui import Progress

ENCODE_SECONDS = 120
"""How long encoding may take where the number of training prompts is chosen by the encoder's speed …"""
ENOUGH = 8000
"""… unless fewer than these come out: 512 and 2048 found next to nothing that was held out (AUROC .77 and .86, .96 with
30,000) …"""
LONGEST_SECONDS = 600
"""… then so long at most."""
CHECKED = 1 / 5 + 1 / 8
"""Prompts that `fit` encodes for calibration and report beside each training prompt, at most."""
MEASURED = 128
"""Prompts that it encodes twice, for the statistics of the embeddings."""
FEWEST = 512
"""Training prompts below which a sanitizer is not worth having, however slow the encoder."""
TRIALS = (2, 8, 32, 64)
"""Prompts of the batches that measure the speed. The first loads the model; a large one is as fast as training's."""
TRIAL_SECONDS = 5
"""A batch that took as long is the last one."""
TRAINING_MEMORY = 1.5 * 2**30
"""Bytes that fitting takes at most on the device; ComfyUI frees as much before."""


@dataclass(frozen=True)
class Plan:
    examples: int
    """Training prompts."""
    full: int
    """Of a full training set."""
    minutes: float
    """That encoding will take, for training, calibration and report."""

    def __str__(self) -> str:
        fewer = "" if self.examples == self.full else f" (a full set is {self.full}; this CLIP is slow here)"
        return f"{self.examples} prompts{fewer}"


def choose_examples(encoder: ComfyTextEncoder, concepts: Sequence[Concept]) -> Plan:
    """As many training prompts as the encoder manages in two minutes, or, if they are not ENOUGH, in ten."""
    prompts = [prompt.text for prompt in training_prompts(concepts, load_templates(), sum(TRIALS), seed=0)]
    seconds, at = 0.0, 0
    for size in TRIALS:
        some = prompts[at : at + size] or prompts[-size:]
        at += size
        began = time.monotonic()
        encoder.encode(some)
        took = time.monotonic() - began
        seconds = took / len(some)
        if size > TRIALS[0] and took >= TRIAL_SECONDS:
            break
    full = full_size(concepts)

    def affordable(budget: float) -> int:
        return int((budget / max(seconds, 1e-6) - MEASURED) / (1 + CHECKED))

    count = max(affordable(ENCODE_SECONDS), min(ENOUGH, affordable(LONGEST_SECONDS)))
    count = max(FEWEST, min(full, count))
    return Plan(count, full, (count * (1 + CHECKED) + MEASURED) * seconds / 60)


def fitting_minutes(
    encoder: ComfyTextEncoder, concepts: Sequence[Concept], examples: int, steps: int | None, warm: bool = False
) -> float:
    """What fitting takes beside encoding, by the time of a few steps of each net. warm: from another's networks."""
    device = comfy.model_management.get_torch_device()
    comfy.model_management.free_memory(TRAINING_MEMORY, device)
    score, erase = training.step_seconds(encoder, next(c for c in concepts if not c.context), device=device)
    config = TrainingConfig().for_examples(examples, steps, warm)
    return (score * config.score_steps + erase * config.erase_steps) / 60


def adopt(encoder: ComfyTextEncoder, base: Path, progress: Progress) -> Adoption | None:
    """Try the sanitizer of that file, which was trained on a CLIP of the same kind, on this one. None where it cannot
    be tried. Raises ComfyUI's interrupt exception."""
    progress.say(f"Trying {base.name}, which was trained on a CLIP of the same kind…")
    try:
        known = artifact.load(base)
        adoption = adoption_of(encoder, known, load_concepts(known.concepts), progress=progress)
    except SanitizerError as error:
        logging.info("Embedding Sanitizer: %s is not adopted. %s", base.name, error)
        return None
    if not adoption.kept:
        logging.info("Embedding Sanitizer: %s is not adopted: %s.", base.name, "; ".join(adoption.reasons))
    return adoption


def save_adopted(adoption: Adoption, base: Path) -> Path:
    """Its file, which needs that of the base beside it."""
    path = folders.adopted_path(base, adoption.sanitizer.fingerprint)
    artifact.save(adoption.sanitizer, path, base)
    return path


def settings_hash(encoder: ComfyTextEncoder, concepts: Sequence[Concept], *settings: object) -> str:
    """Eight digits that are equal for equal trainings: same encoder, same phrases, same numbers."""
    what = [encoder.fingerprint.to_dict(), [asdict(concept) for concept in concepts], settings]
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:8]


class Curve:
    """Collects the losses that training reports, for the picture on the node."""

    def __init__(self) -> None:
        self.stages: dict[str, list[list[float]]] = {}

    def add(self, stage: str, done: int, values: dict[str, float]) -> None:
        if "loss" in values:
            self.stages.setdefault(stage, []).append([done, round(values["loss"], 5)])


def train(
    encoder: ComfyTextEncoder,
    concepts: Sequence[Concept],
    path: Path,
    *,
    examples: int,
    steps: int | None,
    seed: int,
    progress: Progress,
    start: EmbeddingSanitizer | None = None,
) -> Curve:
    """Fit a sanitizer, from the networks of another one or from none, and save it. Interrupted or failed, it leaves no
    sanitizer behind, but what it has encoded, and the next training of this CLIP goes on from there.

    Raises what `fit` and `save` raise, and ComfyUI's interrupt exception.
    """
    device = comfy.model_management.get_torch_device()
    began = time.monotonic()
    curve = Curve()
    encodings = folders.unfinished(encoder.fingerprint)

    def report(stage: str, done: int, total: int, values: dict[str, float]) -> None:
        curve.add(stage, done, values)
        progress(stage, done, total, values)

    try:
        comfy.model_management.free_memory(TRAINING_MEMORY, device)
        with torch.inference_mode(False), torch.enable_grad():
            sanitizer, _ = training.fit(
                encoder,
                concepts,
                examples=examples,
                steps=steps,
                seed=seed,
                device=device,
                progress=report,
                start=start,
                encodings=encodings,
            )
            artifact.save(sanitizer, path)
        shutil.rmtree(encodings, ignore_errors=True)
        # The last text stays on the node.
        progress.say(f"Trained in {(time.monotonic() - began) / 60:.1f} min.")
    finally:
        comfy.model_management.soft_empty_cache()
    return curve
