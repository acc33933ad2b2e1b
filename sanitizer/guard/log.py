"""The audit log: JSON lines, one for each prompt, in files that are begun anew when they are full."""

import json
import logging
import logging.handlers
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..errors import SanitizerError
from ..files import make_folder
from .setting import Log

PASSED, SANITIZED, REFUSED = "passed", "sanitized", "refused"
ACTIONS = (PASSED, SANITIZED, REFUSED)


@dataclass(frozen=True)
class Entry:
    """What was done with a prompt."""

    action: str
    """One of ACTIONS."""
    prompt_id: str = ""
    client_id: str = ""
    concepts: Mapping[str, float] = field(default_factory=dict)
    """Those that were found, with their scores."""
    reason: str = ""
    """Why it was refused, in the words that the client was shown."""
    sanitizer: str = ""
    """The files that judged it."""
    words: tuple[str, ...] = ()
    """Those at fault; kept only where the setting wants it."""
    prompts: tuple[str, ...] = ()
    """Likewise."""


class _Lines(logging.handlers.RotatingFileHandler):
    """A line is handed to the system whole, so that a killed process leaves whole lines."""

    def handleError(self, record: logging.LogRecord) -> None:
        """What cannot be written is an error of the one who writes, and nothing to be printed and forgotten."""
        raise


class AuditLog:
    """Writes entries to the file of a setting."""

    def __init__(self, setting: Log, folder: Path) -> None:
        """folder: where a name that is no whole path lies. Raises SanitizerError where the file cannot be opened."""
        self._setting = setting
        self.path = folder / setting.file if setting.file else None
        self._lines: _Lines | None = None
        if self.path is not None:
            make_folder(self.path.parent)
            try:
                _end_line(self.path)
                self._lines = _Lines(
                    self.path, maxBytes=round(setting.megabytes * 2**20), backupCount=setting.files, encoding="utf-8"
                )
            except OSError as error:
                raise SanitizerError(f"{self.path}: cannot be written ({error.strerror or error}).") from error

    def write(self, entry: Entry) -> None:
        """Raises SanitizerError where it cannot be written."""
        if self._lines is None:
            return
        line = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **vars(entry)}
        line["concepts"] = {name: round(score, 3) for name, score in entry.concepts.items()}
        for name, wanted in (("words", self._setting.words), ("prompts", self._setting.prompts)):
            if not wanted:
                del line[name]
        text = json.dumps({key: value for key, value in line.items() if value}, ensure_ascii=False)
        try:
            self._lines.handle(logging.makeLogRecord({"msg": text, "args": ()}))
        except (OSError, ValueError) as error:
            raise SanitizerError(f"{self.path}: cannot be written ({error}).") from error

    def close(self) -> None:
        if self._lines is not None:
            self._lines.close()


def _end_line(path: Path) -> None:
    """A line that a power failure cut off is ended, so that the next one is whole."""
    if path.exists() and path.stat().st_size:
        with path.open("r+b") as file:
            file.seek(-1, 2)
            if file.read(1) != b"\n":
                file.write(b"\n")


@dataclass(frozen=True)
class Day:
    """What the log says of a day (UTC)."""

    day: str
    actions: Mapping[str, int]
    concepts: Mapping[str, int]
    """Of the prompts in which anything was found."""


def by_day(path: Path) -> list[Day]:
    """The log summed up, the oldest day first. Raises as :func:`entries`."""
    actions: dict[str, Counter[str]] = defaultdict(Counter)
    concepts: dict[str, Counter[str]] = defaultdict(Counter)
    for time, entry in entries(path):
        day = time.astimezone(UTC).date().isoformat()
        actions[day][str(entry.get("action"))] += 1
        found = entry.get("concepts")
        concepts[day].update(map(str, found) if isinstance(found, dict) else ())
    return [Day(day, dict(actions[day]), dict(concepts[day])) for day in sorted(actions)]


def entries(path: Path) -> Iterator[tuple[datetime, dict[str, Any]]]:
    """The lines of a log and of its older files, the oldest first, with their times; what is no line of a log is left
    out. Raises SanitizerError where there is no log."""
    older = [file for file in path.parent.glob(f"{path.name}.*") if file.suffix[1:].isdigit()]
    older.sort(key=lambda file: -int(file.suffix[1:]))
    files = [*older, *([path] if path.exists() else [])]
    if not files:
        raise SanitizerError(f"{path}: no log there. Expected the file of the setting's [log].")
    for file in files:
        try:
            with file.open(encoding="utf-8", errors="replace") as lines:
                for line in lines:
                    try:
                        entry = json.loads(line)
                        yield datetime.fromisoformat(entry["time"]), entry
                    except (ValueError, KeyError, TypeError):
                        continue
        except OSError as error:
            raise SanitizerError(f"{file}: cannot be read ({error.strerror or error}).") from error
