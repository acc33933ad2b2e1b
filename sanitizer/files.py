"""Where the data lies, and files that are written whole or not at all."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from .errors import SanitizerError

_PACKAGE = Path(__file__).resolve().parent


def data_folder(name: str) -> Path:
    """The folder `concepts` or `weights`: inside the installed package, or beside it in a checkout."""
    inside = _PACKAGE / name
    return inside if inside.is_dir() else _PACKAGE.parent / name


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file that appears under its name when the block has ended without an exception, and never otherwise.

    Until then the data lie in a temporary file beside it. Pipes and devices, such as /dev/stdout, are written directly.
    Raises SanitizerError where it cannot be written.
    """
    temporary = None
    try:
        if path.exists() and not path.is_file():
            with path.open("wb") as file:
                yield file
            return
        # A new file has the rights that the system gives new files; an old one keeps its own.
        mode = path.stat().st_mode & 0o777 if path.exists() else None
        temporary = path.with_name(f".{path.name[:50]}.{secrets.token_hex(6)}.tmp")
        with temporary.open("xb") as file:
            if mode is not None:
                # At once, since not everyone may read what is being written; ours to write until it is whole.
                temporary.chmod(mode | 0o600)
            yield file
            file.flush()
            os.fsync(file.fileno())
        if mode is not None:
            temporary.chmod(mode)
        temporary.replace(path)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise SanitizerError(f"{path}: cannot be written ({error.strerror or error}).") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
