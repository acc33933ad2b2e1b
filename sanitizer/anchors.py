"""Where re-encoding takes the safe words from: the pairs of the concepts, found by the nearness of their targets.

A concept's pairs come from its file in concepts/. One that has no such file brings them along in the sanitizer's
header, under "anchors": concept -> [[target, anchor, canonical], …].
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from .concepts import FOLDER, MAX_PHRASE, Concept, Pair, available, load_concept
from .encoders.base import TextEncoder
from .errors import SanitizerError
from .joining import BATCH, encode
from .model import EmbeddingSanitizer

MOST_TARGETS = 256
"""Targets of a concept that are encoded, taken evenly from its file: a large encoder needs minutes for all, and they
find no better anchors."""
MOST_STORED = 256
"""Pairs of a concept that a sanitizer's header holds."""
KEY = "anchors"
UNKNOWN_KIND = "noun"
"""Kind of the pairs out of a header; nothing here depends on it."""

Progress = Callable[[str, int, int, dict[str, float]], None]


class Anchors:
    """The pairs of a sanitizer's concepts, with their targets as its encoder sees them, each encoded when needed."""

    def __init__(
        self,
        encoder: TextEncoder,
        sanitizer: EmbeddingSanitizer,
        pairs: Mapping[str, Sequence[Pair]],
        progress: Progress | None = None,
    ) -> None:
        self.encoder, self.sanitizer = encoder, sanitizer
        self.pairs = {name: _evenly(list(own), MOST_TARGETS) for name, own in pairs.items()}
        self.progress = progress or (lambda stage, done, total, values: None)
        self._vectors: dict[str, Tensor] = {}

    @classmethod
    def known(
        cls,
        encoder: TextEncoder,
        sanitizer: EmbeddingSanitizer,
        concepts: Iterable[str] | None = None,
        held_out: bool = True,
        progress: Progress | None = None,
    ) -> "Anchors":
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
                found.append(text_vectors(self.encoder, self.sanitizer, texts[at : at + BATCH]))
            self.progress(f"anchors of {concept}", len(texts), len(texts), {})
            self._vectors[concept] = torch.cat(found)
        return self._vectors[concept]

    def nearest(self, concept: str, vectors: Tensor) -> list[Pair]:
        """For each of (M, D) the pair of the concept whose target is the nearest by cosine."""
        found = (vectors @ self.vectors(concept).T).argmax(dim=1)
        return [self.pairs[concept][i] for i in found.tolist()]


def known_pairs(sanitizer: EmbeddingSanitizer, concept: str) -> list[Pair]:
    """The pairs of one of the sanitizer's concepts: the header's, else those of the file in concepts/.

    Raises SanitizerError where neither knows them.
    """
    stored = sanitizer.info.get(KEY, {}).get(concept)
    if stored:
        return [Pair(target, anchor, canonical, UNKNOWN_KIND) for target, anchor, canonical in stored]
    pairs = list(load_concept(FOLDER / f"{concept}.toml").pairs) if concept in available() else []
    if not pairs:
        raise SanitizerError(
            f"Concept {concept!r}: re-encoding needs its pairs of target and anchor, but there is no file of that name "
            "in concepts/ and the sanitizer's file does not hold them. Train it again, leave the concept out, or use "
            "mode rewrite."
        )
    return pairs


def remember(sanitizer: EmbeddingSanitizer, concepts: Iterable[Concept]) -> None:
    """Put the pairs of the concepts that differ from concepts/, or have no file there, into the sanitizer's header."""
    own = {}
    for concept in concepts:
        if concept.context or not concept.pairs:
            continue
        if concept.name in available() and load_concept(FOLDER / f"{concept.name}.toml").pairs == concept.pairs:
            continue
        pairs = _evenly([pair for pair in concept.pairs if not pair.held_out], MOST_STORED)
        own[concept.name] = [list(three) for three in dict.fromkeys((p.target, p.anchor, p.canonical) for p in pairs)]
    if own:
        sanitizer.info[KEY] = own


def check_stored(values: object, concepts: Iterable[str]) -> None:
    """Raises ValueError for anything in a header's "anchors" that :func:`remember` does not write."""
    names = set(concepts)
    if not isinstance(values, dict):
        raise ValueError(f"{KEY}: expected an object, found {type(values).__name__}")
    for name, pairs in values.items():
        if name not in names:
            raise ValueError(f"{KEY}: {name!r} is none of its concepts")
        if not isinstance(pairs, list) or not 1 <= len(pairs) <= MOST_STORED:
            raise ValueError(f"{KEY} of {name!r}: expected a list of 1 to {MOST_STORED} pairs")
        for pair in pairs:
            if not isinstance(pair, list) or len(pair) != 3 or not all(map(_is_phrase, pair)):
                raise ValueError(f"{KEY} of {name!r}: expected target, anchor and canonical anchor, found {pair!r:.80}")


def _is_phrase(text: object) -> bool:
    return isinstance(text, str) and len(text.strip()) > 0 and len(text) <= MAX_PHRASE and text.isprintable()


def _evenly(pairs: list[Pair], most: int) -> list[Pair]:
    count = min(len(pairs), most)
    return [pairs[i * len(pairs) // count] for i in range(count)]


def text_vectors(encoder: TextEncoder, sanitizer: EmbeddingSanitizer, texts: Sequence[str]) -> Tensor:
    """(N, D) of unit length: the mean text row of each text by itself, normalised as the sanitizer does."""
    e = encode(encoder, texts)
    device = sanitizer.mean.device
    text = torch.tensor([[bool(token) for token in own] for own in e.tokens], device=device) & e.mask.to(device)
    rows = sanitizer.normalise(e.rows.to(device, torch.float32)) * text[..., None]
    return F.normalize(rows.sum(1) / text.sum(1, keepdim=True).clamp_min(1), dim=-1)
