"""Tensors and facts in one safetensors file, written whole or not at all: work that is kept, to go on from it."""

import json
from collections.abc import Mapping
from pathlib import Path

import safetensors
from safetensors.torch import save
from torch import Tensor

from .files import whole_file

DAMAGE = (OSError, safetensors.SafetensorError, TypeError, KeyError, ValueError, RuntimeError, AttributeError)
"""What a file that is missing, damaged or another's raises while it is read and something is made of it."""


def read(path: Path, key: str, whole: bool = True) -> tuple[dict, dict[str, Tensor]]:
    """Facts, and the tensors if it is to be the whole. Raises one of DAMAGE."""
    with safetensors.safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()} if whole else {}  # noqa: SIM118
        return json.loads(file.metadata()[key]), tensors


def write(path: Path, key: str, info: dict, tensors: Mapping[str, Tensor]) -> None:
    """In the tensors' own dtypes; the facts as JSON. Raises SanitizerError where it cannot be written."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    with whole_file(path) as file:
        file.write(save(tensors, {key: json.dumps(info, sort_keys=True)}))
