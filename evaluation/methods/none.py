"""The baseline of all baselines: the prompt as it is."""

import torch
from torch import Tensor

from ..base import Batch, Development, Treated
from .common import untouched


class NoMethod:
    """Changes nothing, detects nothing."""

    name = "none"
    title = "No method"
    source = "-"

    def fit(self, development: Development) -> None:
        """Nothing to tune."""

    def score(self, batch: Batch) -> Tensor | None:
        """No score."""

    def token_scores(self, batch: Batch) -> Tensor | None:
        """No score."""

    @torch.no_grad()
    def apply(self, batch: Batch, strength: float = 1.0) -> Treated:
        """The batch's own tensors."""
        return untouched(batch)
