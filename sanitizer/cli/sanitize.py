"""`sanitize`: prompts in, one .safetensors file with the embeddings before and after out."""

import json
import math
import mmap
import tempfile
import time
from array import array
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ..errors import SanitizerError
from ..files import keep_apart, whole_path
from ..model.config import THRESHOLD
from .io import check_output, counted, encoder_files, note
from .pipeline import Job, Processor, Result
from .rows import read_prompts

FORMAT = "embedding-sanitizer output, version 1"


def run(job: Job, source: str, column: str, form: str | None, output: Path) -> None:
    """Sanitize the prompts of the source into the output."""
    texts = read_prompts(source, column, form)
    target = check_output(output, ".safetensors", source, job.sanitizer, encoder_files(job.encoder))
    processor = Processor(job)
    keep_apart(target, [processor.path])
    metadata = header(processor)
    began = time.monotonic()
    with counted(texts) as prompts:
        total, flagged = write(processor(prompts), target, metadata, moved=job.re_encode)
    note(f"{output}: {total} prompts, {flagged} sanitized, by {processor.path.name}, {time.monotonic() - began:.1f} s.")


def header(processor: Processor) -> dict[str, str]:
    """What a file of sanitized prompts says of itself."""
    job, sanitizer = processor.job, processor.sanitizer
    return {
        "format": FORMAT,
        "encoder": f"{job.encoder}: {processor.encoder.fingerprint}",
        "encoder_fingerprint": json.dumps(processor.encoder.fingerprint.to_dict()),
        "sanitizer": f"{processor.path.name} sha256:{processor.digest}",
        "concepts": json.dumps(sanitizer.concepts),
        "erased": json.dumps(job.concepts or sanitizer.erasable),
        "mode": "re-encode" if job.re_encode else "rewrite",
        "strength": f"{job.strength:g}",
        "readings": json.dumps(job.readings),
        "threshold": f"{THRESHOLD if job.threshold is None else job.threshold:g}",
    }


def write(results: Iterable[Result], target: Path, metadata: dict[str, str], moved: bool = False) -> tuple[int, int]:
    """Write the results' tensors; the number of prompts, and of flagged ones. moved: the sanitized rows may be others
    than the prompt's, so their mask is written too.
    """
    flagged = 0
    # The output is opened first: its folder is known to take a file before the work is done.
    with whole_path(target) as temporary, TensorSpool(target.parent) as spool:
        for result in results:
            flagged += result.flagged
            fixed = {"prompt_scores": result.prompt_scores}
            if result.pooled is not None and result.pooled_sanitized is not None:
                fixed |= {"pooled": result.pooled, "pooled_sanitized": result.pooled_sanitized}
            rows = {
                "embeddings": result.embeddings,
                "sanitized": result.sanitized,
                "mask": result.mask,
                "token_scores": result.token_scores,
            }
            spool.add(rows | ({"mask_sanitized": result.mask_sanitized} if moved else {}), fixed)
        try:
            spool.save(temporary, metadata)
        except SafetensorError as error:
            raise SanitizerError(f"{target}: cannot be written ({error}).") from error
        return len(spool), flagged


class TensorSpool:
    """Tensors of N items of unknown number and length, written to one .safetensors file in constant memory.

    N and L are known only at the end. Until then the items' bytes lie in unnamed temporary files beside the output;
    `save` fills them up to the longest item and gives safetensors the files mapped into memory, which it (from version
    0.8) writes without a copy. Use the spool as a context manager.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: dict[str, BinaryIO] = {}
        self.kinds: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
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
            kind = (tensor.dtype, tuple(tensor.shape[1:] if name in rows else tensor.shape))
            if self.kinds.setdefault(name, kind) != kind:
                raise ValueError(f"{name}: expected {self.kinds[name]}, found {kind}")
            if name not in self.files:
                self.files[name] = self._temporary()
            # A view as bytes: numpy has no bfloat16.
            data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
            self.files[name].write(data.data)
            if name in rows:
                self.lengths.setdefault(name, array("q")).append(len(tensor))
        self.count += 1

    def save(self, path: Path, metadata: dict[str, str]) -> None:
        """Write the .safetensors file. Items shorter than the longest are filled up with zeros."""
        save_file({name: self._mapped(name) for name in self.kinds}, path, metadata)

    def _temporary(self) -> BinaryIO:
        return self.stack.enter_context(tempfile.TemporaryFile(dir=self.folder))

    def _mapped(self, name: str) -> Tensor:
        """The tensor (N, ...) or (N, L, ...) over a temporary file; its pages come and go as the system likes."""
        dtype, shape = self.kinds[name]
        lengths, file = self.lengths.get(name), self.files[name]
        if lengths is not None:
            longest = max(lengths)
            if min(lengths) < longest:
                file = self._padded(file, lengths, longest, math.prod(shape) * dtype.itemsize)
            shape = (longest, *shape)
        if not math.prod(shape):
            return torch.empty(self.count, *shape, dtype=dtype)
        file.flush()
        return torch.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY), dtype=dtype).view(-1, *shape)

    def _padded(self, spool: BinaryIO, lengths: array, longest: int, row: int) -> BinaryIO:
        """A copy with zeros behind each item, which closes the spool; a row has that many bytes."""
        file = self._temporary()
        # The right size first: what is not written then reads as zeros, and takes no room on most file systems.
        file.truncate(len(lengths) * longest * row)
        spool.seek(0)
        for place, length in enumerate(lengths):
            file.seek(place * longest * row)
            file.write(spool.read(length * row))
        spool.close()
        return file
