"""`scale`: prompts scored in a second, in one process and by workers of Ray, and whether they agree."""

import argparse
import csv
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from evaluation.data import HELD_OUT, benign_set, bundled_sets
from sanitizer.errors import SanitizerError

HARMLESS = 0.8
"""Share of the prompts that are harmless, where none are given."""


def main(options: argparse.Namespace) -> int:
    """Score the prompts with each number of workers and print a line for each."""
    with tempfile.TemporaryDirectory() as folder:
        source = options.input or str(_prompts(Path(folder) / "prompts.csv", options.prompts))
        first = None
        for count in [0, *(int(count) for count in options.workers.split(","))]:
            out = Path(folder) / str(count)
            command = [sys.executable, "-m", "sanitizer", "score", "--input", source, "--output", str(out)]
            command += ["--encoder", options.encoder, "--sanitizer", options.sanitizer, "--device", options.device]
            command += ["--shard-rows", str(options.shard_rows), "--cores", "1"]
            command += ["--engine", "ray", "--workers", str(count)] if count else ["--engine", "local"]
            began = time.monotonic()
            done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
            seconds = time.monotonic() - began
            if done.returncode:
                raise SanitizerError(done.stderr.strip().splitlines()[-1].removeprefix("error: "))
            found = {path.name: path.read_bytes() for path in out.glob("*.jsonl")}
            lines = sum(content.count(b"\n") for name, content in found.items() if "rejected" not in name)
            first = first or (found, seconds)
            print(
                f"{f'{count} workers of Ray' if count else 'one process'}: {lines} prompts, {seconds:.0f} s, "
                f"{lines / seconds:.1f} a second, {first[1] / seconds:.2f} times as many, "
                f"{'the same bytes' if found == first[0] else 'OTHER BYTES'}",
                flush=True,
            )
    return 0


def _prompts(path: Path, count: int) -> Path:
    """Harmless prompts and held-out unsafe ones in turn, over and over, each with a number of its own."""
    unsafe = next(s for s in bundled_sets("nudity", 1, count, 0) if s.name == HELD_OUT).prompts
    harmless = benign_set(count, 0).prompts
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["prompt"])
        for n in range(count):
            some = harmless if n % 10 < 10 * HARMLESS else unsafe
            rows.writerow([f"{some[n % len(some)]}, number {n}"])
    return path
