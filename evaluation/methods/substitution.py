"""Another prompt's encoding in place of the prompt's own: what methods do that block, or encode again."""

from collections.abc import Sequence

from sanitizer.encoders.joining import blend
from torch import Tensor

from sanitizer.encoders import Encoding, TextEncoder

from ..base import Batch, Treated
from .common import replaced, untouched


def substitute(batch: Batch, index: Sequence[int], other: Encoding, strength: float) -> Treated:
    """The batch with `other` (len(index) prompts) in place of the prompts of `index`, see joining.blend."""
    if not len(index) or strength == 0:
        return untouched(batch)
    return replaced(batch, index, blend(batch.select(index).encoding, other, strength))


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
        rows, mask = e.embeddings.expand(many, -1, -1), e.mask.expand(many, -1)
        other = Encoding(rows, mask, pooled, e.tokens * many, e.offsets * many)
        return substitute(batch, index, other, strength)
