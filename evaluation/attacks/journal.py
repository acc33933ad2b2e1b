"""Finished attacks on disk, one JSON line each, so that an interrupted run goes on where it was and loses nothing.

The first line holds the settings. A line is appended whole and flushed to the disk; one that was torn, since the
machine stopped while it was written, is dropped. Lines hold figures, and a prompt only where the user asked for it.
"""

import hashlib
import json
import os
from pathlib import Path

from sanitizer.errors import SanitizerError

NAME = "attack.jsonl"


def key(attack: str, target: str) -> tuple[str, str]:
    """Of an attack on a target prompt: the prompt itself is not kept."""
    return attack, hashlib.sha256(target.encode("utf-8", "surrogatepass")).hexdigest()[:16]


class Journal:
    """The lines of one folder, for one set of settings."""

    def __init__(self, folder: Path, settings: dict) -> None:
        """Raises SanitizerError where the folder holds attacks with other settings, or cannot be written."""
        self.path = folder / NAME
        self.records: dict[tuple[str, str], dict] = {}
        self.dropped = False
        """A torn line was found."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            whole = self._whole()
        except OSError as error:
            raise SanitizerError(f"{self.path}: cannot be opened ({error.strerror or error}).") from error
        if not whole:
            self._append({"settings": settings})
            return
        first, *rest = [self._parsed(line, number) for number, line in enumerate(whole, 1)]
        self._compare(first.get("settings"), settings)
        for number, record in enumerate(rest, 2):
            if not {"attack", "target", "points"} <= record.keys():
                raise self._damaged(number, "it is no finished attack")
            self.records[record["attack"], record["target"]] = record

    def add(self, record: dict) -> None:
        """A finished attack: attack and target as :func:`key` gives them, and its figures."""
        self._append(record)
        self.records[record["attack"], record["target"]] = record

    def _whole(self) -> list[bytes]:
        """All complete lines; what follows the last line feed is cut off the file."""
        if not self.path.exists():
            return []
        data = self.path.read_bytes()
        end = data.rfind(b"\n") + 1
        if end < len(data):
            self.dropped = True
            with self.path.open("r+b") as file:
                file.truncate(end)
        return data[:end].splitlines()

    def _append(self, record: dict) -> None:
        line = json.dumps(record, sort_keys=True, ensure_ascii=True, allow_nan=False) + "\n"
        try:
            with self.path.open("ab") as file:
                file.write(line.encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise SanitizerError(f"{self.path}: cannot be written ({error.strerror or error}).") from error

    def _parsed(self, line: bytes, number: int) -> dict:
        try:
            record = json.loads(line)
        except ValueError as error:
            raise self._damaged(number, str(error)) from error
        if not isinstance(record, dict):
            raise self._damaged(number, "it is no object")
        return record

    def _damaged(self, number: int, why: str) -> SanitizerError:
        return SanitizerError(
            f"{self.path}, line {number}: damaged ({why}). Delete the file, or choose another --output."
        )

    def _compare(self, known: dict | None, settings: dict) -> None:
        if not isinstance(known, dict):
            raise self._damaged(1, "it lacks the settings")
        # As JSON gives them back: tuples are lists there.
        settings = json.loads(json.dumps(settings))
        for name in sorted(known.keys() | settings.keys()):
            if known.get(name) != settings.get(name):
                raise SanitizerError(
                    f"{self.path}: holds attacks with other settings ({name}: {known.get(name)!r} there, "
                    f"{settings.get(name)!r} now). Repeat those settings, or choose another --output."
                )
