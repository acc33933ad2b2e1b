"""Where output may go, what a terminal shows beside the results, and how many prompts are held at once."""

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import SanitizerError
from ..files import keep_apart
from ..render.terminal import printable

if TYPE_CHECKING:
    from rich.progress import Progress


def batches(prompts: Iterable[str], count: int, characters: int) -> Iterator[list[str]]:
    """Lists of at most `count` prompts and about `characters` characters; a longer prompt makes a list by itself. A new
    one begins at every multiple of `count`: what is computed together does not hang on where a shard began."""
    batch, size = [], 0
    for number, prompt in enumerate(prompts):
        if batch and (number % count == 0 or size + len(prompt) > characters):
            yield batch
            batch, size = [], 0
        batch.append(prompt)
        size += len(prompt)
    if batch:
        yield batch


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
