"""What sanitizers have written in this process, by digest, so that Sanitize Model does not write it a second time.

Kept in memory and not in the conditioning, where a workflow or a file could claim it.
"""

import hashlib
from collections import OrderedDict
from typing import NamedTuple

import torch

from .conditioning import Part

KEPT = 10_000
"""Digests, of some hundred bytes each; the oldest go first, and what they stood for is merely sanitized again."""


class How(NamedTuple):
    """By which sanitizer, and how hard."""

    path: str
    concepts: frozenset[str]
    strength: float
    threshold: float

    def covers(self, other: "How") -> bool:
        """Whether `other` would have nothing to add."""
        return (
            self.path == other.path
            and self.concepts >= other.concepts
            and self.strength >= other.strength
            and self.threshold <= other.threshold
        )


class Written:
    def __init__(self, kept: int = KEPT) -> None:
        self._kept = kept
        self._how: OrderedDict[str, How] = OrderedDict()

    def add(self, part: Part, how: How) -> None:
        self._how[_digest(part)] = how
        while len(self._how) > self._kept:
            self._how.popitem(last=False)

    def covers(self, part: Part, how: How) -> bool:
        """Whether this very part was written by the same sanitizer, at least as hard."""
        known = self._how.get(_digest(part)) if self._how else None
        return known is not None and known.covers(how)


def _digest(part: Part) -> str:
    found = hashlib.sha256()
    for tensor in (part.embeddings, part.pooled):
        if tensor is None:
            continue
        found.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


WRITTEN = Written()
