"""The sanitizer, as an adaptive attack sees it. B prompts, L rows, D channels, P pooled."""

import torch
from torch import Tensor

from sanitizer.audit.space import Sanitize
from sanitizer.model.sanitizer import THRESHOLD, EmbeddingSanitizer

SOFTNESS = 1.0
"""Logits around the threshold over which the soft gate opens."""


def hard(sanitizer: EmbeddingSanitizer, concept: str, strength: float = 1.0) -> Sanitize:
    """What the user gets: the sanitizer at its calibrated threshold, for one concept."""

    def apply(rows: Tensor, mask: Tensor, pooled: Tensor | None) -> tuple[Tensor, Tensor | None]:
        out = sanitizer.sanitize(rows, mask, pooled, strength=strength, concepts=[concept])
        return out.embeddings, out.pooled

    return apply


def soft(sanitizer: EmbeddingSanitizer, concept: str, strength: float = 1.0) -> Sanitize:
    """The same with a gate that opens smoothly with the concept's logit, so that the gradient says how to close it.

    The true gate is 0 below the threshold, where nothing tells an attack how near it is.
    """
    place = sanitizer.concepts.index(concept)
    threshold = torch.tensor(THRESHOLD).logit()

    def apply(rows: Tensor, mask: Tensor, pooled: Tensor | None) -> tuple[Tensor, Tensor | None]:
        score = sanitizer.score(rows, mask, pooled).prompt[:, place].logit(eps=1e-6)
        gate = strength * torch.sigmoid((score - threshold) / SOFTNESS)
        erased = sanitizer.sanitize(rows, mask, pooled, threshold=0.0, concepts=[concept])
        changed = rows + gate[:, None, None] * (erased.embeddings - rows)
        if pooled is None:
            return changed, None
        return changed, pooled + gate[:, None] * (erased.pooled - pooled)

    return apply
