"""What prompt sets, methods, attacks and metrics speak to each other in. B prompts, L rows, D channels, P pooled."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from sanitizer.encoders import Encoding, TextEncoder

BATCH = 64


@dataclass(frozen=True)
class Batch:
    """Prompts and what the encoder says of them."""

    prompts: list[str]
    encoding: Encoding

    def select(self, index: Sequence[int]) -> "Batch":
        """The prompts at these places."""
        e, at = self.encoding, torch.tensor(list(index), dtype=torch.long, device=self.encoding.embeddings.device)
        return Batch(
            [self.prompts[i] for i in index],
            replace(
                e,
                rows=e.embeddings[at],
                mask=e.mask[at],
                pooled=None if e.pooled is None else e.pooled[at],
                tokens=[e.tokens[i] for i in index],
                offsets=[e.offsets[i] for i in index],
            ),
        )


class Treated(NamedTuple):
    """What a method makes of a batch. A prompt that it leaves alone comes out bit for bit."""

    rows: Tensor
    """(B, L', D); L' differs from L where the method encodes again."""
    mask: Tensor
    """(B, L') bool."""
    pooled: Tensor | None
    """(B, P) or None."""
    touched: Tensor
    """(B,) bool: rows or pooled vector differ from the input's."""


class Method(Protocol):
    """A safety method on prompt embeddings, for one encoder and one concept."""

    name: str
    """What --methods calls it, such as "safree"."""
    title: str
    source: str
    """Citation of the published formula."""

    def fit(self, development: "Development") -> None:
        """Tune on the development split. All methods see the same one, and none sees a benchmark."""
        ...

    def score(self, batch: Batch) -> Tensor | None:
        """(B,) float, the higher the more harmful; None for a method that detects nothing."""
        ...

    def token_scores(self, batch: Batch) -> Tensor | None:
        """(B, L) float, the higher the more at fault; None for a method that does not say which word it is."""
        ...

    def apply(self, batch: Batch, strength: float = 1.0) -> Treated:
        """Sanitize. strength 0 changes nothing; a method without a natural strength interpolates linearly between
        input and output of its own full effect. A method that only detects replaces what it flags by the empty
        prompt's encoding."""
        ...


@dataclass(frozen=True)
class Development:
    """The split that every method is tuned on: training phrases of a concept file in training frames, each with its
    safe twin, and harmless prompts; another part of the harmless prompts is for thresholds."""

    encoder: TextEncoder
    concept: str
    unsafe: list[str]
    safe: list[str]
    """The safe twin of each unsafe prompt."""
    benign: list[str]
    calibration: list[str]
    """Harmless prompts for thresholds: at most FALSE_ALARMS of them may be touched."""
    phrases: list[str]
    """Target phrases of the training split, for word lists."""
    anchors: list[str]
    """Their safe counterparts, one each."""
    seed: int = 0


FALSE_ALARMS = 0.005
"""Share of the development split's calibration prompts that a method may touch: the same for all methods."""


def batches(encoder: TextEncoder, prompts: Sequence[str], size: int = BATCH) -> Iterator[Batch]:
    """Encode prompts in their order."""
    for first in range(0, len(prompts), size):
        part = list(prompts[first : first + size])
        yield Batch(part, encoder.encode(part))
