"""Finished work on disk, so that a run that was cut off goes on where it was and loses nothing.

Every entry is one file, written whole or not at all: tensors and facts, and the digest of all that they were made of.
It holds figures and vectors, and a prompt only where the user asked for it.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from sanitizer.errors import SanitizerError
from sanitizer.files import check_settings, data_folder, make_folder, sha256_of, whole_file
from sanitizer.tensor_files import DAMAGE, read, write

PACKAGES = ("evaluation", "sanitizer")
ROOT = Path(__file__).resolve().parent.parent
SETTINGS = "settings.json"
KEY = "evaluation"


@dataclass
class Entry:
    """Tensors of N prompts, and facts about them."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    info: dict = field(default_factory=dict)


class Store:
    """A folder of entries for one set of settings. An entry that was made of anything else counts as missing."""

    def __init__(self, folder: Path, settings: dict) -> None:
        """Raises SanitizerError where the folder holds work with other settings, or cannot be made."""
        self.folder = folder
        make_folder(folder)
        # As JSON gives them back: tuples are lists there.
        settings = json.loads(json.dumps(settings, sort_keys=True))
        path = folder / SETTINGS
        if path.exists():
            check_settings(path, settings)
        else:
            with whole_file(path) as file:
                file.write(json.dumps(settings, indent=1, sort_keys=True).encode())
        self.base = text_digest([json.dumps(settings, sort_keys=True), code_digest()])

    def has(self, key: tuple[str, ...], made_of: Iterable[str]) -> bool:
        """Whether there is an entry that was made of this. Raises SanitizerError for a damaged file."""
        path = self._path(key)
        return path.exists() and self._read(path)[0]["digest"] == self._digest(key, made_of)

    def load(self, key: tuple[str, ...]) -> Entry:
        values, tensors = self._read(self._path(key), True)
        return Entry(tensors, values["info"])

    def save(self, key: tuple[str, ...], entry: Entry, made_of: Iterable[str]) -> None:
        write(self._path(key), KEY, {"digest": self._digest(key, made_of), "info": entry.info}, entry.tensors)

    def _digest(self, key: tuple[str, ...], made_of: Iterable[str]) -> str:
        return text_digest([self.base, *key, *made_of])

    def _path(self, key: tuple[str, ...]) -> Path:
        return self.folder / (".".join(key).replace("/", "-") + ".safetensors")

    def _read(self, path: Path, whole: bool = False) -> tuple[dict, dict]:
        try:
            values, tensors = read(path, KEY, whole)
            if not {"digest", "info"} <= values.keys():
                raise ValueError("no entry of a run")
            return values, tensors
        except DAMAGE as error:
            raise SanitizerError(f"{path}: damaged ({error}). Delete it and run again.") from error


def text_digest(texts: Iterable[str]) -> str:
    """Of texts in their order."""
    digest = hashlib.sha256()
    for text in texts:
        data = text.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()[:16]


def file_digest(path: Path) -> str:
    """Of a file's content. Raises SanitizerError for one that cannot be read."""
    return sha256_of(path)[:16]


def tree_digest(*folders: Path) -> str:
    """Of the names and contents of all files in the folders and in their sub-folders, but for Python's own caches."""
    found = []
    for folder in folders:
        files = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
        found += [(path.relative_to(folder).as_posix(), file_digest(path)) for path in sorted(files)]
        found.append(("", ""))
    return text_digest(part for pair in found for part in pair)


def code_digest() -> str:
    """Of all that decides what a run finds, but for weights, settings and prompts: both packages with the data files
    in them, and the concept files."""
    return tree_digest(*(ROOT / name for name in PACKAGES), data_folder("concepts"))
