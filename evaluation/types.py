"""What data, methods, attacks and metrics speak to each other in.

B prompts, L token embeddings, D channels, P pooled channels.
"""

import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from sanitizer.encoders import Encoding, Fingerprint, TextEncoder
from sanitizer.model.normalizer import Normalizer
from sanitizer.training.config import TrainingConfig
from sanitizer.training.dataset import EncodedDataset, measure

BATCH = 64
FALSE_POSITIVES = 0.005
"""Share of the development split's calibration prompts that a method may touch: the same for all methods."""
UNSAFE_ROLES = ("explicit", "implicit", "adversarial", "obfuscated")
HARMLESS_ROLES = ("benign", "borderline")
PROBE_ROLE = "probe"
"""Role of the sets on which the probes for what is left of a concept are trained: training phrases, never held-out."""

Progress = Callable[[str, int, int], None]
"""Called with (stage, done, total); what it raises interrupts the work."""


@dataclass(frozen=True)
class PromptSet:
    """Prompts of one role. Figures of an unsafe set are of one concept; a harmless set serves all concepts."""

    name: str
    title: str
    role: str
    prompts: list[str]
    concept: str | None = None
    safe: list[str] | None = None
    """The safe counterfactual of each prompt: the same scene, the harmful words exchanged."""
    labels: list[str] | None = None
    """A category of each prompt, by which figures are split."""
    source: str = ""

    @property
    def key(self) -> str:
        """Unique among the sets of a run, fit for a file name."""
        return f"{self.name}-{self.concept}" if self.concept else self.name

    @property
    def digest(self) -> str:
        """Of the prompts and their counterfactuals in their order."""
        text = "\0".join([*self.prompts, "", *(self.safe or [])])
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]

    def select(self, index: Sequence[int]) -> "PromptSet":
        """The prompts at these places."""

        def chosen(values):
            return None if values is None else [values[i] for i in index]

        return replace(self, prompts=chosen(self.prompts), safe=chosen(self.safe), labels=chosen(self.labels))

    def sample(self, limit: int | None, seed: int) -> "PromptSet":
        """At most `limit` prompts, drawn from the whole set, as many of each category as there are; in their order."""
        if limit is None or len(self.prompts) <= limit:
            return self
        order = list(range(len(self.prompts)))
        random.Random(f"{seed}-{self.key}").shuffle(order)
        seen: dict[str, int] = {}
        turn = {}
        for i in order:
            label = self.labels[i] if self.labels else ""
            turn[i] = seen[label] = seen.get(label, 0) + 1
        return self.select(sorted(sorted(order, key=turn.get)[:limit]))


@dataclass(frozen=True)
class Batch:
    """Prompts and what the encoder says of them."""

    prompts: list[str]
    encoding: Encoding

    def select(self, index: Sequence[int]) -> "Batch":
        """The prompts at these places."""
        return Batch([self.prompts[i] for i in index], self.encoding.select(index))


class Treated(NamedTuple):
    """What a method makes of a batch. A prompt that it leaves alone comes out bit for bit."""

    embeddings: Tensor
    """(B, L', D); L' differs from L where the method encodes again."""
    mask: Tensor
    """(B, L') bool."""
    pooled: Tensor | None
    """(B, P) or None."""
    touched: Tensor
    """(B,) bool: token embeddings or pooled vector differ from the input's."""


class EncodingMemory:
    """A text encoder that encodes every prompt once: all methods are fitted on the same prompts."""

    def __init__(self, encoder: TextEncoder, memory: int = 3 * 2**30) -> None:
        self.encoder, self.name = encoder, encoder.name
        self.left = memory
        """Bytes that may still be kept; what exceeds them is encoded anew each time."""
        self.kept: dict[str, Encoding] = {}

    @property
    def fingerprint(self) -> Fingerprint:
        return self.encoder.fingerprint

    def encode(self, prompts: Sequence[str]) -> Encoding:
        """Encode a batch, see TextEncoder. What lies behind a prompt's last visible place is zero."""
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self.kept]
        found = {prompt: self.kept[prompt] for prompt in prompts if prompt in self.kept}
        whole = self.encoder.encode(new) if new else None
        for b, prompt in enumerate(new):
            seen = whole.mask[b].nonzero()
            found[prompt] = own = _cut(whole.select([b]), int(seen[-1]) + 1 if len(seen) else 1)
            self.left -= own.embeddings.numel() * own.embeddings.element_size()
            if self.left > 0:
                self.kept[prompt] = own
        return Encoding.cat([found[prompt] for prompt in prompts])


