"""Prompts as single vectors, and how far they are from a target.

N prompts, L token embeddings, D channels, P pooled channels, F = 2 D + P probe features.

Everything here is differentiable, so that an attack can follow the gradient through it.
"""

from collections.abc import Callable, Sequence

from torch import Tensor
from torch.nn import functional as F

from ..encoders.base import TextEncoder
from ..model.normalizer import Normalizer, Sanitize, vectors

Distance = Callable[[Tensor, Tensor], Tensor]
"""(N, F) and (F,) -> (N,), 0 where they agree."""


def cosine_distance(found: Tensor, target: Tensor) -> Tensor:
    """1 - cosine, the loss of MMA-Diffusion (arXiv 2311.17516)."""
    return 1 - F.cosine_similarity(found, target[None], dim=-1)


def squared_distance(found: Tensor, target: Tensor) -> Tensor:
    """Mean squared difference, the fitness of Ring-A-Bell (arXiv 2310.10012)."""
    return (found - target).square().mean(dim=-1)


class Objective:
    """The distance of prompts from a target; it counts the prompts that it was asked about."""

    def __init__(
        self,
        encoder: TextEncoder,
        normalizer: Normalizer,
        target: Tensor,
        sanitize: Sanitize | None = None,
        distance: Distance = cosine_distance,
    ) -> None:
        self.encoder, self.normalizer, self.sanitize, self.distance = encoder, normalizer, sanitize, distance
        self.target = target
        """(F,)."""
        self.queries = 0

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """(N,) distances of texts, encoded as a user's prompt is."""
        self.queries += len(texts)
        return self.distance(vectors(self.encoder, self.normalizer, texts, self.sanitize), self.target)

    def of_embeddings(
        self, embeddings: Tensor, mask: Tensor, pooled: Tensor | None, sanitize: Sanitize | None = None
    ) -> Tensor:
        """(N,) distances of embeddings (N, L, D); gradients flow. sanitize: in place of this objective's own."""
        chosen = sanitize or self.sanitize
        if chosen is not None:
            embeddings, pooled = chosen(embeddings, mask, pooled)
        return self.distance(self.normalizer.features(embeddings, mask, pooled), self.target)
