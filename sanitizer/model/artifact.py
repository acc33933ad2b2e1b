"""The sanitizer's file: one .safetensors with the tensors and, in its header, everything else as JSON.

Safetensors cannot run code on loading. Whatever is wrong with a file is one SanitizerError, and a module is handed out
only when all of it was checked.
"""

import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import torch
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from ..encoders import Fingerprint, TextEncoder, load_encoder
from ..errors import SanitizerError
from ..files import data_folder, make_folder, sha256_of, whole_file
from ..prompts.concepts import available
from .config import SanitizerConfig
from .header import Base, Header, check_plain
from .quality import judge, own_lists
from .sanitizer import EmbeddingSanitizer

FORMAT = "embedding-sanitizer"
FORMAT_VERSION = 5
"""The newest that is read. Of files that hold everything it is WHOLE_VERSION, which older releases read, too."""
WHOLE_VERSION = 4
STATISTICS = (
    "mean", "std", "pooled_mean", "pooled_std", "constant", "provenance_mean", "provenance_variance",
    "provenance_bounds",
)  # fmt: skip
"""Tensors that a file with a base holds, where the sanitizer has them."""
WEIGHTS_FOLDER = data_folder("weights")
MOST_HEADER_BYTES = 2**24
"""Of a file's header; 64 concepts with all their replacement pairs take less."""
LARGEST = 1e9
"""Of the numbers in a file's tensors. None that is trained comes near, and none below makes the networks overflow."""
UNSOUND = f"NaN, infinity or a number beyond {LARGEST:g}"
REQUIRED = ("config", "encoder", "training", "report", "licence")
VERSION_1 = {
    "heads": 4,
    "concept_gain": 1.2,
    "residual_gain": 0.35,
    "gate_floor": 0.8,
    "gate_range": 2.0,
    "clip": 12.0,
    "constant_tolerance": 0.02,
    "ensemble_weights": (0.55, 0.35, 0.1),
    "rewrite": {
        "rounds": 3,
        "word_scores": (0.5, 0.9, 0.97),
        "margin": -6.0,
        "slope": 0.1,
        "rest": 0.01,
        "finish": 0.6,
    },
}
"""The constants that files of version 1 were made with, which do not hold them."""


class Info(NamedTuple):
    """A file without its tensors."""

    version: int
    config: SanitizerConfig
    header: Header

    @property
    def erasable(self) -> tuple[str, ...]:
        """Names of the concepts that can be erased."""
        return tuple(spec.name for spec in self.config.concepts if not spec.context)

    def to_dict(self) -> dict:
        """For JSON: config, encoder, training, report, licence, format_version, and anchors where it holds some."""
        return {**self.header.to_dict(), "config": self.config.to_dict(), "format_version": self.version}


