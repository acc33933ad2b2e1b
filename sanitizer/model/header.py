"""What a sanitizer's file says beside its configuration and tensors."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import NamedTuple

from ..encoders.base import Fingerprint
from ..prompts.concepts import phrase_problem
from .report import Report

KEY = "anchors"
BASE = "base"
TRAINED_ON = "concepts"
"""Key of `training`: concept -> digest of the word list that it was trained on, see
:func:`.prompts.concepts.digest`; files from before it lack it."""
LANGUAGES = "languages"
"""Key of `training`: code of each language -> how well the encoder tells its unsafe phrases from harmless ones."""
ADOPTED = "adopted"
"""Key of `training`: of an adopted sanitizer (:mod:`..training.adopt`), the encoder that it was trained on (`from`) and
the share of unseen phrases that it found there (`found`)."""
DEEPEST = 16
"""Lists and objects inside each other in a header; a training writes five."""
MOST_REPLACEMENTS = 256
"""Replacement pairs of a concept that a file holds."""


class Base(NamedTuple):
    """The file that a small one, which holds statistics alone, has everything else from."""

    name: str
    """Of the file, without a folder."""
    sha256: str
    """Of its bytes."""


class Replacement(NamedTuple):
    """A phrase at fault and the safe words for it."""

    target: str
    anchor: str
    """Its own safe counterpart."""
    canonical: str
    """The safe words of its whole group."""


@dataclass(frozen=True)
class Header:
    """Made by :func:`sanitizer.fit`, checked on loading."""

    encoder: Fingerprint
    """The encoder that the sanitizer was trained on; it serves no other."""
    training: Mapping[str, object] = field(default_factory=dict)
    """`examples`, `steps`, `seed`, and `config`, the whole :class:`.training.config.TrainingConfig`."""
    report: Mapping[str, object] = field(default_factory=dict)
    """Held-out figures, a :class:`.training.report.Report` as a dictionary."""
    licence: str | Mapping[str, str] = ""
    """Of the weights."""
    replacements: Mapping[str, Sequence[Replacement]] = field(default_factory=dict)
    """Concept -> its pairs, of concepts that differ from the files in concepts/ or have none there."""
    base: Base | None = None
    """Of a file that holds the encoder's statistics alone."""

    def to_dict(self) -> dict:
        """For JSON, where the replacements are called "anchors"."""
        values = asdict(self)
        replacements, base = values.pop("replacements"), values.pop("base")
        values |= {BASE: list(base)} if base else {}
        return values | (
            {KEY: {name: [list(pair) for pair in own] for name, own in replacements.items()}} if replacements else {}
        )

    @classmethod
    def from_dict(cls, values: Mapping, concepts: Iterable[str]) -> "Header":
        """The inverse of :meth:`to_dict`; keys that are not the header's are left out. concepts: those that can be
        erased. Raises ValueError, KeyError or TypeError for anything that :func:`sanitizer.fit` does not write."""
        for name, kinds in (("training", dict), ("report", dict), ("licence", (str, dict))):
            if not isinstance(values[name], kinds):
                raise ValueError(f"{name}: found {type(values[name]).__name__}")
        Report.from_dict(values["report"])
        _check_training(values["training"])
        if isinstance(values["licence"], dict) and not all(isinstance(v, str) for v in values["licence"].values()):
            raise ValueError("licence: expected texts")
        return cls(
            encoder=_fingerprint(values["encoder"]),
            training=values["training"],
            report=values["report"],
            licence=values["licence"],
            replacements=_replacements(values.get(KEY, {}), set(concepts)),
            base=_base(values[BASE]) if BASE in values else None,
        )


def check_plain(value: object) -> None:
    """Raises ValueError for what JSON holds and no training writes: NaN and infinity, halves of surrogate pairs, and
    lists inside lists without end."""
    left: list[tuple[object, tuple[str, ...]]] = [(value, ())]
    while left:
        one, keys = left.pop()
        where = f"{'.'.join(keys) or 'header':.200}"
        if isinstance(one, float) and not math.isfinite(one):
            raise ValueError(f"{where}: found the number {one}")
        if isinstance(one, str) and any("\ud800" <= char <= "\udfff" for char in one):
            raise ValueError(f"{where}: found half a surrogate pair in {one!r:.80}")
        if isinstance(one, dict | list):
            if len(keys) == DEEPEST:
                raise ValueError(f"{where}: found more than {DEEPEST} lists and objects inside each other")
            items = one.items() if isinstance(one, dict) else enumerate(one)
            left += [(item, (*keys, str(key))) for key, item in items]
            left += [(key, keys) for key in one] if isinstance(one, dict) else []


def _fingerprint(values: object) -> Fingerprint:
    if not isinstance(values, dict):
        raise ValueError(f"encoder: expected an object, found {type(values).__name__}")
    for name in ("architecture", "weights"):
        if not isinstance(values[name], str):
            raise ValueError(f"encoder, {name}: expected a text, found {values[name]!r:.80}")
    for name in ("width", "pooled_width"):
        if type(values[name]) is not int:
            raise ValueError(f"encoder, {name}: expected a whole number, found {values[name]!r:.80}")
    return Fingerprint.from_dict(values)


def _base(values: object) -> Base:
    name, digest = values if isinstance(values, list) and len(values) == 2 else (None, None)
    # A plain name: what a file says must not lead out of the folders.
    if not (
        isinstance(name, str)
        and isinstance(digest, str)
        and re.fullmatch(r"\w[\w .+-]*\.safetensors", name)
        and re.fullmatch("[0-9a-f]{64}", digest)
    ):
        raise ValueError(f"{BASE}: expected the name of a .safetensors file and its sha256, found {values!r:.120}")
    return Base(name, digest)


def _check_training(values: dict) -> None:
    """What is read again has its type; everything else is for people."""
    for name in ("examples", "steps", "seed"):
        if type(values.get(name, 0)) is not int:
            raise ValueError(f"training, {name}: expected a whole number, found {values[name]!r:.80}")
    if not isinstance(values.get("config", {}), dict):
        raise ValueError(f"training, config: expected an object, found {type(values['config']).__name__}")
    origin = values.get(ADOPTED, {"found": 0.0})
    found = origin.get("found") if isinstance(origin, dict) else None
    if not (isinstance(found, int | float) and 0 <= found <= 1):
        raise ValueError(f"training, {ADOPTED}: expected an object with the share found, found {origin!r:.80}")
    digests = values.get(TRAINED_ON, {})
    if not isinstance(digests, dict) or not all(isinstance(value, str) for value in digests.values()):
        raise ValueError(f"training, {TRAINED_ON}: expected a text for each concept")


def _replacements(values: object, names: set[str]) -> dict[str, list[Replacement]]:
    if not isinstance(values, dict):
        raise ValueError(f"{KEY}: expected an object, found {type(values).__name__}")
    found = {}
    for name, pairs in values.items():
        if name not in names:
            raise ValueError(f"{KEY}: {name!r} is none of its concepts")
        if not isinstance(pairs, list) or not 1 <= len(pairs) <= MOST_REPLACEMENTS:
            raise ValueError(f"{KEY} of {name!r}: expected a list of 1 to {MOST_REPLACEMENTS} pairs")
        for pair in pairs:
            if not isinstance(pair, list) or len(pair) != 3 or any(map(phrase_problem, pair)):
                raise ValueError(f"{KEY} of {name!r}: expected target, anchor and canonical anchor, found {pair!r:.80}")
        found[name] = [Replacement(*pair) for pair in pairs]
    return found
