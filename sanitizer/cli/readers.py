"""Prompts from files, pipes and arguments, one after the other: nothing is held but the line at hand."""

import csv
import json
import os
import stat
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from ..errors import SanitizerError

FORMATS = ("txt", "csv", "jsonl")
LONGEST = 4_000_000
"""Bytes of a line. Anything longer is no prompt, and reading it whole could fill the memory."""
BOM = b"\xef\xbb\xbf"


def read_prompts(source: str, column: str = "prompt", form: str | None = None) -> Iterator[str]:
    """The prompts of a file, or of standard input for "-".

    form: one of FORMATS; None goes by the name's ending, and takes standard input and pipes for text. Raises
    SanitizerError that names the file and the line for anything that cannot be read; earlier prompts have been given
    by then.
    """
    name = "standard input" if source == "-" else source
    with _opened(source, name) as file:
        form = form or _form(source, file)
        lines = _lines(file, name)
        if form == "csv":
            yield from _csv(lines, name, column)
        elif form == "jsonl":
            yield from _jsonl(lines, name, column)
        else:
            yield from (line.rstrip("\n").removesuffix("\r") for _, line in lines)


def given_prompts(prompts: Sequence[str]) -> Iterator[str]:
    """The prompts of the command line. Raises SanitizerError for bytes that were no text."""
    for number, prompt in enumerate(prompts, 1):
        yield _checked(prompt, f"Prompt {number}")


def batches(prompts: Iterable[str], count: int, characters: int) -> Iterator[list[str]]:
    """Lists of at most `count` prompts and about `characters` characters; a longer prompt makes a list by itself."""
    batch, size = [], 0
    for prompt in prompts:
        if batch and (len(batch) == count or size + len(prompt) > characters):
            yield batch
            batch, size = [], 0
        batch.append(prompt)
        size += len(prompt)
    if batch:
        yield batch


@contextmanager
def _opened(source: str, name: str) -> Iterator[BinaryIO]:
    """A failing read becomes a SanitizerError; what the consumer of the prompts raises passes unchanged."""
    if source == "-":
        yield sys.stdin.buffer
        return
    try:
        file = Path(source).open("rb")  # noqa: SIM115 - closed below
    except OSError as error:
        raise SanitizerError(f"{name}: cannot be read ({error.strerror or error}).") from error
    except ValueError as error:
        raise SanitizerError(f"{name}: no file name ({error}).") from error
    with file:
        yield file


def _form(source: str, file: BinaryIO) -> str:
    ending = Path(source).suffix.lower().removeprefix(".")
    ending = {"ndjson": "jsonl", "text": "txt"}.get(ending, ending)
    if ending in FORMATS:
        return ending
    if source == "-" or not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return "txt"
    raise SanitizerError(f"{source}: expected a name that ends in .txt, .csv or .jsonl, or --format.")


def _lines(file: BinaryIO, name: str) -> Iterator[tuple[int, str]]:
    """(number, line with its end). Only a line feed ends a line: other separators may stand in a prompt."""
    number = 0
    while True:
        try:
            line = file.readline(LONGEST + 1)
        except OSError as error:
            raise SanitizerError(f"{name}: cannot be read ({error.strerror or error}).") from error
        if not line:
            return
        number += 1
        if number == 1:
            if line.startswith((b"\xff\xfe", b"\xfe\xff")):
                raise SanitizerError(f"{name}: UTF-16 text. Expected UTF-8; save it as UTF-8.")
            line = line.removeprefix(BOM)
        if len(line) > LONGEST:
            raise SanitizerError(f"{name}, line {number}: longer than {LONGEST:,} bytes. Expected a prompt a line.")
        try:
            yield number, line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise SanitizerError(
                f"{name}, line {number}: no UTF-8 (byte 0x{line[error.start]:02x} at place {error.start + 1}). "
                "Save the file as UTF-8."
            ) from error


def _csv(lines: Iterator[tuple[int, str]], name: str, column: str) -> Iterator[str]:
    """The column's values. A row may span lines where a quoted value holds line breaks; errors name its first."""
    at = 0

    def text() -> Iterator[str]:
        nonlocal at
        for at, line in lines:  # noqa: B007 - kept for the error
            yield line

    csv.field_size_limit(LONGEST)
    rows = csv.reader(text(), strict=True)
    place: int | None = None
    while True:
        first = at + 1
        try:
            row = next(rows, None)
        except csv.Error as error:
            raise SanitizerError(f"{name}, line {first}: no valid CSV row ({error}).") from error
        if row is None:
            break
        if not row:
            continue  # an empty line is no row
        if place is None:
            place = _column(row, column, name)
        elif len(row) <= place:
            raise SanitizerError(
                f"{name}, line {first}: expected a value in column {column!r} (number {place + 1}), found "
                f"{len(row)} column{'s' * (len(row) != 1)}."
            )
        else:
            yield row[place]
    if place is None:
        raise SanitizerError(f"{name}: empty. Expected a header line with a column {column!r}.")


def _column(header: list[str], column: str, name: str) -> int:
    found = [title.strip() for title in header]
    if found.count(column) == 1:
        return found.index(column)
    listed = ", ".join(title or "''" for title in found[:20]) + (", …" if len(found) > 20 else "")
    if column in found:
        raise SanitizerError(f"{name}: several columns are called {column!r} ({listed}). Rename one.")
    raise SanitizerError(f"{name}: no column {column!r}. It has: {listed}. Choose one with --column.")


def _jsonl(lines: Iterator[tuple[int, str]], name: str, column: str) -> Iterator[str]:
    for number, line in lines:
        if not line.strip():
            continue
        where = f"{name}, line {number}"
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise SanitizerError(f"{where}: no valid JSON ({error}).") from error
        if isinstance(value, dict):
            if column not in value:
                listed = ", ".join(list(value)[:20]) or "none"
                raise SanitizerError(f"{where}: no key {column!r}. It has: {listed}. Choose one with --column.")
            value = value[column]
        if not isinstance(value, str):
            raise SanitizerError(f"{where}: expected text, found {_kind(value)}.")
        yield _checked(value, where)


def _checked(prompt: str, where: str) -> str:
    """JSON escapes and arguments can smuggle in halves of surrogate pairs, which cannot be written out again."""
    if any("\ud800" <= char <= "\udfff" for char in prompt):
        raise SanitizerError(f"{where}: holds bytes or half a surrogate pair that are no text. Expected UTF-8.")
    return prompt


def _kind(value: object) -> str:
    names = {type(None): "null", bool: "true or false", int: "a number", float: "a number", list: "a list"}
    return names.get(type(value), type(value).__name__)
