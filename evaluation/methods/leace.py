"""LEACE: the smallest affine change after which no linear probe finds the concept."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sanitizer.training.dataset import EncodedDataset

from ..base import Batch, Development, Treated
from .common import prepare, text_rows, untouched

CUTOFF = 1e-5
"""Directions with less than this share of the largest variance carry nothing."""


@dataclass(frozen=True)
class Eraser:
    """r(x) = x - W⁺ P W (x - E[x]), with W = Σxx^(-1/2) and P the orthogonal projection onto the columns of W Σxz.

    Theorem 4.3 of arXiv 2306.03819. For one label z, P has rank one.
    """

    mean: Tensor
    out: Tensor
    """(D,): W⁺ p."""
    into: Tensor
    """(D,): W p."""

    @classmethod
    def fit(cls, x: Tensor, z: Tensor, weight: Tensor) -> "Eraser":
        """x (N, D), label z (N,), weight (N,) of each example."""
        x, z, weight = x.double(), z.double(), (weight / weight.sum()).double()
        mean = weight @ x
        centred, label = x - mean, z - weight @ z
        covariance = (centred * weight[:, None]).T @ centred
        cross = (weight * label) @ centred
        values, vectors = torch.linalg.eigh(covariance)
        kept = values > CUTOFF * values[-1]
        roots = values.clamp_min(0).sqrt()
        inverse = torch.where(kept, 1 / roots.clamp_min(1e-12), 0.0)
        whitened = inverse * (vectors.T @ cross)
        p = whitened / whitened.norm().clamp_min(1e-12)
        return cls(mean.float(), (vectors @ (roots * kept * p)).float(), (vectors @ (inverse * p)).float())

    def change(self, x: Tensor) -> Tensor:
        """r(x) - x for (…, D)."""
        return -((x - self.mean) @ self.into)[..., None] * self.out


class Leace:
    """One eraser for the rows with text, one for those without (start, end, padding) and one for the pooled vector.

    A row counts by one over its prompt's rows, so that the mean row carries nothing either. There is no gate: every
    prompt is changed, as published.
    """

    name = "leace"
    title = "LEACE"
    source = "Belrose et al. 2023, LEACE: Perfect linear concept erasure in closed form, arXiv 2306.03819"

    def fit(self, development: Development) -> None:
        """Label 1 for unsafe prompts, 0 for their safe twins and for benign ones."""
        prepared = prepare(development)
        self.space = prepared.space
        groups = [(prepared.unsafe, 1.0), (prepared.safe, 0.0), (prepared.benign, 0.0)]
        parts = [_rows(encodings, label) for encodings, label in groups]
        x, weight, z, text = (torch.cat([part[i] for part in parts]) for i in range(4))
        self.text = Eraser.fit(x[text], z[text], weight[text])
        self.other = Eraser.fit(x[~text], z[~text], weight[~text]) if (~text).any() else None
        self.pooled = None
        if prepared.unsafe.pooled is not None:
            pooled = torch.cat([encodings.pooled.float() for encodings, _ in groups])
            labels = torch.cat([torch.full((len(encodings),), label) for encodings, label in groups])
            self.pooled = Eraser.fit(pooled, labels, torch.ones(len(pooled)))

    def score(self, batch: Batch) -> Tensor | None:
        """No score: it erases and does not detect."""

    def token_scores(self, batch: Batch) -> Tensor | None:
        """No score, likewise."""

    @torch.no_grad()
    def apply(self, batch: Batch, strength: float = 1.0) -> Treated:
        """Erase, times strength."""
        if strength == 0:
            return untouched(batch)
        e = batch.encoding
        x, pooled = self.space.rows(e), self.space.pooled(e)
        change = self.text.change(x)
        if self.other is not None:
            change = torch.where(text_rows(e)[..., None], change, self.other.change(x))
        pooled_change = None if pooled is None else strength * self.pooled.change(pooled)
        return self.space.moved(batch, strength * change, pooled_change, self.space.weight(e) > 0)


def _rows(encodings: EncodedDataset, label: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """All kept rows (R, D), their weights, labels, and whether they are of text; a prompt weighs 1 in all."""
    weight, text = encodings.weight.clone(), []
    for i, (tokens, kept) in enumerate(zip(encodings.tokens, encodings.kept, strict=True)):
        part = slice(int(encodings.start[i]), int(encodings.start[i + 1]))
        weight[part] /= weight[part].sum().clamp_min(1e-6)
        text += [bool(tokens[place]) for place in kept]
    return encodings.embeddings.float(), weight, torch.full((len(weight),), label), torch.tensor(text, dtype=torch.bool)
