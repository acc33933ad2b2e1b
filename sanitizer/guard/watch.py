"""The setting as it stands now: looked for anew with each prompt, taken over whole or not at all."""

import logging
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from ..errors import SanitizerError
from .log import AuditLog
from .setting import NAME, Setting, parse

FILE_VARIABLE, TEXT_VARIABLE = "SANITIZER_GUARD_FILE", "SANITIZER_GUARD"
"""Environment variables: another file than the one in the folder, and the setting itself as TOML."""


class State(NamedTuple):
    """How things stand."""

    setting: Setting | None
    """None: nothing is guarded, or, with an error, every prompt is refused."""
    error: str
    """What is wrong with the setting as it lies there now; the one before it stays in force, if there was one."""
    version: int
    """Another one after each change."""
    log: AuditLog | None

    @property
    def on(self) -> bool:
        return self.setting is not None or bool(self.error)


OFF = State(None, "", 0, None)


class Watch:
    """A host's setting. Once there was one, or one that cannot be read, nothing but a restart leaves the host without:
    what is gone or wrong is an error, and the last one that could be read stays in force."""

    def __init__(self, folder: Path, environment: Mapping[str, str] = os.environ) -> None:
        """folder: where the file is looked for, and where the log's name begins."""
        self._folder = folder
        self._text = environment.get(TEXT_VARIABLE)
        self._file = environment.get(FILE_VARIABLE)
        self.path = Path(self._file) if self._file else folder / NAME
        self._read: bytes | None = None
        self._state = OFF
        self._lock = threading.Lock()

    @property
    def source(self) -> str:
        """Where the setting stands, for messages."""
        return f"the environment variable {TEXT_VARIABLE}" if self._text is not None else str(self.path)

    def state(self) -> State:
        with self._lock:
            try:
                read = self._text.encode() if self._text is not None else self.path.read_bytes()
            except FileNotFoundError:
                if not self._file and not self._state.on:
                    return self._state
                return self._failed("is gone", None)
            except OSError as error:
                return self._failed(f"cannot be read ({error.strerror or error})", None)
            if read == self._read:
                return self._state
            if not read.strip() and self._state.setting is not None:
                return self._failed("is empty, where there was a setting", read)
            try:
                self._take(parse(read, self.source))
            except SanitizerError as error:
                return self._failed(str(error).removeprefix(f"{self.source}: ").removesuffix("."), read)
            self._read = read
            return self._state

    def _take(self, setting: Setting) -> None:
        before = self._state
        log = before.log if before.setting and before.setting.log == setting.log else None
        log = log or AuditLog(setting.log, self._folder)
        if before.log is not None and before.log is not log:
            before.log.close()
        self._state = State(setting, "", before.version + 1, log)
        logging.info("Embedding Sanitizer: every prompt is guarded, as %s says.", self.source)

    def _failed(self, what: str, read: bytes | None) -> State:
        kept = "The setting before it stays in force." if self._state.setting else "Every prompt is refused."
        error = f"{self.source}: {what}. {kept}"
        if error != self._state.error:
            logging.error("Embedding Sanitizer: %s", error)
            self._state = self._state._replace(error=error, version=self._state.version + 1)
        self._read = read
        return self._state
