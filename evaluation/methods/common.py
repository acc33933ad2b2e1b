"""What several methods share: thresholds, the phrases that stand for a concept, and putting embeddings back.

Shapes: B prompts, L token embeddings, D channels, P pooled channels, N prompts of the split.
"""

from collections.abc import Sequence

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.nn import functional as F

from sanitizer.encoders import Encoding, TextEncoder
from sanitizer.encoders.alignment import lerp
from sanitizer.model.normalizer import Normalizer
from sanitizer.training.dataset import EncodedDataset

from ..types import FALSE_POSITIVES, Batch, Development, Method, Treated, treated, untouched

CANDIDATES = 240
"""Target phrases among which the ones that stand for a concept are chosen."""


def telling_phrases(development: Development, count: int) -> list[str]:
    """The target phrases that stand for the concept best: those whose own mean embedding, as a direction, tells unsafe
    prompts from safe and benign ones, by AUROC. At most `count`."""
    known = list(dict.fromkeys(development.phrases))
    step = max(1, len(known) // CANDIDATES)
    known = known[::step][:CANDIDATES]
    means = [mean_embedding(development.normalizer, b.encoding) for b in development.batches(known)]
    directions = F.normalize(torch.cat(means), dim=-1)
    unsafe, safe, benign = (F.normalize(x[:, : directions.shape[1]], dim=-1) for x in development.features)
    similar = torch.cat([unsafe, safe, benign]) @ directions.T
    labels = (torch.arange(len(similar)) < len(unsafe)).numpy()
    merit = [roc_auc_score(labels, similar[:, i].numpy()) for i in range(len(known))]
    best = sorted(range(len(known)), key=lambda i: -merit[i])[:count]
    return [known[i] for i in sorted(best)]


def mean_embedding(normalizer: Normalizer, e: Encoding) -> Tensor:
    """(B, D): see Normalizer.mean_embedding."""
    return normalizer.mean_embedding(e.embeddings, e.mask)


def moved(
    normalizer: Normalizer, batch: Batch, change: Tensor, pooled_change: Tensor | None, writable: Tensor
) -> Treated:
    """The batch with a change (B, L, D), and (B, P) or None, of normalized units added where writable (B, L) is true;
    the pooled vector of a prompt changes where any of its token embeddings may."""
    e = batch.encoding
    embeddings = (e.embeddings.float() + change * normalizer.std).to(e.embeddings.dtype)
    embeddings = torch.where(writable[..., None], embeddings, e.embeddings)
    pooled = e.pooled
    if pooled is not None and pooled_change is not None:
        new = (pooled.float() + pooled_change * normalizer.pooled_std).to(pooled.dtype)
        pooled = torch.where(writable.any(1)[:, None], new, pooled)
    return treated(batch, embeddings, e.mask, pooled)


def threshold_for(method: Method, development: Development) -> float:
    """The score that at most FALSE_POSITIVES of the calibration prompts exceed."""
    return threshold_at(torch.cat([method.score(b) for b in development.batches(development.calibration)]))


def threshold_at(scores: Tensor, false_positives: float = FALSE_POSITIVES) -> float:
    """The lowest of the scores (N,) that at most `false_positives` of them exceed."""
    return float(scores.sort(descending=True).values[int(false_positives * len(scores))])


def text_places(e: Encoding) -> Tensor:
    """(B, L) bool: places of a token of the text."""
    return torch.tensor([[bool(token) for token in own] for own in e.tokens], device=e.mask.device) & e.mask


def text_kept(dataset: EncodedDataset) -> Tensor:
    """(R,) bool: kept embeddings of a token of the text."""
    pairs = zip(dataset.tokens, dataset.kept, strict=True)
    return torch.tensor([bool(tokens[place]) for tokens, kept in pairs for place in kept], dtype=torch.bool)


def substitute(batch: Batch, index: Sequence[int], other: Encoding, strength: float) -> Treated:
    """The batch with `other` (len(index) prompts) in place of the prompts of `index`, see alignment.lerp."""
    if not len(index) or strength == 0:
        return untouched(batch)
    out = batch.encoding.scatter(index, lerp(batch.select(index).encoding, other, strength))
    return treated(batch, out.embeddings, out.mask, out.pooled)


class EmptyPrompt:
    """The empty prompt's encoding, in place of what a method blocks. Encoded when it is first needed."""

    def __init__(self, encoder: TextEncoder) -> None:
        self.encoder = encoder
        self.encoding: Encoding | None = None

    def replace(self, batch: Batch, flagged: Tensor, strength: float) -> Treated:
        """The batch with the empty prompt where flagged (B,) is true."""
        index = flagged.nonzero().squeeze(1).tolist()
        if not index or strength == 0:
            return untouched(batch)
        self.encoding = self.encoding or self.encoder.encode([""])
        return substitute(batch, index, self.encoding.select([0] * len(index)), strength)
