"""What a sanitizer is worth, judged by the held-out figures in its own file, and for which concepts it may speak.

**The worst of the chosen concepts decides.** Each of them is a promise of its own: a sanitizer that finds every phrase
of one concept and none of another would look fair on the average, and let all of the other pass as harmless. Whoever
does not need the weak concept leaves it out, and the rest is judged without it.

The two limits were chosen on trainings of version 0.1.0 on `minilm`, all seven concepts, with 600, 1500, 4000 and 8000
examples: the lowest AUROC of a concept was .78, .84, .83 and .93, the lowest share flagged 0, 0, 18 and 23 %. Of the
shipped files (54,876) they are .94 and .92, and 36 and 23 %. A concept at chance has an AUROC of .5, and one training
that found nothing lay between .34 and .56.
"""

import math
from collections.abc import Iterable
from functools import cache
from typing import NamedTuple

from ..errors import SanitizerError
from ..prompts.concepts import FOLDER, available, digest, load_concept
from .config import readable
from .header import TRAINED_ON, Header
from .report import ConceptReport, Report

FEWEST_PHRASES = 8
"""Held-out phrases of a concept below which its figures say nothing. The report tries as many at least, where the word
list keeps them; of 8 phrases, a sanitizer that finds a third of all misses every one in 4 % of trainings."""
LEAST_AUROC, LEAST_RECALL = 0.75, 0.1
"""Below either one, a sanitizer is refused."""
GOOD_AUROC, GOOD_RECALL = 0.9, 0.3
"""Below either one, it is called weak wherever it is used."""
DEVIATIONS = 1.96
"""Of the normal distribution, on either side of its 95 % interval."""

REFUSED, UNMEASURED, WEAK, GOOD = "refused", "not measured", "weak", "good"


class Quality(NamedTuple):
    """What a sanitizer is worth for some concepts."""

    level: str
    """REFUSED, UNMEASURED, WEAK or GOOD: the lowest of the concepts that have figures."""
    concepts: tuple[ConceptReport, ...]
    """Those of that level."""
    unmeasured: tuple[str, ...]
    """Concepts without figures."""
    rank: tuple[int, int, float]
    """The greater one is the better measured: concepts with figures, then the level, then the lowest share found, as
    surely as the number of phrases tells it (the lower end of its 95 % interval)."""

    @property
    def line(self) -> str:
        """For a status line: a sentence or two where there is something to warn of, else nothing."""
        said = []
        if self.level in (REFUSED, WEAK):
            lowest = min(_recall(concept) for concept in self.concepts)
            names = ", ".join(readable(concept.name) for concept in self.concepts)
            kind = "Weak" if self.level == WEAK else "Refused"
            said.append(f"{kind} sanitizer ({names}): it finds as little as {100 * lowest:.0f} % of unseen phrases.")
        if self.unmeasured:
            names = ", ".join(map(readable, self.unmeasured))
            said.append(f"Not measured, for want of held-out phrases: {names}.")
        return " ".join(said)


def judge(header: Header | None, concepts: Iterable[str]) -> Quality:
    """By the header's report; None for a sanitizer that was never trained."""
    report = Report.from_dict(header.report) if header else Report()
    reports = {concept.name: concept for concept in report.concepts if _is_measured(concept)}
    names = list(concepts)
    unmeasured = tuple(name for name in names if name not in reports)
    measured = [reports[name] for name in names if name in reports]
    if not measured:
        return Quality(UNMEASURED, (), unmeasured, (0, 0, 0.0))
    levels = [_level(concept) for concept in measured]
    level = next(level for level in (REFUSED, WEAK, GOOD) if level in levels)
    at_level = tuple(concept for concept, own in zip(measured, levels, strict=True) if own == level)
    surest = min(_lower_end(_recall(concept), concept.phrases) for concept in measured)
    return Quality(level, at_level, unmeasured, (len(measured), (REFUSED, WEAK, GOOD).index(level), surest))


def require(header: Header | None, concepts: Iterable[str], where: str) -> Quality:
    """:func:`judge`, for whoever is about to rely on the sanitizer. where: its file, for the error.

    Raises SanitizerError for one that is refused.
    """
    quality = judge(header, concepts)
    if quality.level == REFUSED:
        found = "; ".join(
            f"{readable(c.name)}: {100 * _recall(c):.0f} %, AUROC {'-' if c.auroc is None else f'{c.auroc:.2f}'}"
            for c in quality.concepts
        )
        raise SanitizerError(
            f"{where}: refused, it finds too few of the phrases that its training did not see ({found}). Expected at "
            f"least {100 * LEAST_RECALL:.0f} % and an AUROC of {LEAST_AUROC}. Train with more examples, phrases or "
            "steps, or choose other concepts."
        )
    return quality


def own_lists(header: Header) -> set[str]:
    """Names of the pack's concepts that this sanitizer learned from another word list than the pack's of today, and for
    which it does not speak.

    A concept is its pairs of target and anchor: the header holds a digest of them. Files from before it hold the
    pairs themselves where they differed from the pack's.
    """
    digests = header.training.get(TRAINED_ON, {})
    assert isinstance(digests, dict)
    builtin = set(available())
    return {
        name
        for name in builtin & (header.replacements.keys() | digests.keys())
        if name in header.replacements or digests[name] != _digest_of_pack(name)
    }


@cache
def _digest_of_pack(name: str) -> str:
    return digest(load_concept(FOLDER / f"{name}.toml"))


def _is_measured(concept: ConceptReport) -> bool:
    return concept.phrases >= FEWEST_PHRASES and concept.flagged is not None


def _recall(concept: ConceptReport) -> float:
    return concept.flagged or 0.0


def _level(concept: ConceptReport) -> str:
    for level, auroc, recall in ((REFUSED, LEAST_AUROC, LEAST_RECALL), (WEAK, GOOD_AUROC, GOOD_RECALL)):
        if _recall(concept) < recall or (concept.auroc is not None and concept.auroc < auroc):
            return level
    return GOOD


def _lower_end(share: float, count: int) -> float:
    """Of Wilson's interval: a share of few tries is believed less than the same share of many."""
    square = DEVIATIONS**2
    middle = share + square / (2 * count)
    half = DEVIATIONS * math.sqrt(share * (1 - share) / count + square / (4 * count**2))
    return (middle - half) / (1 + square / count)
