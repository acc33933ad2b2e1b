"""How a command ends, on every command line of the project: one line on standard error and an exit code, whatever
happened. Refusals, signals, a full memory, and standard output that is closed, full, or no longer read."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import TextIOWrapper

from .errors import SanitizerError
from .render.terminal import printable

REFUSED, INTERRUPTED = 1, 130


@dataclass
class Ending:
    code: int = 0
    """The exit code; the block may set it."""


class Terminated(BaseException):
    """SIGTERM or SIGHUP came: unwound like Ctrl-C, so that temporary files are removed."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextmanager
def exit_code(stopped: str) -> Iterator[Ending]:
    """What ends the block becomes the exit code, and a line on standard error that says why.

    stopped: what else is to be said of work that was interrupted.
    """
    _prepare_streams()
    end = Ending()
    try:
        try:
            with _signals():
                yield end
        except SystemExit as error:
            end.code = error.code if isinstance(error.code, int) else REFUSED * bool(error.code)
        sys.stdout.flush()
    except SanitizerError as error:
        end.code = _refuse(str(error))
    except KeyboardInterrupt:
        print(f"Interrupted; {stopped}", file=sys.stderr)
        end.code = INTERRUPTED
    except Terminated as error:
        with suppress(OSError):  # after SIGHUP there may be no terminal any more
            print(f"Terminated; {stopped}", file=sys.stderr)
        end.code = 128 + error.number
    except BrokenPipeError:
        pass  # The reader, such as `head`, has all it wanted.
    except OSError as error:
        # Files are refused with their names where they are opened; what is left is a stream.
        end.code = _refuse(f"{error.filename or 'Standard output'}: cannot be written ({error.strerror or error}).")
    except (MemoryError, RuntimeError) as error:
        if not _out_of_memory(error):
            raise
        end.code = _refuse("Out of memory. Shorten the longest prompts, or use a machine or device with more memory.")
    try:
        sys.stdout.flush()
    except OSError:
        # Said already; Python would complain once more when it flushes at the exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _refuse(message: str) -> int:
    print(f"error: {printable(message)}", file=sys.stderr)
    return REFUSED


def _out_of_memory(error: BaseException) -> bool:
    """torch says it with a RuntimeError on the CPU and with a class of its own on a GPU."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text


def _prepare_streams() -> None:
    """JSON lines are UTF-8 wherever they go, and a character that a terminal cannot show must not end the program.

    A stream that was closed is None: what is printed there would end up in another stream, and the next file that is
    opened would take its place. Standard input is empty then, and writing to standard output fails.
    """
    for name, mode, flags in (("stdin", "r", os.O_RDONLY), ("stdout", "w", os.O_RDONLY), ("stderr", "w", os.O_WRONLY)):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, flags), mode))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")


@contextmanager
def _signals() -> Iterator[None]:
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
