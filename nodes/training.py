"""Training inside ComfyUI: memory, progress, interrupt, and the file at the end."""

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import comfy.model_management
import torch

from ..sanitizer import artifact, training
from ..sanitizer.concepts import Concept
from ..sanitizer.pairs import full_size
from .comfy_encoder import ComfyTextEncoder
from .messages import Progress

ENCODE_SECONDS = 120
"""How long encoding may take where the number of training prompts is chosen by the encoder's speed."""
FEWEST = 512
"""Training prompts below which a sanitizer is not worth having, however slow the encoder."""
TRIAL = 32
TRAINING_MEMORY = 1.5 * 2**30
"""Bytes that fitting takes at most on the device; ComfyUI frees as much before."""


def choose_examples(encoder: ComfyTextEncoder, concepts: Sequence[Concept]) -> tuple[int, float]:
    """Number of training prompts that the encoder manages in about ENCODE_SECONDS, at most the full set; and its
    seconds per prompt, measured on a second batch, when the model has been loaded."""
    prompts = [pair.target for concept in concepts for pair in concept.pairs][:TRIAL]
    encoder.encode(prompts[:2])
    began = time.monotonic()
    encoder.encode(prompts)
    seconds = (time.monotonic() - began) / len(prompts)
    affordable = int(ENCODE_SECONDS / max(seconds, 1e-6))
    return max(FEWEST, min(full_size(concepts), affordable)), seconds


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
) -> Curve:
    """Fit a sanitizer and save it. Interrupted or failed, it leaves no file behind.

    Raises what `fit` and `save` raise, and ComfyUI's interrupt exception.
    """
    device = comfy.model_management.get_torch_device()
    curve = Curve()

    def report(stage: str, done: int, total: int, values: dict[str, float]) -> None:
        curve.add(stage, done, values)
        progress(stage, done, total, values)

    try:
        comfy.model_management.free_memory(TRAINING_MEMORY, device)
        with torch.inference_mode(False), torch.enable_grad():
            sanitizer, _ = training.fit(
                encoder, concepts, examples=examples, steps=steps, seed=seed, device=device, progress=report
            )
            artifact.save(sanitizer, path)
    finally:
        comfy.model_management.soft_empty_cache()
    return curve
