"""Ours with every concept switched on at once, as the nodes have it: what harmless prompts then lose."""

from torch import Tensor

from sanitizer.model.sanitizer import EmbeddingSanitizer

from .base import Batch, Development, Treated

ALL = "all_concepts"


class AllConcepts:
    """Not a method of the comparison, which is of one concept at a time."""

    name = "ours"
    title = "Ours, all concepts"
    source = "this repository"

    def __init__(self, sanitizer: EmbeddingSanitizer) -> None:
        self.sanitizer = sanitizer

    def fit(self, development: Development) -> None:
        """Nothing to tune."""

    def score(self, batch: Batch) -> Tensor | None:
        """No score: there is one for each concept."""

    def token_scores(self, batch: Batch) -> Tensor | None:
        """No score, likewise."""

    def apply(self, batch: Batch, strength: float = 1.0) -> Treated:
        """Sanitize, all concepts that can be erased."""
        e = batch.encoding
        out = self.sanitizer.sanitize(e.embeddings, e.mask, e.pooled, strength=strength)
        return Treated(out.embeddings, e.mask, out.pooled, out.flagged)
