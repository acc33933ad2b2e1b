"""What the sanitizer needs to know of a text encoder."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Protocol

import torch
from torch import Tensor

SAMPLED_VALUES = 64


@dataclass(frozen=True)
class Fingerprint:
    """Identity of a text encoder: a sanitizer serves the encoder it was trained on and no other."""

    architecture: str
    """Class or family name, with anything that changes the output, such as the chosen layer."""
    width: int
    """Channels of a row."""
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
    """What a text encoder says of a batch of prompts. B prompts, L rows, D channels, P pooled channels."""

    rows: Tensor
    """(B, L, D), floating point."""
    mask: Tensor
    """(B, L), bool: True for a row that the diffusion model sees."""
    pooled: Tensor | None
    """(B, P) or None."""
    tokens: list[list[str]]
    """B lists of L token strings as the tokenizer writes them, "" for a row that stands for no text."""
    offsets: list[list[tuple[int, int]]]
    """B lists of L character spans in the prompt, (0, 0) where there is none."""


class TextEncoder(Protocol):
    """A frozen text encoder, seen from outside."""

    name: str

    @property
    def fingerprint(self) -> Fingerprint: ...

    def encode(self, prompts: Sequence[str]) -> Encoding:
        """Encode a batch. The rows of a prompt must not depend on its neighbours in the batch."""
        ...


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
