"""The parts of a run on disk, so that an interrupted one goes on where it was and loses nothing.

A part is one .safetensors file, written whole or not at all. It holds figures and vectors, never a prompt.
"""

import json
from pathlib import Path

import safetensors
from safetensors.torch import save

from sanitizer.errors import SanitizerError
from sanitizer.files import whole_file

from .measuring import Part

SETTINGS = "settings.json"
KEY = "evaluation"


class Store:
    """A folder of parts for one set of settings."""

    def __init__(self, folder: Path, settings: dict) -> None:
        """Raises SanitizerError where the folder holds parts of a run with other settings, or cannot be made."""
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SanitizerError(f"{folder}: the folder cannot be made ({error.strerror or error}).") from error
        path = folder / SETTINGS
        if path.exists():
            self._compare(path, settings)
        else:
            with whole_file(path) as file:
                file.write(json.dumps(settings, indent=1, sort_keys=True).encode())

    def _compare(self, path: Path, settings: dict) -> None:
        try:
            known = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise SanitizerError(f"{path}: cannot be read ({error}). Choose another --output.") from error
        for name in sorted(known.keys() | settings.keys()):
            if known.get(name) != settings.get(name):
                raise SanitizerError(
                    f"{path.parent}: holds a run with other settings ({name}: {known.get(name)!r} there, "
                    f"{settings.get(name)!r} now). Repeat that run's settings, or choose another --output."
                )

    def _path(self, key: tuple[str, ...]) -> Path:
        return self.folder / (".".join(key) + ".safetensors")

    def digest(self, key: tuple[str, ...]) -> str | None:
        """What the part was made of, None where there is none. Raises SanitizerError for a damaged file."""
        path = self._path(key)
        return self._open(path)[0]["digest"] if path.exists() else None

    def load(self, key: tuple[str, ...]) -> Part:
        info, tensors = self._open(self._path(key), True)
        return Part(tensors, info["info"])

    def save(self, key: tuple[str, ...], part: Part, digest: str) -> None:
        metadata = {KEY: json.dumps({"digest": digest, "info": part.info}, sort_keys=True)}
        with whole_file(self._path(key)) as file:
            file.write(save({name: value.contiguous() for name, value in part.tensors.items()}, metadata))

    def _open(self, path: Path, whole: bool = False) -> tuple[dict, dict]:
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()} if whole else {}  # noqa: SIM118
                return json.loads(file.metadata()[KEY]), tensors
        except (OSError, safetensors.SafetensorError, TypeError, KeyError, ValueError) as error:
            raise SanitizerError(f"{path}: a damaged part ({error}). Delete it and run again.") from error
