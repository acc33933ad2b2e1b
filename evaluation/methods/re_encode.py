"""Ours with re-encoding: words at fault replaced by an anchor, the prompt encoded again, the rest erased."""

from dataclasses import replace

import torch
from torch import Tensor

from sanitizer import artifact
from sanitizer.concepts import load_concepts
from sanitizer.errors import SanitizerError
from sanitizer.model import EmbeddingSanitizer

from ..base import Batch, Development, Treated
from .common import bare, untouched
from .ours import Ours
from .re_encoding import Anchors, ReEncoded, re_encode
from .substitution import substitute


class ReEncode:
    """Detects as ours does. Needs the prompt's text and the encoder, which a conditioning has no longer.

    Without a sanitizer it takes the one in weights/ that was trained on the development split's encoder.
    """

    name = "re_encode"
    title = "Ours, re-encoding"
    source = "this repository"

    def __init__(self, sanitizer: EmbeddingSanitizer | None = None) -> None:
        self.sanitizer = sanitizer

    def fit(self, development: Development) -> None:
        """Encode the training targets of the concept."""
        self.encoder = bare(development.encoder)
        if self.sanitizer is None:
            path = artifact.find(self.encoder.fingerprint, (artifact.WEIGHTS_FOLDER,))
            if path is None:
                raise SanitizerError(
                    f"Method {self.name}: no sanitizer for {self.encoder.fingerprint} in {artifact.WEIGHTS_FOLDER}. "
                    "Train one, or leave the method out."
                )
            self.sanitizer = artifact.load(path)
        self.detector = Ours(self.sanitizer)
        self.detector.fit(development)
        concepts = [c for c in load_concepts([development.concept]) if c.name == development.concept]
        self.anchors = Anchors.build(self.encoder, self.sanitizer, concepts, held_out=False)
        self.last: tuple[list[str], ReEncoded] | None = None

    def score(self, batch: Batch) -> Tensor:
        """The prompt score, before anything is rewritten."""
        return self.detector.score(batch)

    def token_scores(self, batch: Batch) -> Tensor:
        """The token scores, likewise."""
        return self.detector.token_scores(batch)

    @torch.no_grad()
    def apply(self, batch: Batch, strength: float = 1.0) -> Treated:
        """Rewrite and encode again; between the two encodings for other strengths, see substitution.blend."""
        if strength == 0:
            return untouched(batch)
        out = self._re_encoded(batch)
        other = replace(out.encoding, rows=out.rows, pooled=out.pooled)
        return substitute(batch, out.flagged.nonzero().squeeze(1).tolist(), other, strength)

    def _re_encoded(self, batch: Batch) -> ReEncoded:
        """The last batch is remembered, for other strengths."""
        if self.last is None or self.last[0] != batch.prompts:
            self.last = (
                list(batch.prompts),
                re_encode(
                    self.encoder,
                    self.sanitizer,
                    self.anchors,
                    batch.prompts,
                    batch.encoding,
                    concepts=[self.detector.concept],
                ),
            )
        return self.last[1]
