"""Concept-vector subtraction: the mean difference between prompts with and without the concept, taken away."""

import torch
from torch import Tensor

from sanitizer.training.dataset import EncodedDataset

from ..types import Batch, Development, Treated, untouched
from .common import mean_embedding, moved, text_kept, text_places


class ConceptVector:
    """H - strength · v, with v the mean over pairs of the difference between an unsafe prompt and its safe
    counterfactual, one vector for token embeddings with text, one for those without and one for the pooled vector.

    That is Ring-A-Bell's concept vector with its sign turned, and the steering vector of activation addition. There is
    no gate: every prompt is changed, as published.
    """

    name = "concept_vector"
    title = "Concept vector"
    source = "Tsai et al. 2023, Ring-A-Bell, arXiv 2310.10012, equation 1; Turner et al. 2023, arXiv 2308.10248"

    def fit(self, development: Development) -> None:
        """Mean differences over the pairs."""
        self.normalizer = development.normalizer
        encoded = development.encoded[:2]
        unsafe, safe = map(_means, encoded)
        self.text, self.other = (u - s for u, s in zip(unsafe, safe, strict=True))
        self.pooled = None
        if encoded[0].pooled is not None:
            self.pooled = encoded[0].pooled.float().mean(0) - encoded[1].pooled.float().mean(0)
        unsafe, safe, _ = development.features
        self.direction = (unsafe - safe).mean(0)[: len(self.text)]

    @torch.no_grad()
    def score(self, batch: Batch) -> Tensor:
        """Projection of the mean embedding onto the vector. Nothing depends on it: the vector has no gate."""
        return mean_embedding(self.normalizer, batch.encoding) @ self.direction / self.direction.norm().clamp_min(1e-6)

    def token_scores(self, batch: Batch) -> Tensor:
        """Projection of each token embedding onto the vector of those with text."""
        return self.normalizer(batch.encoding.embeddings.float()) @ self.text / self.text.norm().clamp_min(1e-6)

    @torch.no_grad()
    def apply(self, batch: Batch, strength: float = 1.0) -> Treated:
        """Subtract, times strength."""
        if strength == 0:
            return untouched(batch)
        e = batch.encoding
        change = -strength * torch.where(text_places(e)[..., None], self.text, self.other)
        pooled = None if self.pooled is None else -strength * self.pooled.expand_as(e.pooled)
        return moved(self.normalizer, batch, change, pooled, self.normalizer.weights(e.embeddings, e.mask) > 0)


def _means(dataset: EncodedDataset) -> tuple[Tensor, Tensor]:
    """(D,) and (D,): the mean over prompts of their mean embedding with text, and of their mean embedding without."""
    text, means = text_kept(dataset), []
    prompt = torch.repeat_interleave(torch.arange(len(dataset)), dataset.start.diff())
    for chosen in (text, ~text):
        weight = torch.where(chosen, dataset.weight, 0.0)
        sums = torch.zeros(len(dataset), dataset.embeddings.shape[1])
        sums.index_add_(0, prompt, dataset.embeddings.float() * weight[:, None])
        totals = torch.zeros(len(dataset)).index_add_(0, prompt, weight)
        has = torch.zeros(len(dataset), dtype=torch.long).index_add_(0, prompt, chosen.long()) > 0
        means.append((sums / totals.clamp_min(1e-6)[:, None]).sum(0) / has.sum().clamp_min(1))
    return means[0], means[1]
