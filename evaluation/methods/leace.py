"""LEACE: the smallest affine change after which no linear probe finds the concept. By its authors' own package."""

import torch
from concept_erasure import LeaceEraser, LeaceFitter
from torch import Tensor

from ..types import Batch, Development, Treated, untouched
from .common import moved, text_kept, text_places


def weighted_eraser(x: Tensor, z: Tensor, weight: Tensor) -> LeaceEraser:
    """The eraser of x (N, D), labels z (N,), where each example counts by its weight (N,).

    The fitter takes whole batches; its running statistics are public, and are set here to the weighted ones.
    """
    x, z = x.double(), z.double()[:, None]
    weight = weight.double()[:, None] * len(x) / weight.double().sum()
    fitter = LeaceFitter(x.shape[1], 1, dtype=x.dtype)
    fitter.n = torch.tensor(len(x))
    fitter.mean_x, fitter.mean_z = (weight * x).mean(0), (weight * z).mean(0)
    centred = x - fitter.mean_x
    fitter.sigma_xx_ = centred.T @ (weight * centred)
    fitter.sigma_xz_ = centred.T @ (weight * (z - fitter.mean_z))
    found = fitter.eraser
    return LeaceEraser(found.proj_left.float(), found.proj_right.float(), found.bias.float())


class Leace:
    """One eraser for token embeddings with text, one for those without (start, end, padding) and one for the pooled
    vector.

    A token embedding counts by one over its prompt's number of them, so that their mean carries nothing either. There
    is no gate: every prompt is changed, as published.
    """

    name = "leace"
    title = "LEACE"
    source = "Belrose et al. 2023, LEACE: Perfect linear concept erasure in closed form, arXiv 2306.03819"

    def fit(self, development: Development) -> None:
        """Label 1 for unsafe prompts, 0 for their safe counterfactuals and for benign ones."""
        self.normalizer, datasets = development.normalizer, development.encoded
        x = torch.cat([d.embeddings.float() for d in datasets])
        z = torch.cat([torch.full((len(d.embeddings),), float(at == 0)) for at, d in enumerate(datasets)])
        # A prompt weighs 1 in all.
        weight = torch.cat([d.weight / _totals(d.weight, d.start) for d in datasets])
        text = torch.cat([text_kept(d) for d in datasets])
        self.text = weighted_eraser(x[text], z[text], weight[text])
        self.other = weighted_eraser(x[~text], z[~text], weight[~text]) if (~text).any() else None
        self.pooled = None
        if datasets[0].pooled is not None:
            labels = torch.cat([torch.full((len(d),), float(at == 0)) for at, d in enumerate(datasets)])
            self.pooled = LeaceEraser.fit(torch.cat([d.pooled.float() for d in datasets]), labels)

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
        x, pooled_change = self.normalizer(e.embeddings.float()), None
        change = self.text(x) - x
        if self.other is not None:
            change = torch.where(text_places(e)[..., None], change, self.other(x) - x)
        if e.pooled is not None:
            pooled = self.normalizer.pooled(e.pooled.float())
            pooled_change = strength * (self.pooled(pooled) - pooled)
        writable = self.normalizer.weights(e.embeddings, e.mask) > 0
        return moved(self.normalizer, batch, strength * change, pooled_change, writable)


def _totals(weight: Tensor, start: Tensor) -> Tensor:
    """(R,): for each kept embedding the sum of the weights (R,) of its prompt's."""
    lengths = start.diff()
    prompt = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    return torch.zeros(len(lengths)).index_add_(0, prompt, weight).clamp_min(1e-6)[prompt]
