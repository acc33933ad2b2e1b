"""`memory`: the most memory that training takes on a wide text encoder, which is tried without having one."""

import argparse
import re
import sys
import zlib
from collections.abc import Sequence

import torch

from sanitizer.encoders import Encoding, Fingerprint
from sanitizer.errors import SanitizerError
from sanitizer.training.fit import fit

WORDS = 4096
"""Vectors of the table: words share them, as their number is small."""
STEPS = 40
"""Optimiser steps: more of them take time and no memory."""
TOKEN = re.compile(r"\w+|[^\w\s]")


class WordTable:
    """A random vector for every word, all places visible, padded to one length: the size of a wide encoder's output,
    and little memory of its own."""

    def __init__(self, width: int, length: int) -> None:
        self.name, self.length = "word table", length
        self.fingerprint = Fingerprint("WordTable", width, 0, "0" * 64)
        self.table = torch.randn(WORDS, width, generator=torch.Generator().manual_seed(0)).half()

    def encode(self, prompts: Sequence[str]) -> Encoding:
        index = torch.zeros(len(prompts), self.length, dtype=torch.long)
        tokens, offsets = [], []
        for b, prompt in enumerate(prompts):
            words = list(TOKEN.finditer(prompt))[: max(0, self.length - 2)]
            padding = self.length - 1 - len(words)
            index[b, 1 : 1 + len(words)] = torch.tensor([1 + zlib.crc32(w[0].encode()) % (WORDS - 1) for w in words])
            tokens.append(["", *(w[0] for w in words), *[""] * padding])
            offsets.append([(0, 0), *(w.span() for w in words), *[(0, 0)] * padding])
        embeddings = self.table[index].float()
        # What is said of a word depends on the prompt, and so does the padding.
        embeddings += embeddings.mean(dim=1, keepdim=True) * torch.linspace(0, 1, self.length)[:, None]
        return Encoding(embeddings, torch.ones(len(prompts), self.length, dtype=torch.bool), None, tokens, offsets)


def main(options: argparse.Namespace) -> int:
    """Train all concepts and print the process's peak."""
    before = peak_bytes()
    stages = set()

    def progress(stage: str, done: int, total: int, values: dict[str, float]) -> None:
        if stage not in stages:
            stages.add(stage)
            print(f"{stage}: {total}", file=sys.stderr)

    encoder = WordTable(options.width, options.rows)
    _, report = fit(encoder, examples=options.examples, steps=STEPS, progress=progress)
    size = f"{report.examples} prompts, {options.width} channels, {options.rows} token embeddings"
    print(f"{size}: {peak_bytes() / 1e9:.2f} GB at most, {before / 1e9:.2f} GB of it for Python and torch.")
    return 0


def peak_bytes() -> int:
    """Most memory that this process has had so far. Raises SanitizerError where the system does not say."""
    try:
        import resource
    except ImportError:
        raise SanitizerError("memory: expected Linux or macOS, which say how much a process took.") from None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
