"""CONDITIONING <-> tensors: where the text of an entry is, and how an entry is copied with other values.

A conditioning is a list of `[cond, extras]`, cond (B, L, D). Nothing in it is ever changed in place.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ...sanitizer.errors import SanitizerError
from ...sanitizer.model.sanitizer import Sanitized
from .keys import KEYS, check, describe, is_plain_tensor

PARTS = (
    ("cond", "attention_mask", "pooled_output"),
    ("cross_attn_controlnet", None, "pooled_output_controlnet"),
    ("cross_attn_pose", None, None),
)
"""Names of embeddings, mask and pooled vector that belong together. "cond" is the entry's first item."""


@dataclass
class Summary:
    """What sanitizing did to a conditioning, for the line that a node shows of itself."""

    prompts: int = 0
    flagged: int = 0
    rows: int = 0
    changed: int = 0
    fired: list[str] = field(default_factory=list)
    highest: float = 0.0
    """Highest prompt score of a chosen concept."""
    missed: dict[str, float] = field(default_factory=dict)
    """Highest score of each concept that reaches the calibrated threshold and did not fire: above it the user's
    threshold is higher, or the concept is not among the chosen ones."""
    scores: dict[str, float] = field(default_factory=dict)
    """Highest prompt score of every concept that the sanitizer knows."""
    context: list[str] = field(default_factory=list)
    """Context concepts that are there."""
    lowered: list[str] = field(default_factory=list)
    """Context concepts in prompts that fired only because those lower the threshold."""
    before: int = 0
    """Entries that a sanitizer had written before, which were left as they are."""

    @property
    def held(self) -> frozenset[str]:
        """Every concept that was found, to be erased or not."""
        return frozenset((*self.fired, *self.context))

    def add(self, other: "Summary") -> None:
        self.prompts += other.prompts
        self.flagged += other.flagged
        self.rows += other.rows
        self.changed += other.changed
        self.fired += [name for name in other.fired if name not in self.fired]
        self.highest = max(self.highest, other.highest)
        self.context += [name for name in other.context if name not in self.context]
        self.lowered += [name for name in other.lowered if name not in self.lowered]
        for mine, others in ((self.missed, other.missed), (self.scores, other.scores)):
            for name, score in others.items():
                mine[name] = max(score, mine.get(name, 0.0))
        self.before += other.before


@dataclass(frozen=True)
class Part:
    """Embeddings (B, L, D), mask (B, L) bool or None, pooled (B, P) or None, and the keys that they came from.

    The mask is False only where the embedding is zero, so that nothing hides behind it: see :func:`parts`.
    """

    keys: tuple[str, str | None, str | None]
    embeddings: Tensor
    mask: Tensor | None
    pooled: Tensor | None

    @cached_property
    def digest(self) -> str:
        """Of embeddings and pooled vector, to the last bit."""
        found = hashlib.sha256()
        for tensor in (self.embeddings, self.pooled):
            if tensor is not None:
                found.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
                found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return found.hexdigest()


def entries(conditioning: Any) -> list:
    """The entries of a conditioning. Raises SanitizerError for what is no list of them, and for an empty one."""
    if not isinstance(conditioning, (list, tuple)) or not conditioning:
        raise SanitizerError(
            f"Conditioning: expected a list of [embeddings, extras], found {describe(conditioning)}. Connect the "
            "output of a text encode node."
        )
    return list(conditioning)


def parts(entry: Any) -> list[Part]:
    """The text of an entry, the prompt itself first.

    A mask is trusted only where the embeddings behind it are zero. Not every model applies the mask that its text
    encoder makes (FLUX.2 Klein's drops it), and in a causal encoder the padding carries the text; so an embedding that
    is masked and not zero counts as visible, in training as well as here.

    Raises SanitizerError, which names the key, for a malformed entry, for a text that is no plain tensor of the right
    shape, for a mask of other values than 0 and 1, and for a value that may carry text and is not covered.
    """
    if not isinstance(entry, (list, tuple)) or len(entry) != 2 or not isinstance(entry[1], dict):
        raise SanitizerError(
            f"Conditioning: expected an entry [embeddings, dict of extras], found {describe(entry)}. Connect the "
            "output of a text encode node."
        )
    cond, extras = entry
    check(extras)
    values = {**extras, "cond": cond}
    found = []
    for key, mask_key, pooled_key in PARTS:
        pooled = None if pooled_key is None or values.get(pooled_key) is None else _text(values, pooled_key)
        if values.get(key) is None and key != "cond":
            if pooled is not None:
                raise SanitizerError(f"Conditioning: found {pooled_key!r} without {key!r}, expected both or none.")
            continue
        embeddings = _text(values, key)
        if pooled is not None and pooled.shape[0] == 1 < embeddings.shape[0]:
            pooled = pooled.expand(embeddings.shape[0], -1)
        mask = _mask(values, mask_key, embeddings) if mask_key else None
        found.append(Part((key, mask_key, pooled_key), embeddings, mask, pooled))
    return found


def replace_parts(entry: Any, found: list[Part], apply: Callable[[Part], Sanitized]) -> tuple[list, list[Sanitized]]:
    """A copy of the entry with every text part that was found in it replaced by what `apply` makes of it, and its
    results.

    A part that `apply` left as it was keeps its very tensors.
    """
    cond, extras = entry[0], entry[1].copy()
    results = []
    for part in found:
        result = apply(part)
        results.append(result)
        if not bool(result.changed.any()):
            continue
        key, _, pooled_key = part.keys
        if key == "cond":
            cond = result.embeddings
        else:
            extras[key] = result.embeddings
        if result.pooled is not None:
            extras[pooled_key] = result.pooled
    return [cond, extras], results


def _text(values: dict, key: str) -> Tensor:
    """The embeddings or the pooled vector under a key."""
    value, kind = values.get(key), KEYS[key].kind
    if value is not None and kind.holds(value) and value.is_floating_point():
        return value
    raise SanitizerError(
        f"Conditioning: expected {key!r} to be {kind.name} and of floating point numbers, found "
        f"{describe(value)}. This kind of conditioning cannot be sanitized; put Sanitize Conditioning behind a text "
        "encode node."
    )


def _mask(values: dict, key: str, embeddings: Tensor) -> Tensor | None:
    """(B, L) bool, or None where there is none, or where others were joined on since it was made: then all count."""
    mask = values.get(key)
    if mask is None:
        return None
    if values.get("attention_mask_img_shape") is not None and is_plain_tensor(mask) and mask.ndim == 3:
        return None  # StyleModelApply's: how much each token attends to the picture
    batch, length = embeddings.shape[:2]
    if not KEYS[key].kind.holds(mask) or mask.shape[0] not in (1, batch) or mask.shape[1] > length:
        raise SanitizerError(
            f"Conditioning: expected {key!r} of shape {(batch, length)}, or shorter where embeddings were joined on, "
            f"found {describe(mask)}. Put Sanitize Conditioning directly behind the text encode node."
        )
    # float64 holds 0 and 1 of every type apart from all else; some small types cannot even be compared. On the CPU, for
    # not every device has it (MPS).
    exact = None if mask.is_complex() else mask.cpu().to(torch.float64)
    if exact is None or not bool(((exact == 0) | (exact == 1)).all()):
        raise SanitizerError(
            f"Conditioning: expected {key!r} of zeros and ones, found other values in {describe(mask)}, such as those "
            "of an additive mask. Put Sanitize Conditioning directly behind the text encode node."
        )
    if mask.shape[1] < length:
        return None
    return ((exact != 0) | (embeddings.cpu().to(torch.float64) != 0).any(dim=-1)).to(embeddings.device)
