"""From the words of the command line to an exit code: errors, signals, pipes.

Exit codes: 0 done, 1 refused (one line on standard error says why), 2 wrong usage, 130 interrupted with Ctrl-C, 143
terminated.
"""

import os
import signal
import sys
from collections.abc import Sequence
from contextlib import contextmanager

from ..errors import SanitizerError
from ..render.terminal import printable
from .arguments import build_parser

REFUSED, INTERRUPTED = 1, 130


class Terminated(BaseException):
    """SIGTERM or SIGHUP came: unwound like Ctrl-C, so that temporary files are removed."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. Wrong usage raises SystemExit(2), as argparse does."""
    _use_utf8()
    parsed = build_parser().parse_args(arguments)
    try:
        with _signals():
            parsed.run(parsed)
            sys.stdout.flush()
        return 0
    except SanitizerError as error:
        return _refuse(str(error))
    except KeyboardInterrupt:
        print("Interrupted; nothing half-written is left behind.", file=sys.stderr)
        return INTERRUPTED
    except Terminated as error:
        return 128 + error.number
    except BrokenPipeError:
        # The reader, such as `head`, has all it wanted. Python would complain once more when it flushes at the exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (MemoryError, RuntimeError) as error:
        if not _out_of_memory(error):
            raise
        return _refuse("Out of memory. Shorten the longest prompts, or use a machine or device with more memory.")


def _refuse(message: str) -> int:
    print(f"error: {printable(message)}", file=sys.stderr)
    return REFUSED


def _out_of_memory(error: BaseException) -> bool:
    """torch says it with a RuntimeError on the CPU and with a class of its own on a GPU."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text


def _use_utf8() -> None:
    """JSON lines are UTF-8 wherever they go, and a character that a terminal cannot show must not end the program."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")


@contextmanager
def _signals():
    """Turn SIGTERM and SIGHUP into an exception for the time of a command. Only the main thread may do that."""

    def stop(number, frame) -> None:
        raise Terminated(number)

    previous = {}
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        try:
            # nohup sets SIGHUP to be ignored; that stays so.
            if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                previous[number] = signal.signal(number, stop)
        except ValueError:
            break
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
