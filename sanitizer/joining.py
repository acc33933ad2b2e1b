"""Encodings cut, joined and blended. B prompts, L rows, D channels, P pooled channels."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from .alignment import align
from .encoders.base import Encoding, TextEncoder

BATCH = 64


def encode(encoder: TextEncoder, prompts: Sequence[str]) -> Encoding:
    """Any number of prompts, at least one, encoded in order of length, as one encoding padded with zeros."""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    parts = [encoder.encode([prompts[i] for i in order[at : at + BATCH]]) for at in range(0, len(order), BATCH)]
    length = max(e.rows.shape[1] for e in parts)
    back = torch.tensor(order).argsort()
    tokens = [own + [""] * (length - len(own)) for e in parts for own in e.tokens]
    offsets = [list(own) + [(0, 0)] * (length - len(own)) for e in parts for own in e.offsets]
    return Encoding(
        rows=torch.cat([padded(e.rows, length) for e in parts])[back],
        mask=torch.cat([padded(e.mask, length) for e in parts])[back],
        pooled=None if parts[0].pooled is None else torch.cat([e.pooled for e in parts])[back],
        tokens=[tokens[i] for i in back.tolist()],
        offsets=[offsets[i] for i in back.tolist()],
    )


def select(e: Encoding, index: Sequence[int]) -> Encoding:
    """The prompts at these places."""
    at = torch.tensor(list(index), dtype=torch.long, device=e.rows.device)
    pooled = None if e.pooled is None else e.pooled[at]
    return Encoding(e.rows[at], e.mask[at], pooled, [e.tokens[i] for i in index], [e.offsets[i] for i in index])


def padded(values: Tensor, length: int) -> Tensor:
    """(B, L, …) with zeros, or False, to at least `length` rows."""
    missing = length - values.shape[1]
    if missing <= 0:
        return values
    return torch.cat([values, values.new_zeros(values.shape[0], missing, *values.shape[2:])], dim=1)


def exchanged(e: Encoding, index: Sequence[int], other: Encoding) -> Encoding:
    """A batch with the prompts of `other` in place of those of `index`; the rest is as it was, bit for bit, padded to
    the longer of both."""
    at = torch.tensor(list(index), dtype=torch.long, device=e.rows.device)
    length = max(e.rows.shape[1], other.rows.shape[1])
    rows, mask = padded(e.rows, length).clone(), padded(e.mask, length).clone()
    rows[at], mask[at] = padded(other.rows, length).to(e.rows), padded(other.mask, length).to(e.mask)
    pooled = e.pooled
    if pooled is not None and other.pooled is not None:
        pooled = pooled.clone()
        pooled[at] = other.pooled.to(pooled)
    tokens = [own + [""] * (length - len(own)) for own in e.tokens]
    offsets = [list(own) + [(0, 0)] * (length - len(own)) for own in e.offsets]
    for i, own, spans in zip(index, other.tokens, other.offsets, strict=True):
        tokens[i] = own + [""] * (length - len(own))
        offsets[i] = list(spans) + [(0, 0)] * (length - len(spans))
    return Encoding(rows, mask, pooled, tokens, offsets)


def blend(before: Encoding, after: Encoding, strength: float) -> Encoding:
    """Rows and pooled vectors on the line from one encoding of prompts to another.

    A row's partner is the row of the other prompt that stands for it (see :mod:`.alignment`). Below strength 1 the
    prompt has the rows of `before`, from 1 on those of `after`, so that strength 1 is `after` itself.
    """
    base, other = (before, after) if strength < 1 else (after, before)
    share = strength if strength < 1 else 1 - strength
    rows = base.rows
    if share:
        partner = _partners(base, other)
        rows = (rows.float() + share * (partner - rows.float())).to(rows.dtype)
    pooled = base.pooled
    if pooled is not None and share:
        step = other.pooled.to(pooled.device, torch.float32) - pooled.float()
        pooled = (pooled.float() + share * step).to(pooled.dtype)
    return replace(base, rows=rows, pooled=pooled)


def _partners(base: Encoding, other: Encoding) -> Tensor:
    """(B, L, D) float32: for each row of base the row of other that stands for it, the last visible one for none."""
    out = torch.zeros(base.rows.shape, dtype=torch.float32, device=base.rows.device)
    for b, tokens in enumerate(base.tokens):
        seen = other.mask[b].nonzero().squeeze(1).tolist() or [0]
        length = int(base.mask[b].nonzero().max()) + 1 if base.mask[b].any() else 0
        places, _ = align(tokens[:length], other.tokens[b][: seen[-1] + 1])
        out[b, :length] = other.rows[b, [p if 0 <= p <= seen[-1] else seen[-1] for p in places]].float()
    return out
