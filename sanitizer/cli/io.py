"""What comes in and goes out: prompts from files, pipes and arguments, one after the other, with nothing held but the
line at hand; where output may go; and what a terminal shows beside the results."""

import csv
import json
import os
import stat
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from ..errors import SanitizerError
from ..files import keep_apart
from ..render.terminal import printable

if TYPE_CHECKING:
    from rich.progress import Progress

FORMATS = ("txt", "csv", "jsonl")
LONGEST = 4_000_000
"""Bytes of a line. Anything longer is no prompt, and reading it whole could fill the memory."""
LONGEST_PROMPT = 2**16
"""Bytes of a prompt in UTF-8: ten seconds to encode with the embedded encoder on one core, in disguise thirty."""
BOM = b"\xef\xbb\xbf"


def read_prompts(source: str, column: str = "prompt", form: str | None = None) -> Iterator[str]:
    """The prompts of a file, or of standard input for "-".

    form: one of FORMATS; None goes by the name's ending, and takes standard input and pipes for text. Opened at once,
    and a file is read up to its first prompt: an encoder takes minutes to load, and is not to be loaded for a typing
    error. Raises SanitizerError that names the file and the line for anything that cannot be read, here or later;
    earlier prompts have been given by then.
    """
    name = "standard input" if source == "-" else source
    file = _opened(source, name)
    try:
        regular = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
        form = form or _form(source, regular)
        prompts = _prompts(file, name, column, form)
        # What may still be on its way, such as a pipe's, is not waited for.
        first = list(islice(prompts, 1)) if regular else []
    except BaseException:
        file.close()
        raise
    return chain(first, prompts)


def given_prompts(prompts: Sequence[str]) -> Iterator[str]:
    """The prompts of the command line. Raises SanitizerError for bytes that were no text, and for one too long."""
    for number, prompt in enumerate(prompts, 1):
        yield _short(_checked(prompt, f"Prompt {number}"), f"Prompt {number}")


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


def _opened(source: str, name: str) -> BinaryIO:
    if not source:
        raise SanitizerError("--input: expected the name of a file, or - for standard input, found an empty name.")
    try:
        return open(sys.stdin.fileno() if source == "-" else source, "rb", closefd=source != "-")
    except OSError as error:
        raise SanitizerError(f"{name}: cannot be read ({error.strerror or error}).") from error
    except ValueError as error:
        raise SanitizerError(f"{name}: no file name ({error}).") from error


def _form(source: str, regular: bool) -> str:
    ending = Path(source).suffix.lower().removeprefix(".")
    ending = {"ndjson": "jsonl", "text": "txt"}.get(ending, ending)
    if ending in FORMATS:
        return ending
    if source == "-" or not regular:
        return "txt"
    raise SanitizerError(f"{source}: expected a name that ends in .txt, .csv or .jsonl, or --format.")


def _prompts(file: BinaryIO, name: str, column: str, form: str) -> Iterator[str]:
    with file:
        lines = _lines(file, name)
        if form == "csv":
            found = _csv(lines, name, column)
        elif form == "jsonl":
            found = _jsonl(lines, name, column)
        else:
            found = ((number, line.rstrip("\n").removesuffix("\r")) for number, line in lines)
        for number, prompt in found:
            yield _short(prompt, f"{name}, line {number}")


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


def _csv(lines: Iterator[tuple[int, str]], name: str, column: str) -> Iterator[tuple[int, str]]:
    """(line, the column's value). A row may span lines where a quoted value holds line breaks; its first is named."""
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
            yield first, row[place]
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


def _jsonl(lines: Iterator[tuple[int, str]], name: str, column: str) -> Iterator[tuple[int, str]]:
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
        yield number, _checked(value, where)


def _checked(prompt: str, where: str) -> str:
    """JSON escapes and arguments can smuggle in halves of surrogate pairs, which cannot be written out again."""
    if any("\ud800" <= char <= "\udfff" for char in prompt):
        raise SanitizerError(f"{where}: holds bytes or half a surrogate pair that are no text. Expected UTF-8.")
    return prompt


