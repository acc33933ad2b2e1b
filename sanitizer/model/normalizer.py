"""The encoder's statistics, and the one vector of a prompt that everything outside the networks reads.

Shapes: B prompts, L token embeddings, D channels, P pooled channels, F = 2 D + P probe features.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..encoders.base import TextEncoder
from .config import SanitizerConfig

Sanitize = Callable[[Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor | None]]
"""Embeddings, mask, pooled vector -> embeddings and pooled vector that the diffusion model gets."""
ENCODED = 128
"""Prompts that :func:`vectors` encodes at once."""


def probe_features(x: Tensor, weight: Tensor, pooled: Tensor | None) -> Tensor:
    """Mean token embedding, last visible one and pooled vector, joined: (B, F). What a linear probe reads.

    x (B, L, D) and pooled (B, P) or None are normalized; weight (B, L) float, 0 for what is masked.
    """
    total = weight.sum(dim=1, keepdim=True).clamp_min(1e-6)
    mean = (x * weight[..., None]).sum(dim=1) / total
    places = torch.arange(x.shape[1], device=x.device)
    last = torch.where(weight > 0, places, 0).amax(dim=1) if x.shape[1] else places.new_zeros(x.shape[0])
    parts = [mean, x[torch.arange(x.shape[0], device=x.device), last]]
    return torch.cat(parts if pooled is None else [*parts, pooled], dim=-1)


@dataclass(frozen=True)
class Normalizer:
    """Brings each channel to unit variance by itself, and tells the embeddings that carry no prompt.

    One common scale for all channels would let the output leave the encoder's manifold (see docs/method.md).
    """

    mean: Tensor
    """(D,)."""
    std: Tensor
    """(D,): 0 for a dead channel, which is left alone."""
    pooled_mean: Tensor | None
    """(P,) or None where the encoder has no pooled vector."""
    pooled_std: Tensor | None
    constant: Tensor
    """(F, D): leading embeddings, such as BOS in a causal encoder, that are the same for every prompt."""
    window: int | None = None
    """The number of embeddings, where it is the same for every prompt and all are visible."""
    clip: float = SanitizerConfig.clip
    tolerance: float = SanitizerConfig.constant_tolerance

    @property
    def causal(self) -> bool:
        """Whether every window begins with the same embeddings: only causal attention keeps them from what follows."""
        return self.window is not None and len(self.constant) > 0

    def to(self, device: str | torch.device) -> "Normalizer":
        """The same on a device."""
        moved = {name: getattr(self, name) for name in ("mean", "std", "pooled_mean", "pooled_std", "constant")}
        return replace(self, **{name: None if v is None else v.to(device) for name, v in moved.items()})

    def __call__(self, embeddings: Tensor) -> Tensor:
        """(…, D) -> (…, D), normalized."""
        return self._normalize(embeddings, self.mean, self.std)

    def pooled(self, vectors: Tensor) -> Tensor:
        """(…, P) -> (…, P), normalized."""
        assert self.pooled_mean is not None and self.pooled_std is not None, "the encoder has no pooled vector"
        return self._normalize(vectors, self.pooled_mean, self.pooled_std)

    def is_constant(self, embeddings: Tensor) -> Tensor:
        """(…, D) -> (…) bool: an embedding that is zero or one of the constant ones, which carry no prompt."""
        found = embeddings.norm(dim=-1) == 0
        for reference in self.constant:
            found |= (embeddings - reference).norm(dim=-1) <= self.tolerance * reference.norm()
        return found

    def weights(self, embeddings: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, L, D) float32 and a mask (B, L) or None -> (B, L) float32: 1 for what carries the prompt, else 0."""
        weight = (~self.is_constant(embeddings.detach())).float()
        return weight if mask is None else weight * mask.to(weight)

    def features(self, embeddings: Tensor, mask: Tensor | None = None, pooled: Tensor | None = None) -> Tensor:
        """The prompt's vector: (B, L, D), (B, L) bool or None, (B, P) or None -> (B, F) float32, on the device of the
        statistics; gradients flow. See :func:`probe_features`."""
        device = self.mean.device
        embeddings = embeddings.to(device, torch.float32)
        vector = None if pooled is None else self.pooled(pooled.to(device, torch.float32))
        return probe_features(self(embeddings), self.weights(embeddings, mask), vector)

    def mean_embedding(self, embeddings: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, D): the first D of :meth:`features`, the mean of the normalized embeddings that carry the prompt."""
        return self.features(embeddings, mask)[:, : embeddings.shape[-1]]

    def _normalize(self, values: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        scale = torch.where(std > 0, 1 / std.clamp_min(1e-12), 0.0)
        return ((values - mean) * scale).clamp(-self.clip, self.clip)


def vectors(
    encoder: TextEncoder, normalizer: Normalizer, texts: Sequence[str], sanitize: Sanitize | None = None
) -> Tensor:
    """(N, F) of the prompts, as the encoder puts them out or sanitized."""
    found = []
    with torch.no_grad():
        for first in range(0, len(texts), ENCODED):
            e = encoder.encode(list(texts[first : first + ENCODED]))
            given = (e.embeddings, e.pooled) if sanitize is None else sanitize(e.embeddings, e.mask, e.pooled)
            found.append(normalizer.features(given[0], e.mask, given[1]))
    return torch.cat(found)
