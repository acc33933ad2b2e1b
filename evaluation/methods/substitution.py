"""Another prompt's encoding in place of the prompt's own: what methods do that block, or encode again."""

from collections.abc import Sequence

import torch
from torch import Tensor

from sanitizer.alignment import align
from sanitizer.encoders import Encoding, TextEncoder

from ..base import BATCH, Batch, Treated
from .common import padded, replaced, untouched


def substitute(batch: Batch, index: Sequence[int], other: Encoding, strength: float) -> Treated:
    """The batch with `other` (len(index) prompts) in place of the prompts of `index`, see :func:`blend`."""
    if not len(index) or strength == 0:
        return untouched(batch)
    return replaced(batch, index, *blend(batch.select(index).encoding, other, strength))


def blend(before: Encoding, after: Encoding, strength: float) -> tuple[Tensor, Tensor, Tensor | None]:
    """Rows, mask and pooled vector on the line from one encoding of a prompt to another.

    A row's partner is the row of the other prompt that stands for it (sanitizer.alignment). Below strength 1 the
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
        pooled = (pooled.float() + share * (other.pooled.float() - pooled.float())).to(pooled.dtype)
    return rows, base.mask, pooled


def _partners(base: Encoding, other: Encoding) -> Tensor:
    """(B, L, D) float32: for each row of base the row of other that stands for it, the last visible one for none."""
    out = torch.zeros(base.rows.shape, dtype=torch.float32, device=base.rows.device)
    for b, tokens in enumerate(base.tokens):
        seen = other.mask[b].nonzero().squeeze(1).tolist() or [0]
        length = int(base.mask[b].nonzero().max()) + 1 if base.mask[b].any() else 0
        places, _ = align(tokens[:length], other.tokens[b][: seen[-1] + 1])
        out[b, :length] = other.rows[b, [p if 0 <= p <= seen[-1] else seen[-1] for p in places]].float()
    return out


class EmptyPrompt:
    """The empty prompt's encoding, in place of what a method blocks. Encoded when it is first needed."""

    def __init__(self, encoder: TextEncoder) -> None:
        self.encoder = encoder
        self.encoding: Encoding | None = None

    def replace(self, batch: Batch, flagged: Tensor, strength: float) -> Treated:
        """The batch with the empty prompt where flagged (B,) is true."""
        index = flagged.nonzero().squeeze(1).tolist()
        if not index or strength == 0:
            return untouched(batch)
        e = self.encoding = self.encoding or self.encoder.encode([""])
        many = len(index)
        pooled = None if e.pooled is None else e.pooled.expand(many, -1)
        rows, mask = e.rows.expand(many, -1, -1), e.mask.expand(many, -1)
        other = Encoding(rows, mask, pooled, e.tokens * many, e.offsets * many)
        return substitute(batch, index, other, strength)


def encode(encoder: TextEncoder, prompts: Sequence[str]) -> Encoding:
    """Any number of prompts, encoded in order of length, as one encoding padded with zeros."""
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
