"""What sanitizers have written in this process, by digest, so that Sanitize Model does not write it a second time.

Kept in memory and not in the conditioning, where a workflow or a file could claim it.
"""

from typing import NamedTuple

from .conditioning import Part
from .recent import Recent

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


class _Known(NamedTuple):
    how: How
    held: frozenset[str]
    origin: str


class Written:
    def __init__(self, kept: int = KEPT) -> None:
        self._known: Recent[str, _Known] = Recent(kept)

    def add(self, part: Part, source: Part, how: How, held: frozenset[str] = frozenset()) -> None:
        """source: what the part was made of; held: the concepts that were found in it."""
        self._known[part.digest] = _Known(how, held, self.origin(source))

    def covers(self, part: Part, how: How) -> bool:
        """Whether this very part was written by the same sanitizer, at least as hard."""
        known = self._of(part)
        return known is not None and known.how.covers(how)

    def held(self, part: Part) -> frozenset[str]:
        """Concepts that were found in what this very part was made of; none where no sanitizer wrote it."""
        known = self._of(part)
        return frozenset() if known is None else known.held

    def origin(self, part: Part) -> str:
        """Digest of what stood there before any sanitizer wrote; the part's own where none did."""
        known = self._of(part)
        return part.digest if known is None else known.origin

    def _of(self, part: Part) -> _Known | None:
        return self._known.get(part.digest) if self._known else None


WRITTEN = Written()
