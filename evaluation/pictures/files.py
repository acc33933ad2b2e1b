"""Weights of the small networks on disk: float16 tensors, and what is to be known of them as JSON."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from torch import Tensor

from sanitizer.errors import SanitizerError
from sanitizer.tensor_files import DAMAGE, read, write

Built = TypeVar("Built")


def write_weights(path: Path, key: str, info: dict, tensors: Mapping[str, Tensor]) -> None:
    """Whole or not at all, as float16."""
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
