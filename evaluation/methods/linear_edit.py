"""A closed-form linear edit in the manner of UCE and RECE, on the embedding in place of the attention's weights."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from sanitizer.encoders.alignment import align
from sanitizer.training.dataset import EncodedDataset

from ..types import Batch, Development, Treated, untouched
from .common import moved

PRESERVE = (0.1, 1.0, 10.0, 100.0)
"""λ1 is tuned among these. RECE's 0.1 is for sums over a handful of texts; over all of the split's it keeps nothing."""
RIDGE = 0.1
"""λ2, RECE's published value for all concepts."""
DERIVED, ROUNDS = 0.1, 3
"""λ of the derived concepts and the rounds, RECE's published values for nudity."""


def edit(old: Tensor, target: Tensor, anchor: Tensor, preserved: Tensor, preserve: float, ridge: float) -> Tensor:
    """W (D, D), for y = x W, that minimises

        mean |c W - a|² + preserve · mean |b W - b old|² + ridge · |W - old|²

    over c of target and a of anchor (N, D) and b of preserved (M, D). UCE's equation 7 with old outputs kept
    for what is preserved, as RECE's equation 3 has it.
    """
    cc, ca = target.T @ target / len(target), target.T @ anchor / len(target)
    keep = preserve * preserved.T @ preserved / len(preserved) + ridge * torch.eye(len(old), dtype=old.dtype)
    return torch.linalg.solve(cc + keep, ca + keep @ old)


def derive(edited: Tensor, wanted: Tensor, ridge: float) -> Tensor:
    """x (N, D) whose edited image is nearest to a wanted c (N, D): min |x W - c|² + ridge · |x|², RECE's equation 6.

    What an attacker would put in to get the concept out again.
    """
    wide = edited @ edited.T + ridge * torch.eye(len(edited), dtype=edited.dtype)
    return torch.linalg.solve(wide, edited @ wanted.T).T


class LinearEdit:
    """H W, with W from the closed form, edited anew for the concepts derived from it.

    UCE and RECE edit the keys' and values' projections of a diffusion model; where the embedding is all there is, the
    projection edited is the identity in front of them. λ1 is the one at which mean embeddings of unsafe prompts
    come nearest to their safe counterfactuals' and those of benign prompts stay nearest to themselves, the sum of both
    mean cosines. There is no gate: every prompt is changed, as published.
    """

    name = "linear_edit"
    title = "Linear edit (UCE, RECE)"
    source = "Gandikota et al. 2023, UCE, arXiv 2308.14761, equation 7; Gong et al. 2024, RECE, arXiv 2407.12383"

    def fit(self, development: Development) -> None:
        """From the embeddings at fault, and padding, of unsafe prompts to their partners in the safe ones."""
        self.normalizer = development.normalizer
        unsafe, safe, benign = development.encoded
        target, anchor = _aligned(unsafe, safe)
        means = [features[:, : len(self.normalizer.mean)] for features in development.features]
        self.edit = _tuned(target, anchor, torch.cat([_sample(safe), _sample(benign)]), *means)
        self.pooled = None
        if unsafe.pooled is not None:
            unsafe, safe, benign = (dataset.pooled.float() for dataset in development.encoded)
            self.pooled = _tuned(unsafe, safe, torch.cat([safe, benign]), unsafe, safe, benign)

    def score(self, batch: Batch) -> Tensor | None:
        """No score: it edits and does not detect."""

    def token_scores(self, batch: Batch) -> Tensor | None:
        """No score, likewise."""

    @torch.no_grad()
    def apply(self, batch: Batch, strength: float = 1.0) -> Treated:
        """H + strength · (H W - H)."""
        if strength == 0:
            return untouched(batch)
        e = batch.encoding
        x, pooled_change = self.normalizer(e.embeddings.float()), None
        if e.pooled is not None:
            pooled = self.normalizer.pooled(e.pooled.float())
            pooled_change = strength * (pooled @ self.pooled - pooled)
        writable = self.normalizer.weights(e.embeddings, e.mask) > 0
        return moved(self.normalizer, batch, strength * (x @ self.edit - x), pooled_change, writable)


def _tuned(target: Tensor, anchor: Tensor, preserved: Tensor, unsafe: Tensor, safe: Tensor, benign: Tensor) -> Tensor:
    """The edit (D, D) of the best λ1, judged by unsafe and safe (N, D) in pairs and benign (M, D)."""
    edits = [_fit(target.double(), anchor.double(), preserved.double(), preserve) for preserve in PRESERVE]
    return max(edits, key=lambda w: float(_cosine(unsafe @ w, safe) + _cosine(benign @ w, benign)))


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    return F.cosine_similarity(a, b, dim=-1).mean()


def _fit(target: Tensor, anchor: Tensor, preserved: Tensor, preserve: float) -> Tensor:
    same = torch.eye(target.shape[1], dtype=torch.double)
    edited = edit(same, target, anchor, preserved, preserve, RIDGE)
    for _ in range(ROUNDS):
        edited = edit(edited, derive(edited, target, DERIVED), anchor, preserved, preserve, RIDGE)
    return edited.float()


def _aligned(unsafe: EncodedDataset, safe: EncodedDataset) -> tuple[Tensor, Tensor]:
    """(N, D) and (N, D): kept embeddings of unsafe prompts that differ from the counterfactual's, or have no text, and
    the counterfactual's."""
    target, anchor = [], []
    for i in range(min(len(unsafe), len(safe))):
        places, differs = align(unsafe.tokens[i], safe.tokens[i])
        where = {place: at for at, place in enumerate(safe.kept[i])}
        for at, place in enumerate(unsafe.kept[i]):
            if (differs[place] or not unsafe.tokens[i][place]) and places[place] in where:
                target.append(int(unsafe.start[i]) + at)
                anchor.append(int(safe.start[i]) + where[places[place]])
    return unsafe.embeddings[target].float(), safe.embeddings[anchor].float()


def _sample(encodings: EncodedDataset, most: int = 20000) -> Tensor:
    """(M, D) kept embeddings, evenly taken."""
    step: Sequence[int] = range(0, len(encodings.embeddings), max(1, len(encodings.embeddings) // most))
    return encodings.embeddings[list(step)].float()
