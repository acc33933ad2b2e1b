"""Ours: the Embedding Sanitizer on embeddings alone, with deobfuscation, and with re-encoding."""

import torch
from torch import Tensor

from sanitizer.model.sanitizer import EmbeddingSanitizer
from sanitizer.prompts.concepts import Concept, load_concepts
from sanitizer.prompts.templates import load_templates
from sanitizer.text.deobfuscate import Deobfuscated, Deobfuscator, deobfuscated
from sanitizer.text.replacements import Replacements
from sanitizer.text.rewrite import ReEncoder

from ..types import Batch, Development, Treated, treated


class Ours:
    """Score net, gate and erase net; its threshold is the one that was calibrated in training, on other prompts than
    the development split's."""

    name = "ours"
    title = "Ours"
    source = "this repository, after arXiv 2411.10329"

    def __init__(self, sanitizer: EmbeddingSanitizer) -> None:
        self.sanitizer = sanitizer

    def fit(self, development: Development) -> None:
        """Choose the concept."""
        self.concept = development.concept
        self.place = self.sanitizer.concepts.index(development.concept)

    @torch.no_grad()
    def score(self, batch: Batch) -> Tensor:
        """The prompt score."""
        e = batch.encoding
        return self.sanitizer.score(e.embeddings, e.mask, e.pooled, trusted=True).prompt[:, self.place]

    @torch.no_grad()
    def token_scores(self, batch: Batch) -> Tensor:
        """The token scores."""
        e = batch.encoding
        return self.sanitizer.score(e.embeddings, e.mask, e.pooled, trusted=True).tokens[..., self.place]

    @torch.no_grad()
    def apply(self, batch: Batch, strength: float = 1.0) -> Treated:
        """Sanitize for the one concept."""
        return _sanitized(self.sanitizer, batch, strength, [self.concept])


class OursText(Ours):
    """Where the text is at hand, the command line's way: what reads differently from what is written, such as n4k3d,
    is scored as it reads, too, and the higher score counts. The deobfuscator knows no word that is kept from training.
    """

    name = "ours_text"
    title = "Ours, with deobfuscation"

    def __init__(self, sanitizer: EmbeddingSanitizer, concepts: list[Concept] | None = None) -> None:
        """concepts: whose words the deobfuscator knows, None for all files in concepts/."""
        super().__init__(sanitizer)
        self.concepts = concepts

    def fit(self, development: Development) -> None:
        """Choose the concept; make a deobfuscator of the training words of all concepts."""
        super().fit(development)
        self.encoder = development.encoder
        concepts = self.concepts or load_concepts()
        self.deobfuscator = Deobfuscator.from_concepts(concepts, load_templates(), held_out=False)
        self.last: tuple[list[str], Deobfuscated] | None = None

    def deobfuscated(self, batch: Batch) -> Deobfuscated:
        """Of the batch; the last one is remembered, for scores and other strengths."""
        if self.last is None or self.last[0] != batch.prompts:
            found = deobfuscated(self.encoder, self.sanitizer, self.deobfuscator, batch.prompts, batch.encoding)
            self.last = (list(batch.prompts), found)
        return self.last[1]

    @torch.no_grad()
    def score(self, batch: Batch) -> Tensor:
        """The higher prompt score of what is written and what it reads as."""
        score, read = super().score(batch), self.deobfuscated(batch).scores
        return score if read is None else torch.maximum(score, read[:, self.place])

    @torch.no_grad()
    def apply(self, batch: Batch, strength: float = 1.0) -> Treated:
        """Sanitize for the one concept."""
        return _sanitized(self.sanitizer, batch, strength, [self.concept], self.deobfuscated(batch).scores)


class ReEncode(OursText):
    """Words at fault replaced by an anchor, the prompt encoded again, the rest erased. Detects as ours with
    deobfuscation does. Needs the prompt's text and the encoder, which a conditioning has no longer."""

    name = "re_encode"
    title = "Ours, re-encoding"
    source = "this repository"

    def fit(self, development: Development) -> None:
        """Choose the concept; its training targets are encoded when a prompt is flagged."""
        super().fit(development)
        replacements = Replacements.known(self.encoder, self.sanitizer, [development.concept], held_out=False)
        self.re_encoder = ReEncoder(self.encoder, self.sanitizer, replacements)

    @torch.no_grad()
    def apply(self, batch: Batch, strength: float = 1.0) -> Treated:
        """Rewrite and encode again, for the one concept."""
        reading = self.deobfuscated(batch)
        out = self.re_encoder.sanitize(
            batch.prompts, batch.encoding, strength=strength, concepts=[self.concept], reading=reading
        )
        return treated(batch, out.embeddings, out.mask, out.pooled)


class AllConcepts:
    """Ours with every concept switched on at once, as the nodes have it: what harmless prompts then lose. Not a method
    of the comparison, which is of one concept at a time."""

    name = "ours"
    title = "Ours, all concepts"
    source = "this repository"

    def __init__(self, sanitizer: EmbeddingSanitizer) -> None:
        self.sanitizer = sanitizer

    def fit(self, development: Development) -> None:
        """Nothing to tune."""

    def score(self, batch: Batch) -> Tensor | None:
        """No score: there is one for each concept."""

    def token_scores(self, batch: Batch) -> Tensor | None:
        """No score, likewise."""

    def apply(self, batch: Batch, strength: float = 1.0) -> Treated:
        """Sanitize, all concepts that can be erased."""
        return _sanitized(self.sanitizer, batch, strength, None)


def _sanitized(sanitizer, batch: Batch, strength: float, concepts: list[str] | None, also=None) -> Treated:
    e = batch.encoding
    given = {"strength": strength, "concepts": concepts, "also": also, "trusted": True}
    out = sanitizer.sanitize(e.embeddings, e.mask, e.pooled, **given)
    return Treated(out.embeddings, e.mask, out.pooled, out.flagged if strength else torch.zeros_like(out.flagged))
