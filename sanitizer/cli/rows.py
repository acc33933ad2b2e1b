"""Prompts out of text, CSV, JSON lines and Parquet, row by row, with nothing held but the row at hand.

A row that cannot be read says why and is not the end of its file; what is wrong with a whole file is an error. n rows.
"""

import csv
import json
import os
import stat
import sys
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import BinaryIO, NamedTuple

from ..errors import SanitizerError

ENDINGS = {
    ".txt": "txt", ".text": "txt", ".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet",
    ".pq": "parquet",
}  # fmt: skip
"""Ending of a name -> format."""
LONGEST = 4_000_000
"""Bytes of a line. Anything longer is no prompt, and reading it whole could fill the memory."""
LONGEST_PROMPT = 2**16
"""Bytes of a prompt in UTF-8: ten seconds to encode with the embedded encoder on one core, in disguise thirty."""
BOM = b"\xef\xbb\xbf"
PARQUET_ROWS = 1024
"""Rows of a Parquet file that are held at once."""


class Row(NamedTuple):
    """A prompt, or what is wrong with its row."""

    text: str
    number: int
    """Of its first line, or of the row in a Parquet file, from 1."""
    start: int
    """Byte that its first line starts at; 0 in a Parquet file."""
    problem: str = ""
    kind: str = "line"

    @property
    def where(self) -> str:
        return f"{self.kind} {self.number}"


def read_prompts(source: str, column: str = "prompt", form: str | None = None) -> Iterator[str]:
    """The prompts of a file, or of standard input for "-".

    form: one of those of ENDINGS; None goes by the name's ending, and takes standard input and pipes for text. Opened
    at once, and a file is read up to its first prompt: an encoder takes minutes to load, and is not to be loaded for a
    typing error. Raises SanitizerError that names the file and the row for anything that cannot be read, here or
    later; earlier prompts have been given by then.
    """
    first, rest = _begun(source, column, form)
    return chain([checked(row, source) for row in first], (checked(row, source) for row in rest))


def read_rows(
    source: str, column: str = "prompt", form: str | None = None, start: int = 0, number: int = 0
) -> Iterator[Row]:
    """The rows of a file, see :func:`read_prompts`; those behind the first `number` lines (Parquet: rows), which end at
    byte `start`. Raises SanitizerError for what is wrong with the whole file."""
    return chain(*_begun(source, column, form, start, number))


def _begun(
    source: str, column: str, form: str | None, start: int = 0, number: int = 0
) -> tuple[list[Row], Iterator[Row]]:
    """The first row of a file, of a pipe none, and the others."""
    name = _named(source)
    if not source:
        raise SanitizerError("--input: expected the name of a file, or - for standard input, found an empty name.")
    file = _opened(source, name)
    try:
        regular = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
        form = form or form_of(source, regular)
        rows = _FORMS[form](file, name, column, start, number)
        # What may still be on its way, such as a pipe's, is not waited for.
        return list(islice(rows, 1)) if regular else [], rows
    except BaseException:
        file.close()
        raise


def checked(row: Row, source: str) -> str:
    """Its prompt. Raises SanitizerError that names the file and the row where there is none."""
    if row.problem:
        raise SanitizerError(f"{_named(source)}, {row.where}: {row.problem}")
    return row.text


def given_prompts(prompts: Sequence[str]) -> Iterator[str]:
    """The prompts of the command line. Raises SanitizerError for bytes that were no text, and for one too long."""
    for number, prompt in enumerate(prompts, 1):
        if problem := problem_of(prompt):
            raise SanitizerError(f"Prompt {number}: {problem}")
        yield prompt


def form_of(source: str, regular: bool = True) -> str:
    """By the name's ending. Raises SanitizerError for a file whose name does not tell it."""
    form = ENDINGS.get(Path(source).suffix.lower())
    if form:
        return form
    if source == "-" or not regular:
        return "txt"
    raise SanitizerError(f"{source}: expected a name that ends in .txt, .csv, .jsonl or .parquet, or --format.")


