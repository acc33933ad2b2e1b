"""A small text encoder for tests: random word vectors mixed over the prompt, in the geometries that real ones have.

Red words are alike, and green ones, as words of one meaning are in a trained encoder.
"""

import hashlib
import re

import torch

from sanitizer.encoders import Encoding, Fingerprint

RED = frozenset(["crimson", "scarlet", "ruby", "vermilion", "cherry", "carmine", "maroon", "rusty"])
GREEN = frozenset(["olive", "jade", "green"])
WORD = re.compile(r"\w+|[^\w\s]")


class TinyEncoder:
    """Every word has a fixed random vector; a row is its word plus a mean of the rows that it may see.

    geometry "masked": bidirectional, padding masked, like T5. "causal": a start row that is always the same, every
    row sees the ones before it, padded with the end token to `length` rows, all visible, like Stable Diffusion's CLIP.
    """

    def __init__(self, geometry: str = "masked", width: int = 64, pooled_width: int = 0, length: int = 24) -> None:
        self.name = f"tiny-{geometry}"
        self.geometry, self.width, self.pooled_width, self.length = geometry, width, pooled_width, length
        self.prompts = 0

    @property
    def fingerprint(self) -> Fingerprint:
        return Fingerprint(self.name, self.width, self.pooled_width, "0" * 64)

    def vector(self, word: str, width: int | None = None) -> torch.Tensor:
        seed = int.from_bytes(hashlib.sha256(word.lower().encode()).digest()[:7], "big")
        own = torch.randn(width or self.width, generator=torch.Generator().manual_seed(seed))
        for theme in (RED, GREEN):
            if word.lower() in theme:
                own = own + 2 * self.vector(f"theme {min(theme)}", width)
        return own

    def encode(self, prompts) -> Encoding:
        self.prompts += len(prompts)
        spans = [[m.span() for m in WORD.finditer(prompt)] for prompt in prompts]
        if self.geometry == "causal":
            spans = [own[: self.length - 2] for own in spans]
        words = [[prompt[a:b] for a, b in own] for prompt, own in zip(prompts, spans, strict=True)]
        length = self.length if self.geometry == "causal" else max(len(own) for own in words) + 2
        rows, mask, tokens, offsets = [], [], [], []
        for own, span in zip(words, spans, strict=True):
            texts = ["", *own, *[""] * (length - len(own) - 1)]
            end = [self.vector("</s>")] * (length - len(own) - 1)
            vectors = torch.stack([self.vector("<s>"), *map(self.vector, own), *end])
            if self.geometry == "causal":
                seen = vectors.cumsum(0) / torch.arange(1, length + 1)[:, None].sqrt()
                seen[0] = vectors[0]
                visible = torch.ones(length, dtype=torch.bool)
            else:
                visible = torch.arange(length) < len(own) + 2
                seen = vectors[visible].mean(0).expand(length, -1)
            rows.append(torch.where(visible[:, None], vectors + seen, 0.0))
            mask.append(visible)
            tokens.append(texts)
            offsets.append([(0, 0), *span, *[(0, 0)] * (length - len(own) - 1)])
        pooled = None
        if self.pooled_width:
            pooled = torch.stack(
                [sum((self.vector(w, self.pooled_width) for w in own), torch.zeros(self.pooled_width)) for own in words]
            )
        return Encoding(torch.stack(rows), torch.stack(mask), pooled, tokens, offsets)
