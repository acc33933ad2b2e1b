"""SAFREE, its text part: tokens near the concept's subspace are projected out of it."""

import torch
from torch import Tensor

from sanitizer.encoders import Encoding
from sanitizer.encoders.base import encode_all

from ..types import BATCH, Batch, Development, Treated, treated, untouched
from .common import telling_phrases, text_places, threshold_for

CONCEPTS = 20
"""Phrases that span the concept's subspace; the published list for nudity has 17."""


class Safree:
    """A token is at fault if the prompt without it lies further from the concept's subspace C than without others:
    d_i > (1 + α) · mean of d_j over j ≠ i, d_i = |(I - P_C) p_i|, p_i the embedding of the prompt without token i.

    Its embedding becomes (I - P_C) P_I e, P_I the projection onto the span of all p_i. α is the threshold; the paper's
    is 0.01. The paper encodes the prompt anew for each token, with the token masked. That is done with `exact`, the
    token cut out of the text, and costs a dozen encodings a prompt; otherwise p_i is the mean of the prompt's other
    embeddings of text, which is another test: on minilm, 100 unsafe and 100 calibration prompts of the split, AUROC
    0.37 where the exact one has 0.65, a true positive rate of 7 % at 1 % false positives where it has 12 %, and at the
    paper's α each of the two fires on all 200. The filters on the denoising steps and on the latent's frequencies need
    a diffusion model and are left out.
    """

    name = "safree"
    title = "SAFREE, text part"
    source = "Yoon et al. 2024, SAFREE: Training-Free and Adaptive Guard, arXiv 2410.12761, section 3.1 and 3.2"

    def __init__(self, exact: bool = False) -> None:
        self.exact = exact

    def fit(self, development: Development) -> None:
        """Span the concept's subspace, set α."""
        self.encoder = development.encoder
        e = encode_all(self.encoder, telling_phrases(development, CONCEPTS))
        self.basis = span(_text_mean(e))
        self.pooled_basis = None if e.pooled is None else span(e.pooled.float())
        self.alpha = threshold_for(self, development)

    @torch.no_grad()
    def score(self, batch: Batch) -> Tensor:
        """The largest d_i / mean of d_j, less 1: the α at which the prompt is left alone."""
        return self.token_scores(batch).amax(1)

    @torch.no_grad()
    def token_scores(self, batch: Batch) -> Tensor:
        """d_i / mean of d_j, less 1; -1 for a place without text or a prompt of a single token."""
        text = text_places(batch.encoding)
        distance = outside(self._without_each(batch), self.basis).norm(dim=-1) * text
        others = (distance.sum(1, keepdim=True) - distance) / (text.sum(1, keepdim=True) - 1).clamp_min(1)
        ratio = distance / others.clamp_min(1e-9) - 1
        return torch.where(text & (text.sum(1, keepdim=True) > 1), ratio, -1.0)

    @torch.no_grad()
    def apply(self, batch: Batch, strength: float = 1.0) -> Treated:
        """Project the tokens at fault, times strength."""
        e = batch.encoding
        fault = self.token_scores(batch) > self.alpha
        if strength == 0 or not fault.any():
            return untouched(batch)
        out, pooled, text = e.embeddings.clone(), None if e.pooled is None else e.pooled.clone(), text_places(e)
        left_out = self._without_each(batch)
        for b in fault.any(1).nonzero().squeeze(1).tolist():
            own = e.embeddings[b].float()
            prompt = span(left_out[b, text[b]])
            projected = outside(own @ prompt.T @ prompt, self.basis)
            new = (own + strength * (projected - own)).to(out.dtype)
            out[b] = torch.where(fault[b][:, None], new, e.embeddings[b])
            if pooled is not None:
                own = e.pooled[b].float()
                pooled[b] = (own + strength * (outside(own, self.pooled_basis) - own)).to(pooled.dtype)
        return treated(batch, out, e.mask, pooled)

    def _without_each(self, batch: Batch) -> Tensor:
        """(B, L, D): the embedding of the prompt without the token of each place of text."""
        e, text = batch.encoding, text_places(batch.encoding)
        if not self.exact:
            return without_each(e.embeddings.float(), text)
        out = torch.zeros(e.embeddings.shape, device=e.embeddings.device)
        places = text.nonzero().tolist()
        cut = [batch.prompts[b][: e.offsets[b][i][0]] + batch.prompts[b][e.offsets[b][i][1] :] for b, i in places]
        for first in range(0, len(cut), BATCH):
            means = _text_mean(encode_all(self.encoder, cut[first : first + BATCH]))
            out[tuple(torch.tensor(places[first : first + BATCH]).T)] = means
        return out


def span(x: Tensor) -> Tensor:
    """(N, D) -> orthonormal basis (R, D) of what they span."""
    _, values, basis = torch.linalg.svd(x, full_matrices=False)
    return basis[values > 1e-5 * values[0]]


def outside(x: Tensor, basis: Tensor) -> Tensor:
    """(I - P) x for x (…, D) and the projection P onto a basis (R, D)."""
    return x - x @ basis.T @ basis


def without_each(x: Tensor, text: Tensor) -> Tensor:
    """(B, L, D), (B, L) bool -> (B, L, D): for each place of text the mean of the prompt's other ones."""
    x = x * text[..., None]
    return (x.sum(1, keepdim=True) - x) / (text.sum(1) - 1).clamp_min(1)[:, None, None]


def _text_mean(e: Encoding) -> Tensor:
    text = text_places(e)[..., None]
    return (e.embeddings.float() * text).sum(1) / text.sum(1).clamp_min(1)
