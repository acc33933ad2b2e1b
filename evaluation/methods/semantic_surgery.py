"""Semantic Surgery: subtract the concept's own embedding, by as much as the prompt resembles it."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from sanitizer.encoders import Encoding
from sanitizer.encoders.base import encode_all

from ..types import Batch, Development, Treated, treated, untouched
from .common import telling_phrases, threshold_at

CONCEPTS = 16
"""Phrases that stand for the concept."""
TOGETHER = 4
"""Concepts found in one prompt that are encoded together, the most present first."""
NEUTRAL = ""
SHARP = 0.02
"""γ as published, where the split does not give one."""
FULL = 0.95
"""Presence that the median unsafe prompt of the split gets."""


class SemanticSurgery:
    """H - ρ · (E(concepts) - E("")), ρ = sigmoid((cos(H, E(c) - E("")) - β) / γ) of the most present concept c.

    The cosine is the mean over token embeddings; concepts that are present (ρ at least 1/2) are encoded as one text. β
    is the threshold, γ such that the median unsafe prompt has ρ = 0.95. Where prompts have different numbers of token
    embeddings, these have no fixed places to be compared at, and the difference of the means stands for each. The
    visual feedback of the paper needs images and is left out.
    """

    name = "semantic_surgery"
    title = "Semantic Surgery"
    source = "Xiong et al. 2025, Semantic Surgery: Zero-Shot Concept Erasure in Diffusion Models, NeurIPS 2025"

    def fit(self, development: Development) -> None:
        """Choose the phrases, set β and γ."""
        self.normalizer, self.encoder = development.normalizer, development.encoder
        self.by_place = self.normalizer.window is not None
        self.phrases = telling_phrases(development, CONCEPTS)
        self.neutral = self._embedding(encode_all(self.encoder, [NEUTRAL]))[0]
        self.neutral_pooled = encode_all(self.encoder, [NEUTRAL]).pooled
        self.directions = F.normalize(self._embedding(encode_all(self.encoder, self.phrases)) - self.neutral, dim=-1)
        self.combined: dict[tuple[int, ...], tuple[Tensor, Tensor | None]] = {}
        unsafe, harmless = (
            torch.cat([self.score(batch) for batch in development.batches(texts)])
            for texts in (development.unsafe, development.calibration)
        )
        self.threshold = threshold_at(harmless)
        slope = (float(unsafe.median()) - self.threshold) / math.log(FULL / (1 - FULL))
        self.gamma = slope if slope > 0 else SHARP

    def presence(self, batch: Batch) -> Tensor:
        """(B, C) cosine of the prompt with every concept."""
        e = batch.encoding
        weight, x = self.normalizer.weights(e.embeddings, e.mask), F.normalize(e.embeddings.float(), dim=-1)
        if self.by_place:
            directions = self._at_places(self.directions, x.shape[1])
            # An embedding that is the same for all prompts has no direction and no say.
            similar = torch.einsum("bld,cld->bcl", x, directions)
        else:
            similar = torch.einsum("bld,cd->bcl", x, self.directions)
        return (similar * weight[:, None]).sum(-1) / weight.sum(-1, keepdim=True).clamp_min(1e-6)

    @torch.no_grad()
    def score(self, batch: Batch) -> Tensor:
        """Cosine with the most present concept."""
        return self.presence(batch).amax(1)

    def token_scores(self, batch: Batch) -> Tensor | None:
        """No score: what is present is said of the prompt."""

    @torch.no_grad()
    def apply(self, batch: Batch, strength: float = 1.0) -> Treated:
        """Subtract, times strength, where a concept is present."""
        presence = self.presence(batch)
        flagged = presence.amax(1) > self.threshold
        if strength == 0 or not flagged.any():
            return untouched(batch)
        e = batch.encoding
        out, pooled = e.embeddings.clone(), None if e.pooled is None else e.pooled.clone()
        writable = self.normalizer.weights(e.embeddings, e.mask) > 0
        for b in flagged.nonzero().squeeze(1).tolist():
            own = presence[b]
            found = [i for i in own.argsort(descending=True).tolist() if own[i] > self.threshold][:TOGETHER]
            amount = strength * float(torch.sigmoid((own.max() - self.threshold) / self.gamma))
            direction, pooled_direction = self._difference(tuple(sorted(found)))
            direction = self._at_places(direction[None], out.shape[1])[0] if self.by_place else direction
            new = (e.embeddings[b].float() - amount * direction).to(out.dtype)
            out[b] = torch.where(writable[b][:, None], new, e.embeddings[b])
            if pooled is not None:
                pooled[b] = (e.pooled[b].float() - amount * pooled_direction).to(pooled.dtype)
        return treated(batch, out, e.mask, pooled)

    def _difference(self, found: tuple[int, ...]) -> tuple[Tensor, Tensor | None]:
        """(L, D) or (D,), and (P,) or None: the concepts' joint encoding less the neutral one."""
        if found not in self.combined:
            e = self.encoder.encode([", ".join(self.phrases[i] for i in found)])
            pooled = None if e.pooled is None else (e.pooled - self.neutral_pooled)[0].float()
            self.combined[found] = self._embedding(e)[0] - self.neutral, pooled
        return self.combined[found]

    def _embedding(self, e: Encoding) -> Tensor:
        """(B, L, D) where token embeddings have fixed places, else their mean (B, D)."""
        if self.by_place:
            return e.embeddings.float()[:, : self.normalizer.window]
        weight = self.normalizer.weights(e.embeddings, e.mask)[..., None]
        return (e.embeddings.float() * weight).sum(1) / weight.sum(1).clamp_min(1e-6)

    @staticmethod
    def _at_places(values: Tensor, length: int) -> Tensor:
        """(C, L, D) repeated for a prompt of several windows, cut to its length."""
        return values.repeat(1, -(-length // values.shape[1]), 1)[:, :length]