def _short(prompt: str, where: str) -> str:
    """A tokenizer makes no more tokens than there are bytes, so this bounds the work for a prompt."""
    size = len(prompt.encode("utf-8", "surrogatepass"))
    if size > LONGEST_PROMPT:
        raise SanitizerError(
            f"{where}: a prompt of {size:,} bytes. Expected at most {LONGEST_PROMPT:,}, about ten thousand words. "
            "Shorten it, or put one prompt on a line."
        )
    return prompt


def _kind(value: object) -> str:
    names = {type(None): "null", bool: "true or false", int: "a number", float: "a number", list: "a list"}
    return names.get(type(value), type(value).__name__)


def check_output(path: Path, ending: str | None = None, *inputs: str | Path | None) -> Path:
    """The real path to write to, checked before the work begins: a long run must not end in a typing error.

    inputs: as for :func:`.files.keep_apart`. Raises SanitizerError for another ending than the one wanted, a missing or
    unwritable folder, a folder in the file's place, and an output that is one of the inputs.
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
    keep_apart(path, inputs)
    return real


def encoder_files(name: str) -> str:
    """Where an encoder that is a folder lies, without the layer behind its name; for check_output."""
    return name.partition("@")[0]


def program() -> str:
    """How this command line is called: the console script by its name, else `python -m` and the package."""
    script = Path(sys.argv[0]).stem
    return script if script == "embedding-sanitizer" else f"python -m {__name__.rpartition('.cli.')[0]}"


def note(text: str) -> None:
    """A line about what was done, on standard error: standard output belongs to the results."""
    print(printable(text), file=sys.stderr)


def is_terminal(stream) -> bool:
    """False also where the stream was closed or is none at all."""
    try:
        return stream.isatty()
    except (AttributeError, ValueError):
        return False


def is_dumb() -> bool:
    return os.environ.get("TERM") == "dumb"


def colour_depth() -> int:
    """24 for true colour, 8 for 256 colours, 0 for none: a pipe, a terminal without colours, or NO_COLOR is set."""
    # no-color.org: any value but an empty one counts.
    if os.environ.get("NO_COLOR") or is_dumb() or not is_terminal(sys.stdout):
        return 0
    return 24 if os.environ.get("COLORTERM", "").lower() in ("truecolor", "24bit") else 8


@contextmanager
def counted(prompts: Iterable[str], shown: bool = True) -> Iterator[Iterator[str]]:
    """The prompts, with their number on standard error where that is a terminal and it is to be shown.

    Raises SanitizerError at their end if there was none.
    """

    def counting() -> Iterator[str]:
        count = 0
        for count, prompt in enumerate(prompts, 1):
            yield prompt
            bars("prompts", count, None, {})
        if not count:
            raise SanitizerError("No prompts: the input is empty. Expected at least one.")

    with Bars(shown, lines=False) as bars:
        yield counting()


class Bars:
    """The callback of long work as progress bars on standard error, one a stage; with `lines`, a line a stage where
    standard error is no terminal. `drawn` False leaves the bars out."""

    def __init__(self, drawn: bool = True, lines: bool = True) -> None:
        self.lines = lines
        self.tasks: dict[str, Any] = {}
        self.progress: Progress | None = None
        if is_terminal(sys.stderr) and not is_dumb():
            self.lines = False
            self.progress = _progress() if drawn else None

    def __call__(self, stage: str, done: int, total: int | None, values: dict[str, float]) -> None:
        if stage not in self.tasks:
            self.tasks[stage] = None
            if self.progress is not None:
                self.tasks[stage] = self.progress.add_task(printable(stage), total=total, values="")
            elif self.lines:
                note(f"{stage}: {total}")
        if self.progress is not None:
            self.progress.update(self.tasks[stage], completed=done)
            if values:
                shown = ", ".join(f"{name} {value:.3f}" for name, value in values.items())
                self.progress.update(self.tasks[stage], values=shown)

    def __enter__(self) -> "Bars":
        if self.progress is not None:
            self.progress.start()
        return self

    def __exit__(self, *exception) -> None:
        if self.progress is not None:
            self.progress.stop()


def _progress() -> "Progress":
    """rich's bars on standard error. What they name may come out of a file, so it is no markup."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[values]}", markup=False),
        console=Console(stderr=True),
        redirect_stdout=False,
        redirect_stderr=False,
    )
