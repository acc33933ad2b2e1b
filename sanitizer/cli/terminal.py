"""What is special about a terminal: colours, width, progress bars."""

import os
import shutil
import sys

from tqdm import tqdm


def is_terminal(stream) -> bool:
    """False also where the stream was closed or is none at all."""
    try:
        return stream.isatty()
    except (AttributeError, ValueError):
        return False


def colour_depth(stream=None) -> int:
    """24 for true colour, 8 for 256 colours, 0 for none: a pipe, a terminal without colours, or NO_COLOR is set."""
    stream = stream or sys.stdout
    # no-color.org: any value but an empty one counts.
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or not is_terminal(stream):
        return 0
    return 24 if os.environ.get("COLORTERM", "").lower() in ("truecolor", "24bit") else 8


def width() -> int:
    return max(60, min(shutil.get_terminal_size().columns, 120))


def progress(quiet: bool = False, **options) -> tqdm:
    """A bar on standard error, silent where that is no terminal."""
    return tqdm(file=sys.stderr, disable=quiet or not is_terminal(sys.stderr), dynamic_ncols=True, **options)


def note(text: str) -> None:
    """A line about what was done, on standard error: standard output belongs to the results."""
    print(text, file=sys.stderr)
