"""Where the data lies, and files that are written whole or not at all."""

import hashlib
import json
import os
import secrets
import stat
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from .errors import SanitizerError

_PACKAGE = Path(__file__).resolve().parent


def data_folder(name: str) -> Path:
    """The folder `concepts` or `weights`: inside the installed package, or beside it in a checkout."""
    inside = _PACKAGE / name
    return inside if inside.is_dir() else _PACKAGE.parent / name


def make_folder(folder: Path, wanted: Path | None = None) -> None:
    """With its parents, unless it is there. Raises SanitizerError where that cannot be, in the name of what is wanted,
    the folder itself for None."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SanitizerError(f"{wanted or folder}: the folder cannot be made ({error.strerror or error}).") from error


def keep_apart(output: Path, inputs: Iterable[str | Path | None]) -> None:
    """Raises SanitizerError where what is to be written is one of the inputs, by whatever name or link.

    output: a file, or a folder that files are written to. inputs: files, and folders with the files in them; "-" is
    standard input; None and names of nothing that is there are left out.
    """
    written = set(_identities(output))
    for given in inputs:
        if given is not None and not written.isdisjoint(_identities(given)):
            raise SanitizerError(f"{output}: the output would overwrite the input {given}. Choose another name.")


def _identities(path: str | Path) -> Iterator[tuple[int, int]]:
    """Device and number of a file, which are the same for all its names; of a folder, and of the files in it."""
    try:
        if str(path) == "-":
            found = [os.fstat(sys.stdin.fileno())]
        else:
            found = [Path(path).stat()]
            if stat.S_ISDIR(found[0].st_mode):
                found += [entry.stat() for entry in os.scandir(path) if entry.is_file()]
    except (OSError, ValueError):
        return  # nothing that could be overwritten
    for each in found:
        if stat.S_ISREG(each.st_mode) or stat.S_ISDIR(each.st_mode):
            yield each.st_dev, each.st_ino


def check_settings(path: Path, settings: Mapping[str, Any], beside: Collection[str] = ()) -> dict[str, Any]:
    """What the file of a run's settings holds beside them, under these names. Raises SanitizerError where it cannot be
    read, and where the run had other settings; they are compared as JSON gives them back."""
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        held = {name: known.pop(name) for name in beside}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SanitizerError(f"{path}: cannot be read ({error}). Choose another --output.") from error
    settings = json.loads(json.dumps(settings))
    for name in sorted(known.keys() | settings.keys()):
        if known.get(name) != settings.get(name):
            raise SanitizerError(
                f"{path.parent}: holds a run with other settings ({name}: {known.get(name)!r} there, "
                f"{settings.get(name)!r} now). Repeat that run's settings, or choose another --output."
            )
    return held


def sha256_of(path: Path) -> str:
    """Of a file's bytes, in hexadecimal. Raises SanitizerError for one that cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise SanitizerError(f"{path}: cannot be read ({error.strerror or error}).") from error


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file that appears under its name when the block has ended without an exception, and never otherwise.

    Until then the data lie in a temporary file beside it. Pipes and devices, such as /dev/stdout, are written directly.
    Raises SanitizerError where it cannot be written.
    """
    with _refusing(path):
        if path.exists() and not path.is_file():
            with path.open("wb") as file:
                yield file
        else:
            with whole_path(path) as temporary, temporary.open("wb") as file:
                yield file


@contextmanager
def whole_path(path: Path) -> Iterator[Path]:
    """As :func:`whole_file`, for a writer that wants a name: the temporary file's, which it may also replace.

    A new file has the rights that the system gives new files, one that is there keeps its own. Raises SanitizerError
    also for pipes and devices.
    """
    temporary = None
    try:
        with _refusing(path):
            if path.exists() and not path.is_file():
                raise SanitizerError(f"{path}: cannot be written (no regular file).")
            candidate = path.with_name(f".{path.name[:50]}.{secrets.token_hex(6)}.tmp")
            with candidate.open("xb"):
                temporary = candidate
            mode = (path if path.exists() else temporary).stat().st_mode & 0o777
            # At once: the data are not for more people than the file was. Ours to write until they are whole.
            temporary.chmod(mode | 0o600)
            yield temporary
            with temporary.open("r+b") as file:
                os.fsync(file.fileno())
            temporary.chmod(mode)
            temporary.replace(path)
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextmanager
def _refusing(path: Path) -> Iterator[None]:
    """What the system says against it becomes a SanitizerError; that nobody reads a pipe any more is no refusal."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise SanitizerError(f"{path}: cannot be written ({error.strerror or error}).") from error
