"""Encoded training prompts in a folder, so that a training that was interrupted goes on where it was.

A file is named by all that it was made of: encoder, statistics, prompts. So the folder can serve any training, and what
was made of anything else is not found. n prompts, R kept token embeddings in all, D channels, P pooled channels.
"""

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..encoders.base import Fingerprint
from ..errors import SanitizerError
from ..files import make_folder
from ..model.normalizer import Normalizer
from ..tensor_files import DAMAGE, read, write

KEY = "encodings"


class Stretch(NamedTuple):
    """Some prompts in their order, encoded."""

    embeddings: Tensor
    """(R, D) float16, normalized."""
    weight: Tensor
    """(R,): how many of the encoder's embeddings a kept one stands for."""
    pooled: Tensor | None
    """(n, P) float16 or None, normalized."""
    tokens: list[list[str]]
    """Token strings of all places of each prompt, kept or not."""
    kept: list[list[int]]
    """The kept places of each prompt."""


class EncodingStore:
    """A folder of stretches, all of one encoder and normalizer."""

    def __init__(self, folder: Path, encoder: Fingerprint, normalizer: Normalizer, padding: int) -> None:
        """padding: embeddings that are kept of it."""
        self._folder = folder
        digest = hashlib.sha256(json.dumps([encoder.to_dict(), padding], sort_keys=True).encode())
        for field in fields(normalizer):
            value = getattr(normalizer, field.name)
            digest.update(value.cpu().numpy().tobytes() if isinstance(value, Tensor) else repr(value).encode())
        self._base = digest.hexdigest()

    def load(self, prompts: Sequence[str]) -> Stretch | None:
        """None where these prompts, in this order, were not kept, or their file is damaged."""
        try:
            info, tensors = read(self._path(prompts), KEY)
            places = tensors["kept"].split(tensors["counts"].tolist())
            kept = [part.tolist() for part in places]
            return Stretch(tensors["embeddings"], tensors["weight"], tensors.get("pooled"), info["tokens"], kept)
        except DAMAGE:
            return None

    def save(self, prompts: Sequence[str], stretch: Stretch) -> bool:
        """Whether it was written: a full disk must not end a training that could go on without."""
        tensors = {
            "embeddings": stretch.embeddings,
            "weight": stretch.weight,
            "kept": torch.tensor([place for own in stretch.kept for place in own], dtype=torch.long),
            "counts": torch.tensor([len(own) for own in stretch.kept]),
        }
        if stretch.pooled is not None:
            tensors["pooled"] = stretch.pooled
        try:
            make_folder(self._folder)
            write(self._path(prompts), KEY, {"tokens": stretch.tokens}, tensors)
        except SanitizerError as error:
            logging.warning("Embedding Sanitizer: the encoded prompts are not kept. %s", error)
            return False
        return True

    def _path(self, prompts: Sequence[str]) -> Path:
        made_of = json.dumps([self._base, *prompts]).encode()
        return self._folder / f"{hashlib.sha256(made_of).hexdigest()[:32]}.safetensors"