def save(sanitizer: EmbeddingSanitizer, path: str | Path, base: str | Path | None = None) -> None:
    """Write a sanitizer, whole or not at all: a temporary file beside it, then a rename.

    base: the file of a sanitizer from which this one differs in the encoder's statistics alone, see
    :mod:`..training.adopt`; the new file holds only these, and is read as long as the other is there unchanged.
    Raises SanitizerError for a name that does not end in .safetensors, a sanitizer without a header or with one that
    could not be read again, a value that is not finite and a folder that cannot be written.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise SanitizerError(f"{path}: expected a name that ends in .safetensors.")
    if sanitizer.header is None:
        raise SanitizerError(f"{path}: not saved, the sanitizer names no encoder. Train it with fit().")
    said, version = sanitizer.header, WHOLE_VERSION
    tensors = {name: value.detach().cpu().contiguous() for name, value in sanitizer.state_dict().items()}
    if base is not None:
        said, version = replace(said, base=Base(Path(base).name, sha256_of(Path(base)))), FORMAT_VERSION
        tensors = {name: value for name, value in tensors.items() if name in STATISTICS}
    header = Info(version, sanitizer.config, said).to_dict()
    for name, value in tensors.items():
        if not _is_sound(value):
            raise SanitizerError(f"{path}: not saved, {name} holds {UNSOUND}. Train again with another seed.")
    # One entry (safetensors writes several in any order), sorted keys, no time stamp: the same training gives the same
    # bytes.
    metadata = {FORMAT: json.dumps(header, sort_keys=True)}
    try:
        _info(path, metadata)
    except SanitizerError as error:
        raise SanitizerError(f"Not saved, the file could not be read again: {error}") from error
    make_folder(path.parent, path)
    with whole_file(path) as file:
        file.write(to_bytes(tensors, metadata))


def read_info(path: str | Path) -> Info:
    """What a file says of itself, checked, without its tensors. Raises SanitizerError."""
    path = Path(path)
    with _open(path) as file:
        return _info(path, file.metadata())


def load(
    path: str | Path,
    operations: Any = nn,
    device: str | torch.device = "cpu",
    folders: Iterable[str | Path] = (WEIGHTS_FOLDER,),
) -> EmbeddingSanitizer:
    """Read a sanitizer. `operations` supplies Linear and LayerNorm, see :class:`EmbeddingSanitizer`. folders: where the
    base of a file is looked for that has one.

    Raises SanitizerError, with one line, for a file that is missing, truncated, corrupt, foreign, of a newer version,
    pickled, whose tensors do not fit its own header or hold NaN, or whose base is gone.
    """
    path = Path(path)
    info, tensors = _read(path)
    if info.header.base is not None:
        base = find_base(info, folders)
        if base is None:
            raise SanitizerError(
                f"{path}: holds only what differs from {info.header.base.name}, which is not there any more or has "
                "changed. Expected it in the same folders. Bring it back, or delete this file and adopt or train anew."
            )
        other, rest = _read(base)
        if other.config != info.config or other.header.base is not None:
            raise SanitizerError(f"{path}: damaged, it does not fit its base {base}. Train or fetch it again.")
        tensors = rest | tensors
    sanitizer = EmbeddingSanitizer(info.config, info.header, operations)
    sanitizer.load_state_dict(_upgraded_tensors(tensors, info.version))
    return sanitizer.to(device).eval().requires_grad_(False)


def find_base(info: Info, folders: Iterable[str | Path]) -> Path | None:
    """The file in one of the folders that a file has most from, unchanged; None where there is none."""
    base = info.header.base
    if base is None:
        return None
    paths = (Path(folder) / base.name for folder in folders)
    return next((path for path in paths if path.is_file() and sha256_of(path) == base.sha256), None)


def _read(path: Path) -> tuple[Info, dict[str, Tensor]]:
    """A file, checked as far as it goes without its base."""
    with _open(path) as file:
        info = _info(path, file.metadata())
        found = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        # Built without memory first: a forged header must not make us allocate what it asks for.
        with torch.device("meta"):
            expected = _as_saved(EmbeddingSanitizer(info.config).state_dict(), info.version)
        if info.header.base is not None:
            expected = {name: value for name, value in expected.items() if name in STATISTICS}
        for name in sorted(expected.keys() | found.keys()):
            if name not in found or name not in expected:
                what = "lacks the tensor" if name not in found else "holds an unknown tensor"
                raise SanitizerError(f"{path}: damaged, it {what} {name}. Train or fetch it again.")
            shape, wanted = tuple(found[name].get_shape()), tuple(expected[name].shape)
            if shape != wanted or found[name].get_dtype() != "F32":
                raise SanitizerError(
                    f"{path}: damaged, {name} is {found[name].get_dtype()} {shape}, expected F32 {wanted}. "
                    "Train or fetch it again."
                )
        tensors = {name: file.get_tensor(name) for name in expected}
    for name, value in tensors.items():
        if not _is_sound(value):
            raise SanitizerError(f"{path}: damaged, {name} holds {UNSOUND}. Train or fetch it again.")
    return info, tensors


def find(
    fingerprint: Fingerprint, folders: Iterable[str | Path] = (WEIGHTS_FOLDER,), concepts: Iterable[str] | None = None
) -> Path | None:
    """:func:`best` of the files in the folders."""
    folders = list(folders)
    paths = [path for folder in folders for path in Path(folder).glob("*.safetensors")]
    return best(fingerprint, paths, concepts, folders)


def best(
    fingerprint: Fingerprint,
    paths: Iterable[Path],
    concepts: Iterable[str] | None = None,
    folders: Iterable[str | Path] = (WEIGHTS_FOLDER,),
    akin: bool = False,
) -> Path | None:
    """The best-measured of the files that were trained on the encoder with this fingerprint and know all these
    concepts; None where there is none. folders: where bases are looked for; a file whose base is gone does not count.
    akin: those trained on another encoder of the same kind and widths, and on no concepts but the pack's, which can be
    tried on this one (:mod:`..training.adopt`).

    concepts None: what the pack's own concepts cover most of. A file whose concept has the name of one of the pack's,
    but was learned from another word list, does not count as knowing it. Files without figures come last; among equals
    the newest wins, then the last by name. A file that cannot be read is named in the log and passed over.
    """
    wanted = None if concepts is None else set(concepts)
    ranked = []
    for path in paths:
        try:
            info, modified = read_info(path), path.stat().st_mtime
        except (SanitizerError, OSError) as error:
            logging.warning("Embedding Sanitizer: skipped a file. %s", error)
            continue
        base = info.header.base
        if akin:
            # What was adopted itself has drifted as far as it may.
            if base is not None or not _akin(info.header.encoder, fingerprint):
                continue
            if any(spec.name not in available() for spec in info.config.concepts):
                continue
        elif info.header.encoder != fingerprint or (base is not None and find_base(info, folders) is None):
            continue
        erasable = set(info.erasable)
        foreign = own_lists(info.header) & erasable
        if wanted is None:
            if foreign:
                continue
        elif not wanted <= erasable - foreign:
            continue
        spoken_for = wanted or erasable & set(available()) or erasable
        rank = judge(info.header, spoken_for).rank
        ranked.append((len(spoken_for & set(available())), *rank, modified, path.name, path))
    return max(ranked, default=(None,))[-1]


def _akin(one: Fingerprint, other: Fingerprint) -> bool:
    """Whether two encoders differ in their weights, or in the layer that they put out, and in nothing else."""
    kinds = [fingerprint.architecture.split(",")[0] for fingerprint in (one, other)]
    widths = [(fingerprint.width, fingerprint.pooled_width) for fingerprint in (one, other)]
    return one != other and kinds[0] == kinds[1] and widths[0] == widths[1]


def load_pair(
    encoder_name: str,
    sanitizer_name: str = "auto",
    device: str = "cpu",
    folders: Iterable[str | Path] = (WEIGHTS_FOLDER,),
    program: str = "python -m sanitizer",
    concepts: Sequence[str] | None = None,
) -> tuple[TextEncoder, EmbeddingSanitizer, Path]:
    """The encoder, the sanitizer that fits it, and the sanitizer's file; "auto" searches the folders, see :func:`best`.

    program: what the command line is called. What the sanitizer is worth is not judged here. Raises SanitizerError
    where there is none, or where the file was trained on another encoder.
    """
    explicit = None if sanitizer_name == "auto" else Path(sanitizer_name)
    if explicit is not None:
        read_info(explicit)  # refused before the encoder is loaded, which may take minutes
    encoder = load_encoder(encoder_name, device=device)
    path = explicit or find(encoder.fingerprint, folders, concepts)
    if path is None:
        places = ", ".join(str(folder) for folder in folders)
        names = "all" if concepts is None else ",".join(concepts)
        raise SanitizerError(
            f"No sanitizer for the encoder {encoder_name}, {encoder.fingerprint}, and the concepts {names} in "
            f"{places}. Train one: {program} train --encoder {encoder_name} --concepts {names} --output "
            "NAME.safetensors, and give it with --sanitizer NAME.safetensors or put it into that folder."
        )
    sanitizer = load(path, device=device)
    if sanitizer.fingerprint != encoder.fingerprint:
        raise SanitizerError(
            f"{path}: trained on {sanitizer.fingerprint}, but the encoder {encoder_name} is {encoder.fingerprint}. "
            "Choose the encoder it was trained on, another file, or --sanitizer auto."
        )
    return encoder, sanitizer, path


def _is_sound(value: torch.Tensor) -> bool:
    return not value.numel() or bool(value.abs().amax() <= LARGEST)  # False for NaN


def _open(path: Path):
    try:
        if not path.is_file():
            raise SanitizerError(f"{path}: no such file. Expected a sanitizer, a .safetensors file.")
        with path.open("rb") as file:
            start = file.read(8)
        # Before anything of it is read: the file says itself how long its header is.
        if len(start) == 8 and MOST_HEADER_BYTES < int.from_bytes(start, "little") < path.stat().st_size:
            raise SanitizerError(
                f"{path}: damaged or no sanitizer, its header is longer than {MOST_HEADER_BYTES:,} bytes. Train or "
                "fetch it again."
            )
        return safetensors.safe_open(path, framework="pt")
    except OSError as error:
        raise SanitizerError(f"{path}: cannot be read ({error.strerror or error}).") from error
    except safetensors.SafetensorError as error:
        # A zip archive, as torch.save writes, or the opcode that every pickle since protocol 2 begins with.
        if start[:2] == b"PK" or (start[:1] == b"\x80" and start[1:2] <= b"\x05"):
            raise SanitizerError(
                f"{path}: a pickle, which can run code and is never loaded. Expected .safetensors."
            ) from error
        raise SanitizerError(
            f"{path}: truncated or corrupt, no safetensors file ({error}). Train or fetch it again."
        ) from error


def _info(path: Path, metadata: dict | None) -> Info:
    if not metadata or FORMAT not in metadata:
        raise SanitizerError(f"{path}: a safetensors file, but no sanitizer. Choose a file made by Train Sanitizer.")
    try:
        if len(metadata[FORMAT]) > MOST_HEADER_BYTES:
            raise ValueError(f"longer than {MOST_HEADER_BYTES:,} characters")
        values = json.loads(metadata[FORMAT])
        check_plain(values)
        if not isinstance(values, dict):
            raise ValueError(f"expected an object, found {type(values).__name__}")
        version = values["format_version"]
        if type(version) is not int or version < 1:
            raise ValueError(f"format version {version!r:.80}")
        if version > FORMAT_VERSION:
            raise SanitizerError(
                f"{path}: format version {str(version)[:20]}, but this Embedding Sanitizer reads up to "
                f"{FORMAT_VERSION}. Update it."
            )
        missing = [key for key in REQUIRED if key not in values]
        if missing:
            raise ValueError(f"it lacks {', '.join(missing)}")
        config = SanitizerConfig.from_dict(_upgraded_config(values["config"], version))
        config.check()
        header = Header.from_dict(values, [spec.name for spec in config.concepts if not spec.context])
        encoder = header.encoder
        if (encoder.width, encoder.pooled_width) != (config.width, config.pooled_width):
            raise ValueError(f"made for {config.width} channels, pooled {config.pooled_width}; trained on {encoder}")
    except SanitizerError:
        raise
    except KeyError as error:
        raise SanitizerError(f"{path}: damaged header (it lacks {error}). Train or fetch it again.") from error
    except (TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        # One line, of a length that can be read, whatever the file holds.
        said = " ".join(str(error).split())
        raise SanitizerError(f"{path}: damaged header ({said:.300}). Train or fetch it again.") from error
    return Info(version, config, header)


def _upgraded_config(config: object, version: int) -> object:
    """The configuration of an older file as one of today."""
    if not isinstance(config, dict) or version > 2:
        return config
    config = dict(config)
    if version == 1:
        config["constant_embeddings"] = config.pop("constant_rows", 0)
        config |= VERSION_1
    # One vote, and all of a window at once.
    config["vote_weights"] = [config.pop("ensemble_weights")]
    # A context concept also named concepts that the file has not.
    specs = config.get("concepts")
    if isinstance(specs, list) and all(isinstance(spec, dict) for spec in specs):
        names = [spec.get("name") for spec in specs]
        config["concepts"] = [
            spec | {"lowers": {name: value for name, value in lowers.items() if name in names}}
            if isinstance(lowers := spec.get("lowers", {}), dict)
            else spec
            for spec in specs
        ]
    return config


def _as_saved(tensors: dict[str, Tensor], version: int) -> dict[str, Tensor]:
    """Names and shapes of today's tensors as a file of that version has them."""
    if version <= 2:
        mix, bias = tensors.pop("vote_mix"), tensors.pop("vote_bias")
        del tensors["vote_slope"], tensors["token_slope"]
        tensors |= {"prompt_mix": mix[0], "prompt_bias": bias[0]}
    return tensors


def _upgraded_tensors(tensors: dict[str, Tensor], version: int) -> dict[str, Tensor]:
    """The tensors of an older file as those of today."""
    if version <= 2:
        mix, bias = tensors.pop("prompt_mix"), tensors.pop("prompt_bias")
        tensors |= {"vote_mix": mix[None], "vote_bias": bias[None]}
        tensors |= {"vote_slope": torch.zeros_like(bias[None]), "token_slope": torch.zeros_like(bias)}
    return tensors
