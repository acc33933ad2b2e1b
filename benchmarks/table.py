"""`table`: one table with the machine: what sanitizing costs beside encoding, start, training and memory."""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from evaluation.data import HELD_OUT, benign_set, bundled_sets
from sanitizer.encoders import TextEncoder
from sanitizer.model import artifact
from sanitizer.model.sanitizer import EmbeddingSanitizer

from . import training
from .memory import peak_bytes

BATCHES = (1, 16, 64)
ROUNDS = 15
"""Batches of each size, encoded and sanitized in turn, so that other work on the machine meets both."""
STARTS = 3


def main(options: argparse.Namespace) -> int:
    """Measure, and print each row as it is there."""
    encoder, sanitizer, path = artifact.load_pair(options.encoder, options.sanitizer, options.device)
    print(f"{machine(options.device)}\n{path.name} on {encoder.name}\n")
    print(f"{'sanitize / encode, batch of':32}{''.join(f'{size:>10}' for size in BATCHES)}")
    explicit = next(s for s in bundled_sets(options.concept, 1, BATCHES[-1], 0) if s.name == HELD_OUT)
    for kind, prompts in (("harmless", benign_set(BATCHES[-1], 0).prompts), ("unsafe", explicit.prompts)):
        shares = [ratio(encoder, sanitizer, prompts, size) for size in BATCHES]
        print(f"{kind:32}{''.join(f'{100 * share:8.1f} %' for share in shares)}", flush=True)
    seconds = statistics.median(start(options.encoder) for _ in range(STARTS))
    print(f"\n{'start: score one prompt':32}{seconds:8.1f} s", flush=True)
    print(f"\ntraining, {options.concept} alone")
    training.main(options)
    print(f"{'memory of this process, at most':32}{peak_bytes() / 1e9:8.2f} GB")
    return 0


def machine(device: str) -> str:
    """Processor or graphics card, threads and torch's version."""
    if device != "cpu":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    name, info = platform.processor() or platform.machine(), Path("/proc/cpuinfo")
    if info.exists():
        models = [line for line in info.read_text(encoding="utf-8").splitlines() if line.startswith("model name")]
        name = models[0].partition(":")[2].strip() if models else name
    return f"{name}, {torch.get_num_threads()} of {os.cpu_count()} cores, torch {torch.__version__}"


@torch.inference_mode()
def ratio(encoder: TextEncoder, sanitizer: EmbeddingSanitizer, prompts: Sequence[str], size: int) -> float:
    """Median over batches of that size of the time of sanitizing as a share of that of encoding."""
    shares = []
    for number in range(ROUNDS + 1):
        batch = [prompts[(number * size + i) % len(prompts)] for i in range(size)]
        began = time.perf_counter()
        encoding = encoder.encode(batch)
        _wait()
        encoded = time.perf_counter()
        sanitizer.sanitize(encoding.embeddings, encoding.mask, encoding.pooled, strength=1.0, trusted=True)
        _wait()
        shares.append((time.perf_counter() - encoded) / (encoded - began))
    return statistics.median(shares[1:])


def _wait() -> None:
    """For a graphics card that is still at work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def start(encoder: str) -> float:
    """Seconds from a command to its scores."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "sanitizer", "score", "--encoder", encoder, "a boat on a lake"]
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - began
