"""Development figures of a sanitizer: false alarms on public harmless prompts, cost beside the encoder, its own report.

    python -m evaluation --encoder minilm --prompt-sets ../shared/prompt_sets

The prompt sets are CSV files with a column `prompt`; those with a column `category` are counted by category. No text
of theirs is printed or written.
"""

import argparse
import csv
import json
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from sanitizer.artifact import WEIGHTS_FOLDER, find, load
from sanitizer.encoders import TextEncoder, load_encoder
from sanitizer.errors import SanitizerError
from sanitizer.model import EmbeddingSanitizer
from sanitizer.report import bit_identical

BATCH = 64
TIMED_BATCHES = 8
REPEATS = 5


def read_set(path: Path, limit: int | None) -> list[tuple[str, str]]:
    """(prompt, category or "all") of a CSV file. Raises SanitizerError for a missing column."""
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if "prompt" not in (reader.fieldnames or []):
            raise SanitizerError(f"{path}: expected a column 'prompt', found {reader.fieldnames}.")
        rows = [(row["prompt"], row.get("category") or "all") for row in reader]
    return rows[:limit]


def untouched(
    encoder: TextEncoder, sanitizer: EmbeddingSanitizer, rows: Sequence[tuple[str, str]], concepts: list[str] | None
) -> dict[str, tuple[float, int]]:
    """Category -> (share that comes out bit for bit, number of prompts)."""
    same: dict[str, list[bool]] = defaultdict(list)
    for part in _batches(rows):
        e = encoder.encode([prompt for prompt, _ in part])
        with torch.inference_mode():
            out = sanitizer.sanitize(e.rows, e.mask, e.pooled, concepts=concepts)
        for (_, category), is_same in zip(part, bit_identical(e, out).tolist(), strict=True):
            same[category].append(is_same)
    return {category: (sum(values) / len(values), len(values)) for category, values in sorted(same.items())}


def cost(encoder: TextEncoder, sanitizer: EmbeddingSanitizer, prompts: Sequence[str], threshold: float | None) -> float:
    """Time of sanitizing as a share of the encoding time of the same prompts, median over batches, in this run.

    threshold 0 makes every prompt an unsafe one, which is the dearest case.
    """
    ratios = []
    batches = list(_batches(prompts))[:TIMED_BATCHES]
    for repeat in range(REPEATS + 1):
        for part in batches:
            start = time.perf_counter()
            e = encoder.encode(part)
            encoded = time.perf_counter()
            with torch.inference_mode():
                sanitizer.sanitize(e.rows, e.mask, e.pooled, threshold=threshold)
            done = time.perf_counter()
            if repeat:
                ratios.append((done - encoded) / (encoded - start))
    return sorted(ratios)[len(ratios) // 2]


def _batches(items: Sequence) -> Iterator[Sequence]:
    return (items[first : first + BATCH] for first in range(0, len(items), BATCH))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; prints one JSON object. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m evaluation", description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("--encoder", required=True, help="as for python -m sanitizer")
    parser.add_argument("--sanitizer", default="auto", help="a file, or auto: the one in weights/ for this encoder")
    parser.add_argument("--prompt-sets", type=Path, required=True, help="folder with CSV files of harmless prompts")
    parser.add_argument("--sets", default="coco_captions,overt_mini", help="names of the files, without .csv")
    parser.add_argument("--limit", type=int, help="so many prompts of each set")
    options = parser.parse_args(arguments)
    try:
        encoder = load_encoder(options.encoder)
        path = find(encoder.fingerprint) if options.sanitizer == "auto" else Path(options.sanitizer)
        if path is None:
            raise SanitizerError(f"No sanitizer in {WEIGHTS_FOLDER} was trained on {encoder.fingerprint}. Train one.")
        sanitizer = load(path)
        result: dict = {"sanitizer": str(path), "report": sanitizer.info["report"], "untouched": {}, "cost": {}}
        timed: list[str] = []
        for name in options.sets.split(","):
            file = options.prompt_sets / f"{name}.csv"
            if not file.is_file():
                print(f"{file}: no such set, skipped.", file=sys.stderr)
                continue
            rows = read_set(file, options.limit)
            timed = timed or [prompt for prompt, _ in rows]
            for label, concepts in (("all concepts", None), *((c, [c]) for c in sanitizer.erasable if c == "nudity")):
                result["untouched"][f"{name}, {label}"] = untouched(encoder, sanitizer, rows, concepts)
        if timed:
            result["cost"] = {
                "harmless": cost(encoder, sanitizer, timed, None),
                "all flagged": cost(encoder, sanitizer, timed, 0.0),
            }
    except SanitizerError as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps(result, indent=1))
    return 0
