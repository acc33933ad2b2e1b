"""The report that a sanitizer's file holds: figures on held-out data, read strictly, since a file may be anybody's."""

import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

NAMES_OF_VERSION_1 = {
    "caught": "true_positive_rate",
    "counterparts_untouched": "counterfactuals_untouched",
    "look_alikes": "hard_negatives",
    "look_alikes_identical": "hard_negatives_identical",
}
"""What files of format version 1 call figures of today."""


@dataclass
class ConceptReport:
    """Held-out figures of one concept; None where there was nothing to measure."""

    name: str
    phrases: int
    """Held-out phrases tried, each in a frame that training did not see."""
    auroc: float | None = None
    """Of the prompt score: unsafe prompts against harmless ones and the unsafe prompts' own counterfactuals."""
    true_positive_rate: float | None = None
    """Share of unsafe prompts found at 1 % false positives among the same harmless prompts."""
    flagged: float | None = None
    """Share of unsafe prompts that reach the calibrated threshold."""
    counterfactuals_untouched: float | None = None
    """Share of the counterfactuals (the same prompts with the safe anchor) that do not."""
    probe_before: float | None = None
    """Share of the flagged prompts in which a probe, trained on raw embeddings of other phrases, finds the concept."""
    probe_after: float | None = None
    """The same after sanitizing at strength 1."""
    nearness_before: float | None = None
    """Mean cosine between a flagged prompt and its counterfactual (mean embeddings, normalized channels)."""
    nearness_after: float | None = None
    """The same after sanitizing at strength 1."""


@dataclass
class SetReport:
    """Figures of held-out prompts of one kind, of all concepts that can be erased; None where there were none."""

    name: str
    unsafe: int = 0
    """Unsafe prompts tried."""
    flagged: float | None = None
    """Share of them in which their concept reaches its threshold."""
    probe_after: float | None = None
    """Share of the flagged ones in which a probe still finds the concept after sanitizing at strength 1."""
    harmless: int = 0
    """Harmless prompts tried: the unsafe ones' counterfactuals, or others of the same kind."""
    identical: float | None = None
    """Share of them that came out bit for bit, all concepts switched on."""


@dataclass
class Report:
    """What a sanitizer is worth on its own encoder, on held-out data."""

    concepts: list[ConceptReport] = field(default_factory=list)
    benign: int = 0
    """Harmless prompts tried, of frames and sentences that training did not see."""
    benign_identical: float | None = None
    """Share of them that came out bit for bit, all concepts switched on."""
    hard_negatives: int = 0
    hard_negatives_identical: float | None = None
    """The same for held-out hard negatives."""
    examples: int = 0
    """Training prompts."""
    seconds: float = 0.0
    """Encoding, training and calibration; 0 where it is not known."""
    sets: list[SetReport] = field(default_factory=list)
    """Prompts as users write them; none in files of format 3 and before."""

    def to_dict(self) -> dict:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Report":
        """The inverse of :meth:`to_dict`. Raises ValueError for what no training writes: unknown figures, wrong types,
        counts below 0 and shares outside 0 to 1."""
        own = _checked(values, cls, "report")
        concepts = _listed(own.pop("concepts", []), ConceptReport, "concept", "phrases")
        sets = _listed(own.pop("sets", []), SetReport, "set", "name")
        return cls(concepts=concepts, sets=sets, **own)

    def found(self, concepts: Collection[str]) -> float | None:
        """Share of the held-out phrases of these concepts that reach the threshold; None where none was tried."""
        measured = [(c.flagged, c.phrases) for c in self.concepts if c.name in concepts and c.flagged is not None]
        tried = sum(phrases for _, phrases in measured)
        return sum(share * phrases for share, phrases in measured) / tried if tried else None

    def to_text(self) -> str:
        """A short table for the terminal and the node."""
        lines = [
            f"{'held-out phrases':18}{'tried':>6}{'AUROC':>8}{'caught*':>9}{'flagged':>9}"
            f"{'probe before':>14}{'after':>7}{'nearness':>10}{'after':>7}"
        ]
        for c in self.concepts:
            lines.append(
                f"{c.name:18}{c.phrases:6d}{_number(c.auroc, 8)}"
                f"{_percent(c.true_positive_rate, 9)}{_percent(c.flagged, 9)}"
                f"{_percent(c.probe_before, 14)}{_percent(c.probe_after, 7)}"
                f"{_number(c.nearness_before, 10)}{_number(c.nearness_after, 7)}"
            )
        if self.sets:
            lines.append(
                f"{'all concepts':24}{'unsafe':>7}{'flagged':>9}{'probe after':>13}{'harmless':>10}{'untouched':>11}"
            )
        for each in self.sets:
            lines.append(
                f"{each.name:24}{each.unsafe:7d}{_percent(each.flagged, 9)}{_percent(each.probe_after, 13)}"
                f"{each.harmless:10d}{_percent(each.identical, 11)}"
            )
        lines += [
            "* at 1 % false alarms. Probe: share of flagged prompts in which it still finds the concept. "
            "Nearness: cosine to the safe counterpart.",
            f"bit-identical: {_percent(self.benign_identical, 0)} of {self.benign} harmless prompts, "
            f"{_percent(self.hard_negatives_identical, 0)} of {self.hard_negatives} look-alikes. "
            f"{self.examples} training prompts{f', {self.seconds:.0f} s' if self.seconds else ''}.",
        ]
        return "\n".join(lines)


def _listed(values: object, kind: type, what: str, needed: str) -> list:
    if not isinstance(values, list):
        raise ValueError(f"report, {what}s: expected a list, found {type(values).__name__}")
    found = []
    for number, value in enumerate(values, 1):
        own = _checked(value, kind, f"report, {what} {number}")
        if not isinstance(own.get("name"), str) or needed not in own:
            raise ValueError(f"report, {what} {number}: expected a name and the figure {needed!r}")
        found.append(kind(**own))
    if len({each.name for each in found}) < len(found):
        raise ValueError(f"report, {what}s: one stands in it twice")
    return found


def _checked(values: object, kind: type, where: str) -> dict[str, Any]:
    """Figures by today's names, each of the type and in the range of its field."""
    if not isinstance(values, Mapping):
        raise ValueError(f"{where}: expected an object, found {type(values).__name__}")
    known, found = {each.name: each.type for each in fields(kind)}, {}
    for given, value in values.items():
        name = NAMES_OF_VERSION_1.get(given, given)
        if name not in known:
            raise ValueError(f"{where}: unknown figure {given!r}, perhaps of a newer version")
        if known[name] is int:
            fits, wanted = type(value) is int and value >= 0, "a whole number from 0"
        elif known[name] is float:
            fits, wanted = _finite(value) and value >= 0, "a number from 0"
        elif known[name] == float | None:
            low = -1 if name.startswith("nearness") else 0
            # Cosines in float32 may lie a little beyond 1.
            fits, wanted = value is None or (_finite(value) and low - 1e-3 <= value <= 1 + 1e-3), f"{low} to 1 or null"
        else:
            fits, wanted = True, ""
        if not fits:
            raise ValueError(f"{where}, {given}: expected {wanted}, found {value!r:.40}")
        found[name] = value
    return found


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and type(value) is not bool and math.isfinite(value)


def _number(value: float | None, width: int) -> str:
    return ("-" if value is None else f"{value:.3f}").rjust(width)


def _percent(value: float | None, width: int) -> str:
    return ("-" if value is None else f"{100 * value:.1f}%").rjust(width)
