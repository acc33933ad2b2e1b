"""What the guard knows while the server runs: the host's setting, sanitizers for CLIPs, and the log."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import folder_paths
from comfy_execution.utils import get_executing_context
from server import PromptServer

from ...sanitizer.errors import SanitizerError
from ...sanitizer.guard.log import REFUSED, Entry
from ...sanitizer.guard.setting import Setting
from ...sanitizer.guard.watch import State, Watch
from ..adapter import folders
from ..adapter.clip import ComfyTextEncoder
from ..adapter.handle import LoadedSanitizer
from ..adapter.recent import Recent
from ..adapter.training import adopt, save_adopted
from ..adapter.ui import Progress

REMEMBERED = 1000
"""Prompts whose texts are kept for the log, where it is to hold them; the oldest go first."""

REFUSED_EVENT = "embedding_sanitizer_refused"
"""Under which web/ hears of a refusal."""


class Found(NamedTuple):
    """The sanitizer of a CLIP that something was encoded with."""

    sanitizer: LoadedSanitizer
    clip: Any


class Host:
    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._texts: Recent[str, tuple[str, ...]] = Recent(REMEMBERED)

    @property
    def state(self) -> State:
        """As the setting stands now."""
        return self._watch.state()

    @property
    def source(self) -> str:
        return self._watch.source

    def setting(self) -> Setting | None:
        """None where nothing is guarded. Raises SanitizerError where every prompt is refused."""
        state = self.state
        if state.setting is None and state.error:
            raise SanitizerError(f"Guard: {state.error}")
        return state.setting

    def fingerprint(self) -> str:
        """Another one whenever the setting or a sanitizer's file has changed, for ComfyUI's cache."""
        files = [(name, folders.resolve(name).stat().st_mtime_ns) for name in folders.names()]
        return f"{self.state.version} {files}"

    def find(self, clip: Any, setting: Setting, progress: Progress) -> Found:
        """The sanitizer of a CLIP. Raises SanitizerError where there is none that may be used."""
        encoder, among = ComfyTextEncoder(clip), setting.sanitizers or None
        wanted = setting.concepts or None
        path = folders.find(encoder.fingerprint, wanted, among)
        if path is None and among is None:
            relative = folders.akin(encoder.fingerprint, wanted)
            adoption = None if relative is None else adopt(encoder, relative, progress)
            if relative is not None and adoption is not None and adoption.kept:
                path = save_adopted(adoption, relative)
        if path is None:
            which = f"among {', '.join(among)}" if among else "in models/sanitizers"
            knows = f" that knows {', '.join(wanted)}" if wanted else ""
            raise SanitizerError(
                f"Guard: no sanitizer of this text encoder ({encoder.fingerprint}){knows} {which}. The host makes one "
                "by running Load Sanitizer with 'auto' and this CLIP once."
            )
        loaded = LoadedSanitizer.load(Path(path), list(setting.concepts) or None)
        for name in dict.fromkeys(name for pair in setting.never for name in pair):
            if name not in loaded.names:
                raise SanitizerError(
                    f"Guard: the setting's 'never' names {name!r}, which {loaded.path.name} does not know. It knows "
                    f"{', '.join(loaded.names)}. The host changes 'never' in {self.source}, or trains another one."
                )
        return Found(loaded, clip)

    def remember(self, prompt_id: str, texts: tuple[str, ...]) -> None:
        """What a prompt says, for its lines in the log."""
        self._texts[prompt_id] = texts

    def texts(self) -> tuple[str, ...]:
        """Those of the prompt that is running."""
        return self._texts.get(_running(), ())

    def log(self, entry: Entry) -> None:
        """Writes a line of the prompt that is running. Raises SanitizerError where it cannot be written."""
        client = getattr(getattr(PromptServer, "instance", None), "client_id", None) or ""
        self.write(Entry(**vars(entry) | {"prompt_id": _running(), "client_id": client}))

    @contextmanager
    def refusing(self) -> Iterator[None]:
        """Logs a SanitizerError as a refusal of the prompt that is running."""
        try:
            yield
        except SanitizerError as error:
            self.log(Entry(REFUSED, reason=str(error)))
            raise

    def write(self, entry: Entry) -> None:
        """As :meth:`log`, a line that says itself which prompt it is of. A refusal is told to the client, too."""
        server = getattr(PromptServer, "instance", None)
        if entry.action == REFUSED and entry.client_id and server is not None:
            server.send_sync(REFUSED_EVENT, {"reason": entry.reason}, entry.client_id)
        log = self.state.log
        if log is not None:
            log.write(entry)


def _running() -> str:
    context = get_executing_context()
    return "" if context is None else context.prompt_id


_HOST: list[Host] = []


def host() -> Host:
    """The server's own, made when it is first asked for."""
    if not _HOST:
        _HOST.append(Host(Watch(Path(folder_paths.get_user_directory()))))
    return _HOST[0]
