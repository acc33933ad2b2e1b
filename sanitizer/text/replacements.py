"""The index of safe words for re-encoding: the pairs of the concepts, found by the nearness of their targets.

A concept's pairs come from its file in concepts/. One that has no such file brings them along in the sanitizer's
header, see :class:`.model.header.Header`.
"""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ..encoders.base import BATCH, Progress, TextEncoder, encode_all
from ..errors import SanitizerError
from ..model.sanitizer import EmbeddingSanitizer
from ..prompts.concepts import FOLDER, Pair, available, evenly, load_concept

MOST_TARGETS = 256
"""Targets of a concept that are encoded, taken evenly from its file: a large encoder needs minutes for all, and they
find no better anchors."""
UNKNOWN_KIND = "noun"
"""Kind of the pairs out of a header; nothing here depends on it."""


class Replacements:
    """The pairs of a sanitizer's concepts, with their targets as its encoder sees them, each encoded when needed.

    encoder None: it is set before the first use.
    """

    def __init__(
        self,
        encoder: TextEncoder | None,
        sanitizer: EmbeddingSanitizer,
        pairs: Mapping[str, Sequence[Pair]],
        progress: Progress | None = None,
    ) -> None:
        self.encoder, self.sanitizer = encoder, sanitizer
        self.pairs = {name: evenly(list(own), MOST_TARGETS) for name, own in pairs.items()}
        self.progress = progress or (lambda stage, done, total, values: None)
        self._vectors: dict[str, Tensor] = {}

    @classmethod
    def known(
        cls,
        encoder: TextEncoder | None,
        sanitizer: EmbeddingSanitizer,
        concepts: Iterable[str] | None = None,
        held_out: bool = True,
        progress: Progress | None = None,
    ) -> "Replacements":
        """Of the named concepts, None for all that can be erased. held_out False: without the pairs that are kept from
        training. Raises SanitizerError for a concept whose pairs are not known. Encodes nothing yet."""
        names = sanitizer.erasable if concepts is None else tuple(concepts)
        pairs = {name: known_pairs(sanitizer, name) for name in names}
        if not held_out:
            pairs = {name: [pair for pair in own if not pair.held_out] for name, own in pairs.items()}
        return cls(encoder, sanitizer, pairs, progress)

    def vectors(self, concept: str) -> Tensor:
        """(N, D) of unit length: the targets of the concept, encoded at the first call."""
        if concept not in self._vectors:
            texts, found = [pair.target for pair in self.pairs[concept]], []
            for at in range(0, len(texts), BATCH):
                self.progress(f"anchors of {concept}", at, len(texts), {})
                found.append(self.embed(texts[at : at + BATCH]))
            self.progress(f"anchors of {concept}", len(texts), len(texts), {})
            self._vectors[concept] = torch.cat(found)
        return self._vectors[concept]

    def embed(self, texts: Sequence[str]) -> Tensor:
        """(N, D) of unit length: the mean normalized embedding of each text's tokens, without start, end, padding."""
        if self.encoder is None:
            raise ValueError("replacements without an encoder: set it first")
        e = encode_all(self.encoder, texts)
        text = torch.tensor([[bool(token) for token in own] for own in e.tokens], device=e.mask.device)
        return F.normalize(self.sanitizer.normalizer.mean_embedding(e.embeddings, e.mask & text), dim=-1)

    def nearest(self, concept: str, vectors: Tensor) -> list[Pair]:
        """For each of (M, D) the pair of the concept whose target is the nearest by cosine."""
        found = (vectors @ self.vectors(concept).T).argmax(dim=1)
        return [self.pairs[concept][i] for i in found.tolist()]


def known_pairs(sanitizer: EmbeddingSanitizer, concept: str) -> list[Pair]:
    """The pairs of one of the sanitizer's concepts: the header's, else those of the file in concepts/.

    Raises SanitizerError where neither knows them.
    """
    stored = sanitizer.header.replacements.get(concept) if sanitizer.header else None
    if stored:
        return [Pair(*three, UNKNOWN_KIND) for three in stored]
    pairs = list(load_concept(FOLDER / f"{concept}.toml").pairs) if concept in available() else []
    if not pairs:
        raise SanitizerError(
            f"Concept {concept!r}: re-encoding needs its pairs of target and anchor, but there is no file of that name "
            "in concepts/ and the sanitizer's file does not hold them. Train it again, leave the concept out, or use "
            "mode rewrite."
        )
    return pairs
