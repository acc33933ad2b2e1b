"""Scores as records, and files of them: JSON lines, CSV and Parquet.

A record holds the prompt, whether it is flagged, its scores by concept, and its tokens with theirs. A row of CSV is
flat and leaves the tokens out.
"""

import csv
import io
import json
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from .pipeline import Result
from .rows import PARQUET_ROWS, pyarrow

DIGITS = 6

Writer = Callable[[Iterable[Result], BinaryIO, Sequence[str]], tuple[int, int]]
"""Results and names of the concepts into a file -> number of prompts, and of flagged ones."""


def record(result: Result) -> dict[str, Any]:
    """One result. Tokens are those that stand for text, in the order of the rows."""
    names = result.concepts
    tokens = [
        {"token": token, "start": start, "end": end, "scores": _by_name(names, scores)}
        for token, (start, end), scores in zip(result.tokens, result.offsets, result.token_scores.tolist(), strict=True)
        if token
    ]
    return {
        "prompt": result.prompt,
        "flagged": result.flagged,
        "prompt_scores": _by_name(names, result.prompt_scores.tolist()),
        "tokens": tokens,
    }


def line(result: Result) -> str:
    """One result as JSON on one line."""
    return json.dumps(record(result), ensure_ascii=False, allow_nan=False)


def writer(form: str) -> Writer:
    """Of one of WRITERS. Raises SanitizerError where a package for it is not installed."""
    if form == "parquet":
        pyarrow()
    return WRITERS[form]


def form_of(path: Path) -> str:
    """By the name's ending; JSON lines where it tells nothing."""
    ending = path.suffix.lower().removeprefix(".")
    return ending if ending in WRITERS else "jsonl"


def write_jsonl(results: Iterable[Result], file: BinaryIO, concepts: Sequence[str]) -> tuple[int, int]:
    total = flagged = 0
    for result in results:
        file.write(line(result).encode() + b"\n")
        total, flagged = total + 1, flagged + result.flagged
    return total, flagged


def write_csv(results: Iterable[Result], file: BinaryIO, concepts: Sequence[str]) -> tuple[int, int]:
    text = io.TextIOWrapper(file, encoding="utf-8", newline="")
    rows = csv.writer(text)
    rows.writerow(["prompt", "flagged", *concepts])
    total = flagged = 0
    for result in results:
        own = record(result)
        rows.writerow([own["prompt"], str(own["flagged"]).lower(), *own["prompt_scores"].values()])
        total, flagged = total + 1, flagged + result.flagged
    text.detach()
    return total, flagged


def write_parquet(results: Iterable[Result], file: BinaryIO, concepts: Sequence[str]) -> tuple[int, int]:
    arrow = pyarrow()
    scores = arrow.struct([(name, arrow.float64()) for name in concepts])
    token = {"token": arrow.string(), "start": arrow.int32(), "end": arrow.int32(), "scores": scores}
    schema = arrow.schema(
        {
            "prompt": arrow.string(),
            "flagged": arrow.bool_(),
            "prompt_scores": scores,
            "tokens": arrow.list_(arrow.struct(list(token.items()))),
        }
    )
    total, flagged, results = 0, 0, iter(results)
    with arrow.parquet.ParquetWriter(file, schema) as table:
        while some := list(islice(results, PARQUET_ROWS)):
            table.write_batch(arrow.RecordBatch.from_pylist([record(result) for result in some], schema))
            total, flagged = total + len(some), flagged + sum(result.flagged for result in some)
    return total, flagged


def _by_name(names: Iterable[str], scores: Iterable[float]) -> dict[str, float]:
    return {name: round(score, DIGITS) for name, score in zip(names, scores, strict=True)}


WRITERS: dict[str, Writer] = {"jsonl": write_jsonl, "csv": write_csv, "parquet": write_parquet}
