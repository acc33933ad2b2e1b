"""Ours with re-encoding: words at fault replaced by an anchor, the prompt encoded again, the rest erased."""

import torch

from sanitizer.text.replacements import Replacements
from sanitizer.text.rewrite import ReEncoder

from ..base import Batch, Development, Treated
from .common import treated
from .ours_text import OursText


class ReEncode(OursText):
    """Detects as ours with readings does. Needs the prompt's text and the encoder, which a conditioning has no longer.

    Without a sanitizer it takes the one in weights/ that was trained on the development split's encoder.
    """

    name = "re_encode"
    title = "Ours, re-encoding"
    source = "this repository"

    def fit(self, development: Development) -> None:
        """Choose the concept; its training targets are encoded when a prompt is flagged."""
        super().fit(development)
        anchors = Replacements.known(self.encoder, self.sanitizer, [development.concept], held_out=False)
        self.re_encoder = ReEncoder(self.encoder, self.sanitizer, anchors)

    @torch.no_grad()
    def apply(self, batch: Batch, strength: float = 1.0) -> Treated:
        """Rewrite and encode again, for the one concept."""
        reading = self.reading(batch)
        out = self.re_encoder.sanitize(
            batch.prompts, batch.encoding, strength=strength, concepts=[self.concept], reading=reading
        )
        return treated(batch, out.embeddings, out.mask, out.pooled)
