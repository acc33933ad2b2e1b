"""What the sanitizer needs to know of a text encoder."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

SAMPLED_VALUES = 64
BATCH = 64

Progress = Callable[[str, int, int, dict[str, float]], None]
"""Called with (stage, done, total, values); what it raises interrupts the work."""


@dataclass(frozen=True)
class Fingerprint:
    """Identity of a text encoder: a sanitizer serves the encoder it was trained on and no other."""

    architecture: str
    """Class or family name, with anything that changes the output, such as the chosen layer."""
    width: int
    """Channels of a token embedding."""
    pooled_width: int
    """Channels of the pooled vector, 0 where the encoder has none."""
    weights: str
    """Hexadecimal hash over sampled weights, see :func:`hash_weights`."""

    def to_dict(self) -> dict[str, str | int]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> "Fingerprint":
        return cls(
            architecture=str(values["architecture"]),
            width=int(values["width"]),
            pooled_width=int(values["pooled_width"]),
            weights=str(values["weights"]),
        )

    def __str__(self) -> str:
        pooled = f", pooled {self.pooled_width}" if self.pooled_width else ""
        return f"{self.architecture} ({self.width} channels{pooled}, {self.weights[:8]})"


@dataclass(frozen=True)
class Encoding:
    """What a text encoder says of a batch of prompts. B prompts, L token embeddings, D channels, P pooled channels."""

    embeddings: Tensor
    """(B, L, D), floating point."""
    mask: Tensor
    """(B, L), bool: True for an embedding that the diffusion model sees."""
    pooled: Tensor | None
    """(B, P) or None."""
    tokens: list[list[str]]
    """B lists of L token strings as the tokenizer writes them, "" for an embedding that stands for no text."""
    offsets: list[list[tuple[int, int]]]
    """B lists of L character spans in the prompt, (0, 0) where there is none."""

    def select(self, index: Sequence[int]) -> "Encoding":
        """The prompts at these places."""
        at = torch.tensor(list(index), dtype=torch.long, device=self.embeddings.device)
        return Encoding(
            self.embeddings[at],
            self.mask[at],
            None if self.pooled is None else self.pooled[at],
            [self.tokens[i] for i in index],
            [self.offsets[i] for i in index],
        )

    def padded(self, length: int) -> "Encoding":
        """With masked zeros to at least `length` embeddings; itself where it is as long."""
        missing = length - self.mask.shape[1]
        if missing <= 0:
            return self
        return Encoding(
            F.pad(self.embeddings, (0, 0, 0, missing)),
            F.pad(self.mask, (0, missing)),
            self.pooled,
            [own + [""] * missing for own in self.tokens],
            [list(own) + [(0, 0)] * missing for own in self.offsets],
        )

    @staticmethod
    def cat(parts: Sequence["Encoding"]) -> "Encoding":
        """All prompts of the parts, at least one part, each padded to the longest; new tensors, also of a single part.

        The dtype and device are the first part's.
        """
        length = max(part.mask.shape[1] for part in parts)
        parts = [part.padded(length) for part in parts]
        first = parts[0].embeddings
        pooled = [part.pooled for part in parts if part.pooled is not None]
        if len(pooled) not in (0, len(parts)):
            raise ValueError("encodings with and without a pooled vector cannot be joined")
        return Encoding(
            torch.cat([part.embeddings.to(first) for part in parts]),
            torch.cat([part.mask.to(first.device) for part in parts]),
            torch.cat([vectors.to(pooled[0]) for vectors in pooled]) if pooled else None,
            [own for part in parts for own in part.tokens],
            [own for part in parts for own in part.offsets],
        )

    def scatter(self, index: Sequence[int], other: "Encoding") -> "Encoding":
        """With the prompts of `other` in the places of `index`; the rest is as it was, bit for bit, padded to the
        longer of both."""
        length = max(self.mask.shape[1], other.mask.shape[1])
        base, new = self.padded(length), other.padded(length)
        at = torch.tensor(list(index), dtype=torch.long, device=base.embeddings.device)
        embeddings, mask, pooled = base.embeddings.clone(), base.mask.clone(), base.pooled
        embeddings[at], mask[at] = new.embeddings.to(embeddings), new.mask.to(mask)
        if pooled is not None and new.pooled is not None:
            pooled = pooled.clone()
            pooled[at] = new.pooled.to(pooled)
        tokens, offsets = list(base.tokens), list(base.offsets)
        for i, own, spans in zip(index, new.tokens, new.offsets, strict=True):
            tokens[i], offsets[i] = own, spans
        return Encoding(embeddings, mask, pooled, tokens, offsets)


class TextEncoder(Protocol):
    """A frozen text encoder, seen from outside."""

    @property
    def name(self) -> str: ...

    @property
    def fingerprint(self) -> Fingerprint: ...

    def encode(self, prompts: Sequence[str]) -> Encoding:
        """Encode a batch. The embeddings of a prompt must not depend on its neighbours in the batch."""
        ...


def encode_all(encoder: TextEncoder, prompts: Sequence[str]) -> Encoding:
    """Any number of prompts, at least one, encoded in order of length, which saves padding."""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    parts = [encoder.encode([prompts[i] for i in order[at : at + BATCH]]) for at in range(0, len(order), BATCH)]
    return Encoding.cat(parts).select(torch.tensor(order).argsort().tolist())


def hash_weights(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 over names, shapes and evenly sampled values of the named tensors, sorted by name.

    Sampling keeps it fast for encoders of several GB; the values are compared as float32, so the hash does not
    depend on the device, and a fine-tuned or patched encoder gets another one.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors, key=lambda item: item[0]):
        digest.update(f"{name}:{tuple(tensor.shape)};".encode())
        flat = tensor.detach().reshape(-1)
        if flat.numel():
            step = max(1, flat.numel() // SAMPLED_VALUES)
            sample = flat[::step][:SAMPLED_VALUES].to(device="cpu", dtype=torch.float32)
            digest.update(sample.numpy().tobytes())
    return digest.hexdigest()
