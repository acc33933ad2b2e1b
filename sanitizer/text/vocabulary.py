"""Known words, and what an unknown one may have been meant to be: one mistyped, stretched, half hidden, or several."""

import itertools
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping

from ..prompts.concepts import Concept
from ..prompts.templates import SLOT, Templates

SMALL = frozenset("a i of in on at to by is an my no up go he it or so be we do as us me".split())  # noqa: SIM905
"""Words of one and two letters that a run of letters may be cut into."""
LONGEST = 24
"""Letters of the longest word that is looked for."""
CHANCE = 6
"""Runs of doubled letters, or signs with two readings, that are tried in all combinations."""
LONG, UNKNOWN_SHARE = 12, 0.35
"""Letters of a long run, and the share of them that may be in words that nobody knows."""
COMMON = 5
"""Times that a word occurs, to be what a misspelt one is taken for, or, if it is short, half of a run of letters."""
DEAR, DEARER = 5, 9
"""Cost of a letter that belongs to no word, and of the first one of such a piece, in nats."""
LETTERS = "abcdefghijklmnopqrstuvwxyz"

_WORD = re.compile(r"[^\W\d_]+")
_STRETCH = re.compile(r"([^\W\d_])\1+")


class Vocabulary:
    """words: known words, a mapping to how often they occur or just the words. lexicon: those that unsafe phrases are
    made of, the likelier ones wherever there is a choice. Lower case throughout.
    """

    def __init__(self, words: Iterable[str], lexicon: Iterable[str]) -> None:
        counts = words if isinstance(words, Mapping) else Counter(words)
        self.words: Counter[str] = Counter()
        for word, count in counts.items():
            self.words[word.lower()] += count
        self.lexicon = frozenset(word.lower() for word in lexicon)
        self.words.update(word for word in self.lexicon if word not in self.words)
        self._total = math.log(sum(self.words.values()) or 1)
        self._by_length: dict[int, list[str]] = {}
        for word in sorted(self.words, key=self._rank):
            self._by_length.setdefault(len(word), []).append(word)

    @classmethod
    def from_concepts(cls, concepts: Iterable[Concept], templates: Templates, held_out: bool = True) -> "Vocabulary":
        """Vocabulary of concept files and templates. held_out False: without what is kept from training.

        The lexicon is the words that stand in target phrases more often than in anchors, hard negatives and templates.
        Context concepts give words only.
        """
        unsafe: Counter[str] = Counter()
        harmless: Counter[str] = Counter()
        for concept in concepts:
            for pair in concept.pairs:
                if held_out or not pair.held_out:
                    (harmless if concept.context else unsafe).update(_words(pair.target))
                    harmless.update(_words(pair.anchor))
            for phrase in concept.hard_negatives:
                if held_out or not phrase.held_out:
                    harmless.update(_words(phrase.text))
        tables = [*templates.slots.values(), *templates.frames.values()]
        tables += [templates.benign_frames, templates.benign_prompts]
        if held_out:
            tables += [*templates.held_out_frames.values()]
            tables += [templates.held_out_benign_frames, templates.held_out_benign_prompts]
        for text in itertools.chain.from_iterable(tables):
            harmless.update(_words(SLOT.sub(" ", text)))
        return cls(unsafe + harmless, (word for word, count in unsafe.items() if count > harmless[word]))

    def _rank(self, word: str) -> tuple:
        """Sorts the likelier reading first."""
        return (word not in self.lexicon, -self.words[word], word)

    def best(self, words: Iterable[str]) -> str | None:
        """The likeliest; None for none."""
        return min(words, key=self._rank, default=None)

    def matching(self, pattern: re.Pattern[str], length: int) -> str | None:
        """The likeliest word of a length that fits a regular expression."""
        return next((word for word in self._by_length.get(length, ()) if pattern.fullmatch(word)), None)

    def shortened(self, low: str) -> str | None:
        """The word of a stretched one, as nude of nuuude."""
        runs = list(_STRETCH.finditer(low))
        if not runs or len(runs) > CHANCE:
            return None
        pieces, at = [], 0
        for run in runs:
            pieces += [(low[at : run.start()],), (run[1], run[1] * 2)]
            at = run.end()
        found = ("".join(p) for p in itertools.product(*pieces, (low[at:],)))
        return self.best(w for w in found if len(w) > 2 and w in self.words)

    def near(self, low: str) -> set[str]:
        """Words of three letters or more at Damerau-Levenshtein distance 1; the first letter is never mistyped."""
        return {word for word in _edits(low) if word in self.words and len(word) > 2} if len(low) <= LONGEST else set()

    def split(self, low: str, fewest: int) -> str | None:
        """Words run together, cut where their probabilities are highest; None where they are not words.

        Fewer than `fewest` words count only if they are common ones and one is of the lexicon: compounds stay.
        """
        best = [(0.0, 0, True)]
        for end in range(1, len(low) + 1):
            before, _, is_word = best[end - 1]
            ways = [(before + (DEARER if is_word else DEAR), end - 1, False)]
            for start in range(max(0, end - LONGEST), end):
                cost = self._cost(low[start:end])
                if cost is not None:
                    ways.append((best[start][0] + cost, start, True))
            best.append(min(ways))
        pieces: list[tuple[str, bool]] = []
        end, unknown = len(low), 0
        while end:
            _, start, is_word = best[end]
            if is_word or not pieces or pieces[-1][1]:
                pieces.append((low[start:end], is_word))
            else:
                pieces[-1] = (low[start:end] + pieces[-1][0], False)
            unknown += not is_word
            end = start
        allowed = UNKNOWN_SHARE * len(low) if len(low) >= LONG and len(pieces) > 2 else 0
        found = [piece for piece, _ in pieces]
        telling = len(found) >= fewest
        if not telling and not unknown and not self.lexicon.isdisjoint(found):
            telling = all(self.words[p] >= (COMMON if len(p) < 5 else 2) and len(p) > 2 for p in found)
        return " ".join(p for p, _ in reversed(pieces)) if telling and unknown <= allowed else None

    def _cost(self, piece: str) -> float | None:
        """Negative log-probability of a word in a run of letters; None for what is too short or rare to be one."""
        count = self.words[piece]
        if piece in SMALL:
            return self._total - math.log(max(count, 1))
        usual = len(piece) > 2 and count > (len(piece) == 3)
        return self._total - math.log(count) if usual else None


def _words(text: str) -> set[str]:
    return set(_WORD.findall(text.lower()))


def _edits(word: str) -> Iterable[str]:
    for at in range(len(word) + 1):
        head, tail = word[:at], word[at:]
        if at:
            yield from (head + c + tail for c in LETTERS)
        if at and tail:
            yield head + tail[1:]
            yield from (head + c + tail[1:] for c in LETTERS)
        if len(tail) > 1:
            yield head + tail[1] + tail[0] + tail[2:]
