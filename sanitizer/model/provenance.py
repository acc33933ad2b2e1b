"""Whether token embeddings are what the sanitizer's encoder puts out: not another encoder's, nor scaled.

A score means nothing for embeddings of another encoder, layer (clip-skip) or LoRA, and embeddings that are scaled down
before the sanitizer and up again behind it would pass it unseen. Two things tell them:

- **The start.** In causal encoders the leading embeddings (BOS) are the same for every prompt, and the file holds them.
  With the part s of an embedding e along its reference r, s = e·r / |r|², both |e - s r| / |r| and |s - 1| must be
  small, in every window that the encoder makes. See :func:`check_start`.
- **The statistics**, where the start of a window is not known. Along the K directions in which the prompts' mean
  embeddings vary least, the mean embedding of a prompt is predicted from its length alone, and its squared distance
  from the prediction, in variances, averaged over the directions (Hotelling's T² in a subspace, divided by K), is about
  1 for the encoder's own and far larger for another's: what never varies over prompts differs between encoders. The
  mean squared size of the embeddings, likewise predicted from the length, tells their scale. See :class:`Provenance`.

Sizes a little out of the ordinary are no proof of anything: such prompts are scored at their usual size, too.

Shapes: B prompts, W windows of them, L token embeddings, D channels, P pooled channels, F constant embeddings, K
directions, S sizes (of the token embeddings where there are directions, of the pooled vector where there is one).
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import SanitizerError
from .config import SanitizerConfig
from .normalizer import Normalizer

REMEDY = (
    "Such embeddings come from another text encoder, clip-skip or LoRA, or were multiplied, averaged or joined with "
    "others on the way. Put Sanitize Conditioning directly behind the text encode node, and use the sanitizer of this "
    "encoder: 'auto' in Load Sanitizer, with this CLIP connected behind its LoRA and clip-skip nodes."
)


def check_start(embeddings: Tensor, constant: Tensor, step: int, config: SanitizerConfig) -> None:
    """Refuse what does not begin with the constant embeddings (F, D) at every step-th of the embeddings (B, L, D)
    float32. A window of nothing but zeros carries no prompt and passes. Raises SanitizerError."""
    if not len(constant):
        return
    length = embeddings.shape[1]
    for first in range(0, length, step):
        found = embeddings[:, first : first + len(constant)]
        reference = constant[: found.shape[1]]
        size = reference.norm(dim=-1).clamp_min(1e-12)
        scale = (found * reference).sum(dim=-1) / size**2
        rest = (found - scale[..., None] * reference).norm(dim=-1) / size
        alien = (rest > config.constant_tolerance) | ((scale - 1).abs() > config.constant_scale)
        alien = alien.any(dim=1) | (found.shape[1] < len(constant))
        if not alien.any():
            continue
        for b in alien.nonzero().squeeze(1).tolist():
            if embeddings[b, first : first + step].any():
                raise SanitizerError(
                    f"Embedding of prompt {b + 1}: at {first} of {length}, expected the start that this encoder gives "
                    f"every prompt, found it scaled by {float(scale[b, 0]):.2g} and {float(rest[b].max()):.0%} of its "
                    f"size beside it. {REMEDY}"
                )


class UsualSize(NamedTuple):
    """Windows brought to the size that their length lets expect."""

    x: Tensor
    """(W, L, D), normalized."""
    pooled: Tensor | None
    """(W, P), normalized."""
    factor: Tensor
    """(W,): what the embeddings were multiplied by, 1 where the size was usual."""
    pooled_factor: Tensor
    """(W,): the same of the pooled vector."""


@dataclass(frozen=True)
class Provenance:
    """Statistics of an encoder's own embeddings. Everything is in the channels of the normalizer."""

    normalizer: Normalizer
    directions: Tensor
    """(K, D)."""
    mean: Tensor
    """(3, K + S): what is expected along each direction, and of the logarithm of each size: coefficients of
    :func:`basis`."""
    variance: Tensor
    """(2, K + S): the variances about it, coefficients of the first two of :func:`basis`."""
    bounds: Tensor
    """(2, 1 + S): lowest and highest of the distance and, in standard deviations, of the sizes."""

    def readings(self, x: Tensor, weight: Tensor, pooled: Tensor | None) -> Tensor:
        """(W, K + S): the mean embedding along the directions, and the logarithms of the sizes.

        x (W, L, D) and pooled (W, P) are normalized; weight (W, L) is 0 for what does not count.
        """
        parts = []
        if len(self.directions):
            share = weight / weight.sum(dim=1, keepdim=True).clamp_min(1e-6)
            parts += [torch.einsum("wld,wl->wd", x, share) @ self.directions.T]
            # About zero and not about the mean: scaling the embeddings is then a shift of the logarithm.
            parts += [((x - self._zero) ** 2).mean(dim=-1).mul(share).sum(dim=1, keepdim=True).clamp_min(1e-12).log()]
        if pooled is not None:
            parts += [((pooled - self._pooled_zero) ** 2).mean(dim=-1, keepdim=True).clamp_min(1e-12).log()]
        return torch.cat(parts, dim=1) if parts else x.new_zeros(len(x), 0)

    def check(self, x: Tensor, weight: Tensor, pooled: Tensor | None, there: Tensor) -> None:
        """Refuse the windows that lie outside the bounds. there (B,) bool: False for a prompt whose pooled vector is
        all zero, which normalized looks like one that is merely tiny. Raises SanitizerError."""
        windows = len(x) // len(there)
        off, spread = self._off(x, weight, pooled, there.repeat_interleave(windows))
        values = off / spread
        count = len(self.directions)
        if count:
            values = torch.cat([(values[:, :count] ** 2).mean(dim=1, keepdim=True), values[:, count:]], dim=1)
            names = ["distance from the encoder's own embeddings", "size of the embeddings, in standard deviations"]
        else:
            values, names = torch.cat([torch.zeros_like(off[:, :1]), values], dim=1), [""]
        names.append("size of the pooled vector, in standard deviations")
        for name, value, low, high in zip(names, values.unbind(1), *self.bounds.tolist(), strict=False):
            # Written so that NaN is refused, too.
            alien = ~((value >= low) & (value <= high))
            if alien.any():
                w = int(alien.nonzero()[0])
                raise SanitizerError(
                    f"Embedding of prompt {w // windows + 1}: {name}: expected {low:.1f} to {high:.1f}, "
                    f"found {float(value[w]):.1f}. {REMEDY}"
                )

    def at_usual_size(self, x: Tensor, weight: Tensor, pooled: Tensor | None, deviations: float) -> UsualSize | None:
        """The windows with every size that is more than `deviations` off its expectation brought to it; None where
        there is none. Shapes as for :meth:`readings`."""
        off, spread = self._off(x, weight, pooled)
        count = len(self.directions)
        off, spread = off[:, count:], spread[:, count:]
        factor = torch.where((off / spread).abs() > deviations, (-off / 2).exp(), 1.0)
        if not (factor != 1).any():
            return None
        ones = factor.new_ones(len(factor))
        own, other = factor[:, 0] if count else ones, factor[:, -1] if pooled is not None else ones
        clip = self.normalizer.clip
        if count:
            x = ((x - self._zero) * own[:, None, None] + self._zero).clamp(-clip, clip)
        if pooled is not None:
            pooled = ((pooled - self._pooled_zero) * other[:, None] + self._pooled_zero).clamp(-clip, clip)
        return UsualSize(x, pooled, own, other)

    def _off(
        self, x: Tensor, weight: Tensor, pooled: Tensor | None, there: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """(W, K + S): how far the readings are from what the length lets expect, 0 where nothing is there to be read;
        and the standard deviations."""
        counts = weight.sum(dim=1)
        known = basis(counts)
        off = self.readings(x, weight, pooled) - known @ self.mean
        count = len(self.directions)
        if count:
            off[:, : count + 1] = torch.where(counts[:, None] > 0, off[:, : count + 1], 0.0)
        if pooled is not None:
            there = (pooled != self._pooled_zero).any(dim=-1) if there is None else there
            off[:, -1] = torch.where(there, off[:, -1], 0.0)
        return off, (known[:, :2] @ self.variance).sqrt()

    @property
    def _zero(self) -> Tensor:
        """(D,): where an embedding of zeros lies."""
        return self.normalizer(torch.zeros_like(self.normalizer.mean))

    @property
    def _pooled_zero(self) -> Tensor:
        """(P,): where a pooled vector of zeros lies."""
        assert self.normalizer.pooled_mean is not None
        return self.normalizer.pooled(torch.zeros_like(self.normalizer.pooled_mean))


def basis(counts: Tensor) -> Tensor:
    """(W,) numbers of token embeddings -> (W, 3): 1, 1 / n, log n. Start and end tokens have a share of 1 / n in a
    mean, and long prompts have smaller embeddings in some encoders."""
    counts = counts.clamp_min(1.0)
    return torch.stack([torch.ones_like(counts), 1 / counts, counts.log()], dim=1)
