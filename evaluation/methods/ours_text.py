"""Ours, where the text is at hand: what reads differently from what is written is scored as it reads, too."""

import torch
from torch import Tensor

from sanitizer.errors import SanitizerError
from sanitizer.model import artifact
from sanitizer.model.sanitizer import EmbeddingSanitizer
from sanitizer.prompts.concepts import load_concepts
from sanitizer.prompts.templates import load_templates
from sanitizer.text.deobfuscate import Deobfuscated, Deobfuscator, deobfuscated

from ..base import Batch, Development, Treated
from .common import bare
from .ours import Ours


class OursText(Ours):
    """The command line's way: the higher score counts. The reader knows no word that is kept from training.

    Without a sanitizer it takes the one in weights/ that was trained on the development split's encoder.
    """

    name = "ours_text"
    title = "Ours, with readings"

    def __init__(self, sanitizer: EmbeddingSanitizer | None = None) -> None:
        self.sanitizer = sanitizer

    def fit(self, development: Development) -> None:
        """Choose the concept; make a reader of the training words of all concepts."""
        self.encoder = bare(development.encoder)
        if self.sanitizer is None:
            self.sanitizer = _of_encoder(self.encoder, self.name)
        super().fit(development)
        self.reader = Deobfuscator.from_concepts(load_concepts(), load_templates(), held_out=False)
        self.last: tuple[list[str], Deobfuscated] | None = None

    def reading(self, batch: Batch) -> Deobfuscated:
        """Of the batch; the last one is remembered, for scores and other strengths."""
        if self.last is None or self.last[0] != batch.prompts:
            found = deobfuscated(self.encoder, self.sanitizer, self.reader, batch.prompts, batch.encoding)
            self.last = (list(batch.prompts), found)
        return self.last[1]

    @torch.no_grad()
    def score(self, batch: Batch) -> Tensor:
        """The higher prompt score of what is written and what it reads as."""
        score, read = super().score(batch), self.reading(batch).scores
        return score if read is None else torch.maximum(score, read[:, self.place])

    @torch.no_grad()
    def apply(self, batch: Batch, strength: float = 1.0) -> Treated:
        """Sanitize for the one concept."""
        e, read = batch.encoding, self.reading(batch).scores
        out = self.sanitizer.sanitize(
            e.embeddings, e.mask, e.pooled, strength=strength, concepts=[self.concept], also=read
        )
        touched = out.flagged if strength else torch.zeros_like(out.flagged)
        return Treated(out.embeddings, e.mask, out.pooled, touched)


def _of_encoder(encoder, name: str) -> EmbeddingSanitizer:
    path = artifact.find(encoder.fingerprint, (artifact.WEIGHTS_FOLDER,))
    if path is None:
        raise SanitizerError(
            f"Method {name}: no sanitizer for {encoder.fingerprint} in {artifact.WEIGHTS_FOLDER}. "
            "Train one, or leave the method out."
        )
    return artifact.load(path)
