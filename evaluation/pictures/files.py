"""Weights of the small networks on disk: float16 tensors, and what is to be known of them as JSON."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import safetensors
from safetensors.torch import save
from torch import Tensor

from sanitizer.errors import SanitizerError
from sanitizer.files import whole_file

Built = TypeVar("Built")
DAMAGE = (OSError, safetensors.SafetensorError, TypeError, KeyError, ValueError, RuntimeError)
"""What a file that is missing, damaged or another's raises while it is read and a network is made of it."""


def read(path: Path, key: str) -> tuple[dict, dict[str, Tensor]]:
    """Facts and tensors as they lie in the file. Raises one of DAMAGE."""
    with safetensors.safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()[key]), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def write(path: Path, key: str, info: dict, tensors: Mapping[str, Tensor]) -> None:
    """Whole or not at all, in the tensors' own dtypes."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    with whole_file(path) as file:
        file.write(save(tensors, {key: json.dumps(info)}))


def write_weights(path: Path, key: str, info: dict, tensors: Mapping[str, Tensor]) -> None:
    """The same as float16."""
    write(path, key, info, {name: value.half() for name, value in tensors.items()})


def load_weights(
    path: Path, key: str, what: str, advice: str, build: Callable[[dict, dict[str, Tensor]], Built]
) -> Built:
    """What `build` makes of the file's facts and of its tensors as float32. Raises SanitizerError, in one line with
    advice, where the file is missing, damaged or something else than `what`."""
    try:
        info, tensors = read(path, key)
        return build(info, {name: value.float() for name, value in tensors.items()})
    except DAMAGE as error:
        line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SanitizerError(f"{path}: expected {what}, found a damaged or other file ({line}). {advice}") from error
