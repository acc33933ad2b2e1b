"""Ours: the Embedding Sanitizer, for the concept at hand."""

import torch
from torch import Tensor

from sanitizer.model.sanitizer import EmbeddingSanitizer

from ..base import Batch, Development, Treated


class Ours:
    """Score net, gate and erase net; its threshold is the one that was calibrated in training, on other prompts than
    the development split's."""

    name = "ours"
    title = "Ours"
    source = "this repository, after arXiv 2411.10329"

    def __init__(self, sanitizer: EmbeddingSanitizer) -> None:
        self.sanitizer = sanitizer

    def fit(self, development: Development) -> None:
        """Choose the concept."""
        self.concept = development.concept
        self.place = self.sanitizer.concepts.index(development.concept)

    @torch.no_grad()
    def score(self, batch: Batch) -> Tensor:
        """The prompt score."""
        e = batch.encoding
        return self.sanitizer.score(e.embeddings, e.mask, e.pooled).prompt[:, self.place]

    @torch.no_grad()
    def token_scores(self, batch: Batch) -> Tensor:
        """The token scores."""
        e = batch.encoding
        return self.sanitizer.score(e.embeddings, e.mask, e.pooled).tokens[..., self.place]

    @torch.no_grad()
    def apply(self, batch: Batch, strength: float = 1.0) -> Treated:
        """Sanitize for the one concept."""
        e = batch.encoding
        out = self.sanitizer.sanitize(e.embeddings, e.mask, e.pooled, strength=strength, concepts=[self.concept])
        touched = out.flagged if strength else torch.zeros_like(out.flagged)
        return Treated(out.embeddings, e.mask, out.pooled, touched)
