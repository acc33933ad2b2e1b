"""The gate: whether a prompt is rewritten, and how much of it. B prompts, K concepts.

Every decision about a prompt score is made here: the sanitizer's, that of re-encoding, and an attack's soft copy.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .config import THRESHOLD, SanitizerConfig


def margins(config: SanitizerConfig, prompt: Tensor, threshold: float | None = None) -> Tensor:
    """Prompt scores (B, K) -> (B, K): logits by which each score lies above its concept's own limit.

    The limit is the threshold (None: the calibrated one), lowered by the context concepts that are present.
    """
    names = [spec.name for spec in config.concepts]
    limit = torch.full_like(prompt, THRESHOLD if threshold is None else threshold).logit(eps=1e-6)
    for k, spec in enumerate(config.concepts):
        if spec.context:
            present = prompt[:, k] >= THRESHOLD
            for name, logits in spec.lowers.items():
                if name in names:
                    limit[:, names.index(name)] -= logits * present
    return prompt.logit(eps=1e-6) - limit


def gate(config: SanitizerConfig, above: Tensor, chosen: Sequence[int]) -> tuple[Tensor, Tensor]:
    """:func:`margins` (B, K) and the places of the chosen concepts -> gate (B,) in [0, 1], exactly 0 for a prompt in
    which none fires, and (B, K) bool: which ones fire."""
    selected = torch.zeros(above.shape[1], dtype=torch.bool, device=above.device)
    selected[list(chosen)] = True
    fired = (above >= 0) & selected
    opened = (config.gate_floor + (1 - config.gate_floor) * above / config.gate_range).clamp(0, 1)
    return (opened * fired).amax(dim=1), fired


def amount(config: SanitizerConfig, strength: float) -> float:
    """The share of the full correction that a strength of the slider stands for. An image model follows a prompt until
    about two thirds of the way to another one and then turns, so that a share in proportion would do nothing at first
    and all of it at once."""
    return strength if strength > 1 else strength**config.strength_curve
