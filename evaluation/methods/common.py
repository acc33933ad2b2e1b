"""What several methods share: the development split's encodings, thresholds, and putting rows back.

Shapes: B prompts, L rows, D channels, P pooled channels, N prompts of the split, F = 2 D + P.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from weakref import WeakKeyDictionary

import torch
from sanitizer.encoders.joining import exchanged
from torch import Tensor
from torch.nn import functional as F

from sanitizer.encoders import Encoding, TextEncoder
from sanitizer.model.networks import summary
from sanitizer.model.sanitizer import CONSTANT_TOLERANCE, normalise
from sanitizer.training.dataset import EncodedDataset, Normalizer, encode_all, measure
from sanitizer.training.probes import area_under_curve

from ..base import BATCH, FALSE_ALARMS, Batch, Development, Method, Treated, batches
from ..development_split import RememberingEncoder
from ..measuring import identical

CANDIDATES = 240
"""Target phrases among which the ones that stand for a concept are chosen."""


class Space:
    """Rows of an encoder, each channel brought to unit variance; dead channels are 0 and are left alone.

    Coordinates in which no few large channels rule a covariance or a distance.
    """

    def __init__(self, normalizer: Normalizer) -> None:
        self.normalizer = normalizer

    def weight(self, e: Encoding) -> Tensor:
        """(B, L) float32: 1 for a row that the diffusion model sees and that carries the prompt, 0 for a constant or
        masked one."""
        constant = e.embeddings.norm(dim=-1) == 0
        for reference in self.normalizer.constant.to(e.embeddings):
            constant |= (e.embeddings - reference).norm(dim=-1) <= CONSTANT_TOLERANCE * reference.norm()
        return e.mask.float() * ~constant

    def rows(self, e: Encoding) -> Tensor:
        """(B, L, D) float32."""
        n = self.normalizer
        return normalise(e.embeddings.float(), n.mean.to(e.embeddings.device), n.std.to(e.embeddings.device))

    def pooled(self, e: Encoding) -> Tensor | None:
        """(B, P) float32 or None."""
        if e.pooled is None:
            return None
        n, device = self.normalizer, e.pooled.device
        return normalise(e.pooled.float(), n.pooled_mean.to(device), n.pooled_std.to(device))

    def summary(self, e: Encoding) -> Tensor:
        """(B, F): mean row, last row and pooled vector."""
        return summary(self.rows(e), self.weight(e), self.pooled(e))

    def mean_row(self, e: Encoding) -> Tensor:
        """(B, D)."""
        return self.summary(e)[:, : e.embeddings.shape[2]]

    def moved(self, batch: Batch, change: Tensor, pooled_change: Tensor | None, writable: Tensor) -> Treated:
        """The batch with a change (B, L, D), and (B, P) or None, of normalised units added where writable (B, L) is
        true; the pooled vector of a prompt changes where any of its rows may."""
        e, n = batch.encoding, self.normalizer
        rows = (e.embeddings.float() + change * n.std.to(e.embeddings.device)).to(e.embeddings.dtype)
        rows = torch.where(writable[..., None], rows, e.embeddings)
        pooled = e.pooled
        if pooled is not None and pooled_change is not None:
            new = (pooled.float() + pooled_change * n.pooled_std.to(pooled.device)).to(pooled.dtype)
            pooled = torch.where(writable.any(1)[:, None], new, pooled)
        return treated(batch, rows, e.mask, pooled)


@dataclass
class Prepared:
    """The development split, encoded compactly. Kept rows are normalised, see sanitizer.encodings.EncodedDataset."""

    space: Space
    unsafe: EncodedDataset
    safe: EncodedDataset
    benign: EncodedDataset

    @cached_property
    def summaries(self) -> tuple[Tensor, Tensor, Tensor]:
        """(N, F) of unsafe, safe and benign prompts."""
        return self.unsafe.summaries(), self.safe.summaries(), self.benign.summaries()

    def phrases(self, development: Development, count: int) -> list[str]:
        """The target phrases that stand for the concept best: those whose own mean row, as a direction, tells unsafe
        prompts from safe and benign ones, by AUROC. At most `count`."""
        known = list(dict.fromkeys(development.phrases))
        step = max(1, len(known) // CANDIDATES)
        known = known[::step][:CANDIDATES]
        width = len(self.space.normalizer.mean)
        directions = torch.cat([self.space.mean_row(b.encoding) for b in batches(development.encoder, known)])
        unsafe, safe, benign = (F.normalize(x[:, :width], dim=-1) for x in self.summaries)
        directions = F.normalize(directions, dim=-1).T
        hits, misses = unsafe @ directions, torch.cat([safe, benign]) @ directions
        merit = [area_under_curve(hits[:, i], misses[:, i]) for i in range(len(known))]
        best = sorted(range(len(known)), key=lambda i: -merit[i])[:count]
        return [known[i] for i in sorted(best)]


_PREPARED: WeakKeyDictionary = WeakKeyDictionary()


def prepare(development: Development) -> Prepared:
    """Encode the split once for all methods; the last one of each encoder is kept as long as the encoder."""
    d = development
    key = (d.concept, tuple(d.unsafe), tuple(d.safe), tuple(d.benign))
    found = _PREPARED.get(d.encoder)
    if found is None or found[0] != key:
        mixed = [text for texts in zip(d.unsafe, d.safe, d.benign, strict=False) for text in texts]
        normalizer = measure([b.encoding for b in batches(d.encoder, mixed[: 4 * BATCH])])
        encoded = [encode_all(d.encoder, texts, _quiet, normalizer) for texts in (d.unsafe, d.safe, d.benign)]
        _PREPARED[d.encoder] = found = (key, Prepared(Space(normalizer), *encoded))
    return found[1]


def _quiet(*_) -> None:
    pass


def bare(encoder: TextEncoder) -> TextEncoder:
    """The encoder itself: one that remembers would keep every prompt of every set."""
    while isinstance(encoder, RememberingEncoder):
        encoder = encoder.encoder
    return encoder


def threshold_for(method: Method, development: Development) -> float:
    """The score that at most FALSE_ALARMS of the calibration prompts exceed."""
    return threshold_at(torch.cat([method.score(b) for b in batches(development.encoder, development.calibration)]))


def threshold_at(scores: Tensor, false_alarms: float = FALSE_ALARMS) -> float:
    """The lowest of the scores (N,) that at most `false_alarms` of them exceed."""
    return float(scores.sort(descending=True).values[int(false_alarms * len(scores))])


def untouched(batch: Batch) -> Treated:
    """The batch's own tensors."""
    e = batch.encoding
    return Treated(e.embeddings, e.mask, e.pooled, torch.zeros(len(batch.prompts), dtype=torch.bool))


def treated(batch: Batch, rows: Tensor, mask: Tensor, pooled: Tensor | None) -> Treated:
    """With `touched` read off the values."""
    out = Treated(rows, mask, pooled, torch.zeros(0))
    return out._replace(touched=~identical(batch.encoding, out))


def text_rows(e: Encoding) -> Tensor:
    """(B, L) bool: rows of a token of the text."""
    return torch.tensor([[bool(token) for token in own] for own in e.tokens], device=e.embeddings.device) & e.mask


def replaced(batch: Batch, index: Sequence[int], other: Encoding) -> Treated:
    """The batch with the prompts of `other` in place of those of `index`; the others as they were, padded."""
    out = exchanged(batch.encoding, index, other)
    return treated(batch, out.embeddings, out.mask, out.pooled)
