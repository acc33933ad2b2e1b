"""Prompts as single vectors, and how far they are from a target. N prompts, L rows, D channels, P pooled, F = 2 D + P.

Everything here is differentiable, so that an attack can follow the gradient through it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..encoders.base import TextEncoder
from ..encodings import Normaliser
from ..model import CONSTANT_TOLERANCE, EmbeddingSanitizer, normalise
from ..networks import summary

Sanitize = Callable[[Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor | None]]
"""Rows, mask, pooled vector -> rows and pooled vector that the diffusion model gets."""
Distance = Callable[[Tensor, Tensor], Tensor]
"""(N, F) and (F,) -> (N,), 0 where they agree."""

ENCODED = 128


@dataclass(frozen=True)
class PromptSpace:
    """Mean row, last visible row and pooled vector, each channel brought to unit variance over raw prompts."""

    normaliser: Normaliser

    @classmethod
    def of(cls, sanitizer: EmbeddingSanitizer) -> "PromptSpace":
        """With the statistics that the sanitizer keeps of its encoder."""
        values = (sanitizer.mean, sanitizer.std, sanitizer.pooled_mean, sanitizer.pooled_std, sanitizer.constant)
        return cls(Normaliser(*(None if v is None else v.detach().cpu() for v in values), window=None))

    def __call__(self, rows: Tensor, mask: Tensor, pooled: Tensor | None) -> Tensor:
        """(N, L, D), (N, L) bool, (N, P) or None -> (N, F) float32 on the CPU. Constant rows carry no prompt."""
        n, rows = self.normaliser, rows.to("cpu", torch.float32)
        weight = mask.cpu() & ~self._constant(rows.detach())
        vector = None
        if pooled is not None:
            vector = normalise(pooled.to("cpu", torch.float32), n.pooled_mean, n.pooled_std)
        return summary(normalise(rows, n.mean, n.std), weight.float(), vector)

    def _constant(self, rows: Tensor) -> Tensor:
        found = rows.norm(dim=-1) == 0
        for reference in self.normaliser.constant:
            found |= (rows - reference).norm(dim=-1) <= CONSTANT_TOLERANCE * reference.norm()
        return found


def vectors(encoder: TextEncoder, space: PromptSpace, texts: Sequence[str], sanitize: Sanitize | None = None) -> Tensor:
    """(N, F) of the prompts, as the encoder puts them out or sanitized."""
    found = []
    with torch.no_grad():
        for first in range(0, len(texts), ENCODED):
            e = encoder.encode(list(texts[first : first + ENCODED]))
            rows, pooled = (e.rows, e.pooled) if sanitize is None else sanitize(e.rows, e.mask, e.pooled)
            found.append(space(rows, e.mask, pooled))
    return torch.cat(found)


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
        space: PromptSpace,
        target: Tensor,
        sanitize: Sanitize | None = None,
        distance: Distance = cosine_distance,
    ) -> None:
        self.encoder, self.space, self.sanitize, self.distance = encoder, space, sanitize, distance
        self.target = target
        """(F,)."""
        self.queries = 0

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """(N,) distances of texts, encoded as a user's prompt is."""
        self.queries += len(texts)
        return self.distance(vectors(self.encoder, self.space, texts, self.sanitize), self.target)

    def of_rows(self, rows: Tensor, mask: Tensor, pooled: Tensor | None, sanitize: Sanitize | None = None) -> Tensor:
        """(N,) distances of rows (N, L, D); gradients flow. sanitize: in place of this objective's own."""
        chosen = sanitize or self.sanitize
        if chosen is not None:
            rows, pooled = chosen(rows, mask, pooled)
        return self.distance(self.space(rows, mask, pooled), self.target)
