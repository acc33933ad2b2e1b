"""Where output may go, and a .safetensors file that need not fit into memory."""

import json
import math
import os
import shutil
import tempfile
from array import array
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from ..errors import SanitizerError

DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.bool: "BOOL"}
SIZES = {"F32": 4, "F16": 2, "BF16": 2, "BOOL": 1}


def check_output(path: Path, ending: str | None = None, source: str | None = None) -> Path:
    """The real path to write to, checked before the work begins: a long run must not end in a typing error.

    Raises SanitizerError for another ending than the one wanted, a missing or unwritable folder, a folder in the
    file's place, and an output that is the input `source`.
    """
    # A link is written through, not replaced.
    real = Path(os.path.realpath(path))
    if ending and path.suffix != ending:
        raise SanitizerError(f"{path}: expected a name that ends in {ending}.")
    if real.is_dir():
        raise SanitizerError(f"{path}: a folder. Expected the name of a file to write.")
    if not real.parent.is_dir():
        raise SanitizerError(f"{path}: the folder {real.parent} does not exist. Make it first.")
    if not os.access(real.parent, os.W_OK):
        raise SanitizerError(f"{path}: the folder {real.parent} cannot be written to.")
    given = None if source in (None, "-") else Path(source)
    if given and real.exists() and given.exists() and real.samefile(given):
        raise SanitizerError(f"{path}: the output would overwrite the input. Choose another name.")
    return real


class TensorSpool:
    """Tensors of N items of unknown number and length, written to one .safetensors file in constant memory.

    The items' bytes go to unnamed temporary files beside the output; when the longest item is known, `assemble`
    writes the header and copies them to their places, zeros between. Use it as a context manager.

    The format (github.com/huggingface/safetensors): 8 bytes with the length of the header, little-endian; the header,
    JSON with dtype, shape and data_offsets of each tensor, padded with spaces to a multiple of 8; the tensors' bytes
    without gaps.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: dict[str, BinaryIO] = {}
        self.kinds: dict[str, tuple[str, tuple[int, ...]]] = {}
        """Tensor -> dtype and the shape of one item's row, or of the item where it has no rows."""
        self.lengths: dict[str, array] = {}
        """Ragged tensor -> rows of each item."""
        self.count = 0
        self.stack = ExitStack()

    def __enter__(self) -> "TensorSpool":
        return self

    def __exit__(self, *exception) -> None:
        self.stack.close()

    def __len__(self) -> int:
        return self.count

    def add(self, rows: dict[str, Tensor], fixed: dict[str, Tensor]) -> None:
        """Append an item. rows: tensors (l, ...), l of any length; fixed: tensors of the same shape in every item.

        Tensors that always have the same l come out with the same L.
        """
        for name, tensor in {**rows, **fixed}.items():
            shape = tuple(tensor.shape[1:] if name in rows else tensor.shape)
            kind = (DTYPES[tensor.dtype], shape)
            if self.kinds.setdefault(name, kind) != kind:
                raise ValueError(f"{name}: expected {self.kinds[name]}, found {kind}")
            if name not in self.files:
                unnamed = tempfile.TemporaryFile(dir=self.folder)  # noqa: SIM115 - the stack closes it
                self.files[name] = self.stack.enter_context(unnamed)
            # A view as bytes: numpy has no bfloat16.
            data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
            self.files[name].write(data.data)
            if name in rows:
                self.lengths.setdefault(name, array("q")).append(len(tensor))
        self.count += 1

    def assemble(self, file: BinaryIO, metadata: dict[str, str]) -> None:
        """Write the .safetensors file. Items shorter than the longest are filled up with zeros."""
        longest = {name: max(lengths, default=0) for name, lengths in self.lengths.items()}
        header: dict[str, dict] = {"__metadata__": metadata}
        # Single bytes last, so that every tensor begins at a multiple of its element's size.
        names = sorted(self.kinds, key=lambda name: (-SIZES[self.kinds[name][0]], name))
        at = 0
        for name in names:
            dtype, shape = self.kinds[name]
            full = [len(self), *([longest[name]] if name in longest else []), *shape]
            size = math.prod(full) * SIZES[dtype]
            header[name] = {"dtype": dtype, "shape": full, "data_offsets": [at, at + size]}
            at += size
        text = json.dumps(header, ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        file.write(len(text).to_bytes(8, "little") + text)
        begin = file.tell()
        # The right size first: what is not written then reads as zeros, and takes no room on most file systems.
        file.truncate(begin + at)
        for name in names:
            file.seek(begin + header[name]["data_offsets"][0])
            self._copy(name, file)
        file.seek(0, os.SEEK_END)

    def _copy(self, name: str, file: BinaryIO) -> None:
        dtype, shape = self.kinds[name]
        row = math.prod(shape) * SIZES[dtype]
        spool = self.files[name]
        spool.seek(0)
        if name not in self.lengths:
            shutil.copyfileobj(spool, file)
            return
        longest = max(self.lengths[name], default=0)
        for length in self.lengths[name]:
            file.write(spool.read(length * row))
            file.seek((longest - length) * row, os.SEEK_CUR)
