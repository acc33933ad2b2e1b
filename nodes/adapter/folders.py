"""The model folder `sanitizers`: where sanitizer files are looked for and saved."""

import re
import shutil
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

import folder_paths

from ...sanitizer.encoders.base import Fingerprint
from ...sanitizer.errors import SanitizerError
from ...sanitizer.model.artifact import WEIGHTS_FOLDER, best

KIND = "sanitizers"
SUFFIX = ".safetensors"
SHIPPED = WEIGHTS_FOLDER
ADOPTED = "adopted"
"""Folder inside the model folder for what `auto` has adopted: small files, one for each strength of a LoRA."""
MOST_ADOPTED = 200
"""Files that it holds at most; the oldest go."""

UNFINISHED = "embedding_sanitizer_training"


def register() -> None:
    """Add `models/sanitizers` and the pack's `weights`. Paths of extra_model_paths.yaml are there already."""
    folder_paths.add_model_folder_path(KIND, str(Path(folder_paths.models_dir) / KIND))
    folder_paths.add_model_folder_path(KIND, str(SHIPPED))
    # add_model_folder_path leaves the set of extensions empty, which would list READMEs and pickles too.
    paths, _ = folder_paths.folder_names_and_paths[KIND]
    folder_paths.folder_names_and_paths[KIND] = (paths, {SUFFIX})


def names() -> list[str]:
    """Names of all sanitizer files to choose from, sorted: without the adopted ones, which `auto` finds."""
    return [name for name in _names() if Path(name).parts[0] != ADOPTED]


def places() -> Iterator[Path]:
    """The folders that sanitizer files lie in; they are not looked for before the first is asked for."""
    yield from dict.fromkeys(path.parent for path in _paths())


def resolve(name: str) -> Path:
    """Path of a file in the model folder. Raises SanitizerError for a name that is not one or leads out of it."""
    if ".." in name or name.startswith(("/", "\\")) or ":" in name or not name.endswith(SUFFIX):
        raise SanitizerError(
            f"Load Sanitizer: {name!r} is not the name of a {SUFFIX} file inside the model folder {KIND!r}. "
            "Choose one from the list."
        )
    path = folder_paths.get_full_path(KIND, name)
    if path is None:
        raise SanitizerError(
            f"Load Sanitizer: no file {name!r} in {', '.join(folder_paths.get_folder_paths(KIND))}. "
            "Choose another one, or 'auto' to train one for the connected CLIP."
        )
    return Path(path)


def save_path(stem: str) -> Path:
    """Where a trained sanitizer goes: the first model folder that is not part of the pack.

    Raises SanitizerError for a stem that is more than a plain file name.
    """
    if not re.fullmatch(r"\w[\w .+-]*", stem) or ".." in stem:
        raise SanitizerError(
            f"Train Sanitizer: {stem!r} cannot be a file name. Use letters, digits, spaces, points, '-' and '_'."
        )
    own = [Path(path) for path in folder_paths.get_folder_paths(KIND) if Path(path) != SHIPPED]
    return own[0] / f"{stem}{SUFFIX}"


def adopted_path(base: Path, fingerprint: Fingerprint) -> Path:
    """Where the sanitizer of that file goes when it is adopted for another encoder; makes room for it."""
    path = save_path(f"{base.stem}-{fingerprint.weights[:16]}")
    folder = path.parent / ADOPTED
    oldest = sorted(folder.glob(f"*{SUFFIX}"), key=lambda file: file.stat().st_mtime)
    for file in oldest[: max(0, len(oldest) - MOST_ADOPTED + 1)]:
        file.unlink(missing_ok=True)
    return folder / path.name


def unfinished(fingerprint: Fingerprint) -> Path:
    """Where a training's encoded prompts lie until it is over: in ComfyUI's temporary folder, which ComfyUI empties
    when it starts. Those of a training of another CLIP are deleted, since one may hold gigabytes."""
    place = Path(folder_paths.get_temp_directory()) / UNFINISHED
    own = place / fingerprint.weights[:16]
    for other in place.glob("*"):
        if other != own:
            shutil.rmtree(other, ignore_errors=True)
    return own


def find(fingerprint: Fingerprint, concepts: Iterable[str] | None, among: Collection[str] | None = None) -> Path | None:
    """The best-measured file that was trained on that encoder, or adopted for it, and knows all these concepts, see
    :func:`best`. among: the names that may be taken, None for all."""
    return best(fingerprint, _paths(among), concepts, list(places()))


def akin(fingerprint: Fingerprint, concepts: Iterable[str] | None) -> Path | None:
    """The best-measured file of another encoder of the same kind and widths that knows all these concepts, or None."""
    return best(fingerprint, _paths(), concepts, akin=True)


def _names() -> list[str]:
    return sorted(folder_paths.get_filename_list(KIND))


def _paths(among: Collection[str] | None = None) -> list[Path]:
    found = (folder_paths.get_full_path(KIND, name) for name in _names() if among is None or name in among)
    return [Path(path) for path in found if path]


def parse_concepts(text: str) -> list[str] | None:
    """ "nudity, violence" -> ["nudity", "violence"]; "all" or nothing -> None."""
    chosen = [name for name in re.split(r"[,\n;]+\s*", text.strip()) if name.strip()]
    chosen = [name.strip().lower().replace(" ", "_").replace("-", "_") for name in chosen]
    return None if not chosen or chosen == ["all"] else chosen