def problem_of(prompt: str) -> str:
    """What is wrong with a prompt, "" for nothing."""
    # JSON escapes and arguments can smuggle in halves of surrogate pairs, which cannot be written out again.
    if any("\ud800" <= char <= "\udfff" for char in prompt):
        return "holds bytes or half a surrogate pair that are no text. Expected UTF-8."
    # A tokenizer makes no more tokens than there are bytes, so this bounds the work for a prompt.
    size = len(prompt.encode("utf-8"))
    if size > LONGEST_PROMPT:
        return (
            f"a prompt of {size:,} bytes. Expected at most {LONGEST_PROMPT:,}, about ten thousand words. "
            "Shorten it, or put one prompt on a line."
        )
    return ""


def pyarrow():
    """The package that reads and writes Parquet. Raises SanitizerError where it is not installed."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise SanitizerError(
            "Parquet: the package pyarrow is not installed. Install it: pip install pyarrow."
        ) from error
    return pyarrow


def _named(source: str) -> str:
    return "standard input" if source == "-" else source


def _opened(source: str, name: str) -> BinaryIO:
    try:
        return open(sys.stdin.fileno() if source == "-" else source, "rb", closefd=source != "-")
    except OSError as error:
        raise SanitizerError(f"{name}: cannot be read ({error.strerror or error}).") from error
    except ValueError as error:
        raise SanitizerError(f"{name}: no file name ({error}).") from error


class _Line(NamedTuple):
    text: str
    number: int
    start: int
    end: int
    problem: str


def _lines(file: BinaryIO, name: str, start: int = 0, number: int = 0) -> Iterator[_Line]:
    """Lines with their ends. Only a line feed ends a line: other separators may stand in a prompt."""
    if start:
        file.seek(start)
    while line := _bytes(file, name):
        number, problem, text = number + 1, "", ""
        end, more = start + len(line), line
        while len(more) > LONGEST and not more.endswith(b"\n"):
            more = _bytes(file, name)
            end += len(more)
        if number == 1:
            if line.startswith((b"\xff\xfe", b"\xfe\xff")):
                raise SanitizerError(f"{name}: UTF-16 text. Expected UTF-8; save it as UTF-8.")
            line = line.removeprefix(BOM)
        if end - start > LONGEST:
            problem = f"longer than {LONGEST:,} bytes. Expected a prompt a line."
        else:
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError as error:
                byte = f"byte 0x{line[error.start]:02x} at place {error.start + 1}"
                problem = f"no UTF-8 ({byte}). Save the file as UTF-8."
        yield _Line(text, number, start, end, problem)
        start = end


def _bytes(file: BinaryIO, name: str) -> bytes:
    try:
        return file.readline(LONGEST + 1)
    except OSError as error:
        raise SanitizerError(f"{name}: cannot be read ({error.strerror or error}).") from error


def _row(text: str, number: int, start: int, kind: str = "line") -> Row:
    problem = problem_of(text)
    return Row("" if problem else text, number, start, problem, kind)


def _txt(file: BinaryIO, name: str, column: str, start: int, number: int) -> Iterator[Row]:
    with file:
        for line in _lines(file, name, start, number):
            if line.problem:
                yield Row("", line.number, line.start, line.problem)
            else:
                yield _row(line.text.rstrip("\n").removesuffix("\r"), line.number, line.start)


def _jsonl(file: BinaryIO, name: str, column: str, start: int, number: int) -> Iterator[Row]:
    with file:
        for line in _lines(file, name, start, number):
            if line.problem or line.text.strip():
                text, problem = ("", line.problem) if line.problem else _json(line.text, column)
                own = _row(text, line.number, line.start)
                yield own._replace(problem=problem) if problem else own


def _json(line: str, column: str) -> tuple[str, str]:
    """The prompt, or what is wrong."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        return "", f"no valid JSON ({error})."
    if isinstance(value, dict):
        if column not in value:
            listed = ", ".join(list(value)[:20]) or "none"
            return "", f"no key {column!r}. It has: {listed}. Choose one with --column."
        value = value[column]
    return (value, "") if isinstance(value, str) else ("", f"expected text, found {_kind(value)}.")


