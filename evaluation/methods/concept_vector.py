"""Concept-vector subtraction: the mean difference between prompts with and without the concept, taken away."""

import torch
from torch import Tensor

from sanitizer.training.dataset import EncodedDataset

from ..base import Batch, Development, Treated
from .common import prepare, text_rows, untouched


class ConceptVector:
    """H - strength · v, with v the mean over pairs of the difference between an unsafe prompt and its safe twin, one
    vector for rows with text, one for those without and one for the pooled vector.

    That is Ring-A-Bell's concept vector with its sign turned, and the steering vector of activation addition. There is
    no gate: every prompt is changed, as published.
    """

    name = "concept_vector"
    title = "Concept vector"
    source = "Tsai et al. 2023, Ring-A-Bell, arXiv 2310.10012, equation 1; Turner et al. 2023, arXiv 2308.10248"

    def fit(self, development: Development) -> None:
        """Mean differences over the pairs."""
        prepared = prepare(development)
        self.space = prepared.space
        unsafe, safe = _means(prepared.unsafe), _means(prepared.safe)
        self.text, self.other = (u - s for u, s in zip(unsafe, safe, strict=True))
        self.pooled = None
        if prepared.unsafe.pooled is not None:
            self.pooled = prepared.unsafe.pooled.float().mean(0) - prepared.safe.pooled.float().mean(0)
        width = len(self.text)
        summaries = prepared.summaries
        self.direction = (summaries[0] - summaries[1]).mean(0)[:width]

    @torch.no_grad()
    def score(self, batch: Batch) -> Tensor:
        """Projection of the mean row onto the vector. Nothing depends on it: the vector has no gate."""
        return self.space.mean_row(batch.encoding) @ self.direction / self.direction.norm().clamp_min(1e-6)

    def token_scores(self, batch: Batch) -> Tensor:
        """Projection of each row onto the vector of the rows with text."""
        return self.space.rows(batch.encoding) @ self.text / self.text.norm().clamp_min(1e-6)

    @torch.no_grad()
    def apply(self, batch: Batch, strength: float = 1.0) -> Treated:
        """Subtract, times strength."""
        if strength == 0:
            return untouched(batch)
        e = batch.encoding
        change = -strength * torch.where(text_rows(e)[..., None], self.text, self.other)
        pooled = None if self.pooled is None else -strength * self.pooled.expand_as(e.pooled)
        return self.space.moved(batch, change, pooled, self.space.weight(e) > 0)


def _means(encodings: EncodedDataset) -> tuple[Tensor, Tensor]:
    """(D,) and (D,): the mean over prompts of their mean row with text, and of their mean row without."""
    sums = torch.zeros(2, encodings.embeddings.shape[1])
    counts = torch.zeros(2)
    for i, (tokens, kept) in enumerate(zip(encodings.tokens, encodings.kept, strict=True)):
        part = slice(int(encodings.start[i]), int(encodings.start[i + 1]))
        rows, weight = encodings.embeddings[part].float(), encodings.weight[part]
        text = torch.tensor([bool(tokens[place]) for place in kept], dtype=torch.bool)
        for group, chosen in enumerate((text, ~text)):
            if chosen.any():
                sums[group] += weight[chosen] @ rows[chosen] / weight[chosen].sum().clamp_min(1e-6)
                counts[group] += 1
    means = sums / counts.clamp_min(1)[:, None]
    return means[0], means[1]