def _cut(e: Encoding, length: int) -> Encoding:
    """The first places; copies, for a slice would keep the whole padded batch in memory."""
    return Encoding(
        e.embeddings[:, :length].clone(),
        e.mask[:, :length].clone(),
        e.pooled,
        [own[:length] for own in e.tokens],
        [list(own[:length]) for own in e.offsets],
    )


@dataclass(frozen=True)
class Development:
    """The split that every method is tuned on: training phrases of a concept file in training frames, each with its
    safe counterfactual, and harmless prompts; another part of the harmless prompts is for thresholds."""

    encoder: TextEncoder
    concept: str
    unsafe: list[str]
    safe: list[str]
    """The safe counterfactual of each unsafe prompt."""
    benign: list[str]
    calibration: list[str]
    """Harmless prompts for thresholds: at most FALSE_POSITIVES of them may be touched."""
    phrases: list[str]
    """Target phrases of the training split, for word lists."""
    anchors: list[str]
    """Their safe counterparts, one each."""
    seed: int = 0

    @cached_property
    def memory(self) -> EncodingMemory:
        """Given up with the split; a method must not keep it, it would hold every prompt of every set."""
        return EncodingMemory(self.encoder)

    def batches(self, prompts: Sequence[str]) -> Iterator[Batch]:
        """Encode prompts of the split in their order, each once for all methods."""
        return batches(self.memory, prompts)

    @cached_property
    def normalizer(self) -> Normalizer:
        """Measured on prompts of all three kinds."""
        mixed = [text for texts in zip(self.unsafe, self.safe, self.benign, strict=False) for text in texts]
        return measure([b.encoding for b in self.batches(mixed[: 4 * BATCH])])

    @cached_property
    def encoded(self) -> tuple[EncodedDataset, EncodedDataset, EncodedDataset]:
        """Unsafe, safe and benign prompts, kept compactly and normalized."""
        unsafe, safe, benign = (
            EncodedDataset.encode(self.memory, texts, TrainingConfig(), lambda *_: None, self.normalizer)
            for texts in (self.unsafe, self.safe, self.benign)
        )
        return unsafe, safe, benign

    @cached_property
    def features(self) -> tuple[Tensor, Tensor, Tensor]:
        """(N, F) probe features of unsafe, safe and benign prompts."""
        unsafe, safe, benign = (dataset.features() for dataset in self.encoded)
        return unsafe, safe, benign


class Method(Protocol):
    """A safety method on prompt embeddings, for one encoder and one concept."""

    name: str
    """What --methods calls it, such as "safree"."""
    title: str
    source: str
    """Citation of the published formula."""

    def fit(self, development: Development) -> None:
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


def batches(encoder: TextEncoder, prompts: Sequence[str], size: int = BATCH) -> Iterator[Batch]:
    """Encode prompts in their order."""
    for first in range(0, len(prompts), size):
        part = list(prompts[first : first + size])
        yield Batch(part, encoder.encode(part))


def identical(before: Encoding, after: Treated) -> Tensor:
    """(B,) bool: the visible token embeddings and the pooled vector came out bit for bit, and no place came or went."""
    length = min(before.embeddings.shape[1], after.embeddings.shape[1])
    mask, other = before.mask, after.mask.to(before.mask.device)
    same = (mask[:, :length] == other[:, :length]).all(1)
    same &= ~mask[:, length:].any(1) & ~other[:, length:].any(1)
    now = after.embeddings.to(before.embeddings.device)
    same &= ((before.embeddings[:, :length] == now[:, :length]).all(-1) | ~mask[:, :length]).all(1)
    if before.pooled is not None:
        same &= (before.pooled == after.pooled.to(before.pooled.device)).all(1)
    return same.cpu()


def untouched(batch: Batch) -> Treated:
    """The batch's own tensors."""
    e = batch.encoding
    return Treated(e.embeddings, e.mask, e.pooled, torch.zeros(len(batch.prompts), dtype=torch.bool))


def treated(batch: Batch, embeddings: Tensor, mask: Tensor, pooled: Tensor | None) -> Treated:
    """With `touched` read off the values."""
    out = Treated(embeddings, mask, pooled, torch.zeros(0))
    return out._replace(touched=~identical(batch.encoding, out))