class _BadLine(Exception):
    """A line inside a row that is no text."""


def _csv(file: BinaryIO, name: str, column: str, start: int, number: int) -> Iterator[Row]:
    """A row may span lines where a quoted value holds line breaks; its first is named. Behind a row that is no valid
    CSV the next line is tried."""
    csv.field_size_limit(LONGEST)
    with file:
        place: int | None = None
        rows = _CsvRows(_lines(file, name))
        while True:
            try:
                values = next(rows)
            except StopIteration:
                break
            except (csv.Error, _BadLine) as error:
                problem = str(error) if isinstance(error, _BadLine) else f"no valid CSV row ({error})."
                if place is None:
                    raise SanitizerError(f"{name}, line {rows.first.number}: {problem}") from error
                yield Row("", rows.first.number, rows.first.start, problem)
                rows = _CsvRows(_lines(file, name, rows.first.end, rows.first.number))
                continue
            if not values:
                continue  # an empty line is no row
            if place is None:
                place = _column([title.strip() for title in values], column, name)
                if start:
                    rows = _CsvRows(_lines(file, name, start, number))
            elif len(values) <= place:
                problem = (
                    f"expected a value in column {column!r} (number {place + 1}), found {len(values)} "
                    f"column{'s' * (len(values) != 1)}."
                )
                yield Row("", rows.first.number, rows.first.start, problem)
            else:
                yield _row(values[place], rows.first.number, rows.first.start)
        if place is None:
            raise SanitizerError(f"{name}: empty. Expected a header line with a column {column!r}.")


class _CsvRows:
    """Rows of values, and the first line of the last one, also where that one is no valid row."""

    def __init__(self, lines: Iterator[_Line]) -> None:
        self._lines, self._rows = lines, csv.reader(self._texts(), strict=True)
        self.first: _Line
        self._new = True

    def __next__(self) -> list[str]:
        self._new = True
        return next(self._rows)

    def _texts(self) -> Iterator[str]:
        for line in self._lines:
            if self._new:
                self.first, self._new = line, False
            if line.problem:
                raise _BadLine(line.problem)
            yield line.text


def _parquet(file: BinaryIO, name: str, column: str, start: int, number: int) -> Iterator[Row]:
    arrow = pyarrow()
    with file:
        try:
            table = arrow.parquet.ParquetFile(file)
            titles = table.schema_arrow.names
            _column(titles, column, name)
            at = 0
            for group in range(table.num_row_groups):
                if at + table.metadata.row_group(group).num_rows <= number:
                    at += table.metadata.row_group(group).num_rows
                    continue
                for batch in table.iter_batches(PARQUET_ROWS, [group], [column]):
                    for value in batch.column(0).to_pylist():
                        at += 1
                        if at > number:
                            good = isinstance(value, str)
                            row = _row(value if good else "", at, 0, "row")
                            yield row if good else row._replace(problem=f"expected text, found {_kind(value)}.")
        except (arrow.ArrowException, OSError) as error:
            raise SanitizerError(f"{name}: cannot be read as Parquet ({str(error).splitlines()[0]}).") from error


def _column(found: Sequence[str], column: str, name: str) -> int:
    if found.count(column) == 1:
        return found.index(column)
    listed = ", ".join(title or "''" for title in found[:20]) + (", …" if len(found) > 20 else "")
    if column in found:
        raise SanitizerError(f"{name}: several columns are called {column!r} ({listed}). Rename one.")
    raise SanitizerError(f"{name}: no column {column!r}. It has: {listed}. Choose one with --column.")


def _kind(value: object) -> str:
    names = {type(None): "null", bool: "true or false", int: "a number", float: "a number", list: "a list"}
    return names.get(type(value), type(value).__name__)


_FORMS = {"txt": _txt, "csv": _csv, "jsonl": _jsonl, "parquet": _parquet}
