"""What a sanitizer's file says beside its configuration and tensors."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import NamedTuple

from ..encoders.base import Fingerprint
from ..prompts.concepts import phrase_problem

KEY = "anchors"
MOST_REPLACEMENTS = 256
"""Replacement pairs of a concept that a file holds."""


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

    def to_dict(self) -> dict:
        """For JSON, where the replacements are called "anchors"."""
        values = asdict(self)
        replacements = values.pop("replacements")
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
        return cls(
            encoder=Fingerprint.from_dict(values["encoder"]),
            training=values["training"],
            report=values["report"],
            licence=values["licence"],
            replacements=_replacements(values.get(KEY, {}), set(concepts)),
        )


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
