"""Deobfuscation: what a person reads in n4k3d, n.u.d.e or na ked, where an encoder sees fragments.

A filter that has the text can score its reading too and count the higher score. A reading is a guess at the meaning; it
is never shown, and never encoded in place of the text. So it may be wrong about a rare word, but must not make a
harmless prompt read as an unsafe one. There are two passes: the strict one undoes what is plainly a disguise; only in a
text in which it finds something does the loose one go on to the words about it.
"""

import itertools
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from torch import Tensor

from ..encoders.base import Encoding, TextEncoder, encode_all
from ..model.sanitizer import EmbeddingSanitizer
from ..prompts.concepts import Concept
from ..prompts.templates import Templates
from .letters import plain_letters, without_accents
from .vocabulary import CHANCE, COMMON, LONGEST, SMALL, Vocabulary
from .words import Word, words

LEET = {
    "4": "a", "3": "e", "1": "il", "0": "o", "5": "s", "7": "t", "8": "b", "9": "g", "6": "g", "2": "z",
    "@": "a", "$": "s", "!": "il", "(": "c", "|": "li", "€": "e", "£": "l",
}  # fmt: skip
WILD = "*"
LONE_A = ("4", "@")
SLIPS = 3
"""Misspelt words, whatever they mean, that make a text one in disguise."""

_LETTERS = re.compile(r"([^\W\d_]+)")
_SPACE = re.compile(r"(\s+)")
_ADDRESS = re.compile(r"\W{0,3}(?:\w{2,9}://|www\.|[\w.+-]{1,64}@(?:[\w-]{1,64}\.){1,4}(?:[a-z]{2,3}|info)\b)", re.I)
_RUN = re.compile(r"(?:[^\W_]|[@$!|*(€£])+")
_UNIT = re.compile(r"\d+(?:s|st|nd|rd|th|k|p|d|x|m|mm|cm|km|am|pm|ft|in|oz|kg|gb|mb|fps|px|mp|girls?|boys?)", re.I)
_BETWEEN = re.compile(r"[a-z][^a-z]+[a-z]")
_JOINED = re.compile(r"(?<![^\W\d])[^\W\d_]+([_+-])[^\W\d_]+(?:\1[^\W\d_]+)*(?![^\W\d])")
_SPACED = re.compile(
    r"""(?<![^\s(\["',])[a-z0-9@$!|]([ ._*-])(?:[a-z0-9@$!|]\1)*[a-z0-9@$!|](?=\1?(?:[\s,;:!?)\]"'.]|$))(?!\.\w)""",
    re.I,
)
_DIVIDED = re.compile(
    r"""(?<![^\W\d_])[^\W\d_]+(?:(?:\ ?[0-9@$!|*€£])+\ ?[^\W\d_]+){1,5}
    |(?<![^\W_])[^\W\d_](?:\ ?[._*-]\ ?[^\W\d_](?![^\W_])){2,8}""",
    re.X,
)
"""Letters with digits and signs between them, or single letters with dots, with spaces about them or not: so the tokens
of CLIP, which divide letters, digits and signs, give n4k3d and n.u.d.e back."""
_PIECE = re.compile(r"[^\W\d_]+|[^\s]")
_ESCAPED = re.compile(r"\\([()\[\]{}])")
_CHOICE = re.compile(r"\{([^{}]*)\}")
NESTED = 8
"""Choices within choices that are read."""
ENDINGS = frozenset("ed en er es est ing ings ies ion ions tion tions ly ry".split())  # noqa: SIM905
"""No words, though some stand in word lists and most are tokens."""


class Deobfuscator:
    """Reads texts with a vocabulary; words and lexicon as in :class:`.vocabulary.Vocabulary`."""

    def __init__(self, words: Iterable[str], lexicon: Iterable[str]) -> None:
        self.vocabulary = Vocabulary(words, lexicon)

    @classmethod
    def from_concepts(cls, concepts: Iterable[Concept], templates: Templates, held_out: bool = True) -> "Deobfuscator":
        """With the words of concept files and templates; held_out False: without those kept from training."""
        vocabulary = Vocabulary.from_concepts(concepts, templates, held_out)
        return cls(vocabulary.words, vocabulary.lexicon)

    def read(self, text: str, whole_words: Iterable[str] = ()) -> str:
        """The plain reading, or the very same string where there is nothing to undo.

        whole_words: words of this text that the encoder knows as one token; they are ordinary words, and left alone.
        """
        text = without_markup(text)
        whole = frozenset(word.lower() for word in whole_words)
        joined = _DIVIDED.sub(lambda found: self._joined(found[0]), text)
        plain = plain_letters(joined)
        strict = _Pass(self.vocabulary, whole, loose=False)
        if text == joined == strict.read(plain) and strict.slips < SLIPS:
            return text
        return _Pass(self.vocabulary, whole, loose=True).read(plain)

    def _joined(self, divided: str) -> str:
        """The longest stretches that are a word in disguise, were it not for the spaces, as that word."""
        if " " not in divided:
            return divided
        pieces = [match.span() for match in _PIECE.finditer(divided)]
        for count in range(len(pieces), 2, -1):
            for i in range(len(pieces) - count + 1):
                start, end = pieces[i][0], pieces[i + count - 1][1]
                if not (divided[start].isalpha() and divided[end - 1].isalpha()):
                    continue
                written = divided[start:end].replace(" ", "")
                word = _Pass(self.vocabulary, frozenset(), loose=False).read(written)
                if word.isalpha() and word != written:
                    return self._joined(divided[:start]) + word + self._joined(divided[end:])
        return divided

    def readings(
        self, texts: Sequence[str], tokens: Sequence[Sequence[str]], offsets: Sequence[Sequence[tuple[int, int]]]
    ) -> dict[int, str]:
        """Place -> reading of the texts that read differently, in more than case and white space.

        tokens and offsets of each text as a TextEncoder gives them.
        """
        found = {}
        for place, text in enumerate(texts):
            reading = self.read(text, whole_words(text, tokens[place], offsets[place]))
            if reading.lower().split() != text.lower().split():
                found[place] = reading
        return found


def without_markup(text: str) -> str:
    r"""Escaped brackets as brackets, and `{a|b}`, of which a front end would have taken one, as "a, b"."""

    def alternatives(found: re.Match) -> str:
        return ", ".join(part.strip() for part in found[1].split("|")) if "|" in found[1] else found[0]

    for _ in range(NESTED):
        text = _CHOICE.sub(alternatives, text)
    return _ESCAPED.sub(r"\1", text)


def whole_words(text: str, tokens: Sequence[str], offsets: Sequence[tuple[int, int]]) -> set[str]:
    """Words of the text that are one token."""
    spans = {match.span() for match in _LETTERS.finditer(text)}
    found = set()
    for token, (start, end) in zip(tokens, offsets, strict=True):
        # Some tokenizers count the space before a word to its token.
        start += text[start : start + 1] == " "
        if token and (start, end) in spans:
            found.add(text[start:end])
    return found


class _Pass:
    """One walk over a text."""

    def __init__(self, vocabulary: Vocabulary, whole: frozenset[str], loose: bool) -> None:
        self.vocabulary, self.whole, self.loose = vocabulary, whole, loose
        self.words, self.lexicon = vocabulary.words, vocabulary.lexicon
        self.fewest = 1 if loose else 4
        self.foreign = False
        self.slips = 0
        self.seen: dict[str, str] = {}

    def known(self, word: str) -> bool:
        return word in self.words or word in self.whole

    def ordinary(self, word: str) -> bool:
        """A harmless word by itself, so not one half of another."""
        if word in SMALL or word in ENDINGS:
            return word in SMALL
        return (word in self.words and word not in self.lexicon) or (len(word) > 2 and word in self.whole)

    def read(self, text: str) -> str:
        words = [word.lower() for word in _LETTERS.findall(text) if len(word) > 1]
        # Most words of another language are unknown or rare, and near to ones that mean something else.
        self.foreign = len(words) > 3 and sum(self.words[word] >= COMMON for word in words) * 3 < len(words)
        parts, run = [], []
        for chunk in _SPACE.split(text):
            if _ADDRESS.match(chunk):
                parts += [self._segment("".join(run)), chunk]
                run = []
            else:
                run.append(chunk)
        return "".join([*parts, self._segment("".join(run))])

    def _segment(self, text: str) -> str:
        text = _SPACED.sub(self._spaced, text)
        text = self._rejoin(text)
        text = _JOINED.sub(self._separate, text)
        return _RUN.sub(self._run, text)

    def _spaced(self, match: re.Match[str]) -> str:
        """n u d e, n.u.d.e."""
        signs = match[0][::2].lower()
        if 2 * sum(map(str.isalpha, signs)) < len(signs) or len(signs) < (2 if self.loose and match[1] != WILD else 3):
            return match[0]
        word = signs if signs.isalpha() else self._decode(signs) or "".join(LEET.get(c, c)[0] for c in signs)
        if word in self.words and (len(word) > 2 or word in SMALL):
            return word
        found = self._meant(word) or self.vocabulary.split(word, fewest=1)
        if found and max(map(len, found.split())) < 3:
            return match[0]
        return found or (word if self.loose and match[1] in "._-" else match[0])

    def _meant(self, word: str) -> str | None:
        """The unsafe word that one in plain disguise is nearest to, as dick of d1ck5."""
        return self.vocabulary.best(self.vocabulary.near(word) & self.lexicon) if len(word) > 4 else None

    def _rejoin(self, text: str) -> str:
        """na ked, na-ked, na'ked."""
        parts = _LETTERS.split(text)
        at = 1
        while at + 2 < len(parts):
            first, between, second = parts[at : at + 3]
            if between in (" ", "-", "'") and self._halves(first.lower(), second.lower()):
                parts[at : at + 3] = [first + second]
            at += 2
        return "".join(parts)

    def _halves(self, first: str, second: str) -> bool:
        """Of one word: an unsafe one if they are not both ordinary words, another if they are not both words at all."""
        whole = first + second
        if len(whole) < 4 or whole not in self.words:
            return False
        if (self.loose or whole in self.lexicon) and not (self.ordinary(first) and self.ordinary(second)):
            return True
        return len(whole) > 4 and not (self.known(first) and self.known(second))

    def _separate(self, match: re.Match[str]) -> str:
        """naked_woman, a-naked-woman; but a compound of two words, as well-lit, is a word of the language."""
        parts = match[0].split(match[1])
        telling = self.loose or len(parts) > 3 or any(part.lower() in self.lexicon for part in parts)
        if not telling or (match[1] == "-" and len(parts) < 3):
            return match[0]
        known = sum(self.known(part.lower()) for part in parts)
        return " ".join(parts) if known == len(parts) or (self.loose and 2 * known >= len(parts)) else match[0]

    def _run(self, match: re.Match[str]) -> str:
        run = match[0]
        if run not in self.seen:
            self.seen[run] = self._word(run) if run.isalpha() else self._disguised(run)
        return self.seen[run]

    def _disguised(self, run: str) -> str:
        """Letters with digits and signs among them."""
        low = run.lower()
        bare, core = low.strip("!|(*"), low.strip("!|(")
        if self.loose and low in LONE_A:
            return "a"
        if (len(bare) > 2 and self.known(bare)) or not any(map(str.isalpha, run)) or _UNIT.fullmatch(run):
            return run
        core = bare if core[:1] == core[-1:] == WILD else core
        whole = self._decode(low)
        if core != low and len(core) > 2:  # Brackets, emphasis and exclamation marks may be just that.
            inner = self._word(core) if core.isalpha() else self._decode(core)
            if inner and inner != core and (self.known(inner) or not whole):
                return low.replace(core, inner, 1)
        return whole or run

    def _decode(self, low: str) -> str | None:
        """n4k3d, p*rn."""
        if not (2 if self.loose else 3) <= len(low) <= LONGEST:
            return None
        if WILD in low:
            return self._wild(low)
        options = [LEET.get(char, char) for char in low]
        if sum(len(option) > 1 for option in options) > CHANCE:
            options = [option[0] for option in options]
        readings = ["".join(letters) for letters in itertools.product(*options)]
        found = self.vocabulary.best(r for r in readings if r in self.words and (len(r) > 2 or r in SMALL))
        if found or not readings[0].isalpha() or not _BETWEEN.search(low):
            return found
        # No word that is known; but signs stand between letters.
        return self._meant(readings[0]) or (self._word(readings[0]) if self.loose else None)

    def _wild(self, low: str) -> str | None:
        """A star is any letter, first of all a vowel. There must be another letter, and in the strict pass as many."""
        letters = sum(map(str.isalpha, low))
        if not letters or (not self.loose and letters < low.count(WILD)):
            return None
        for star in ("[aeiou]", "[a-z]"):
            signs = (star if c == WILD else f"[{LEET[c]}]" if c in LEET else re.escape(c) for c in low)
            pattern = re.compile("".join(signs))
            if len(low) < 3:  # Of the shortest, word lists hold much that is no word.
                found = self.vocabulary.best(word for word in SMALL if pattern.fullmatch(word))
            else:
                found = self.vocabulary.matching(pattern, len(low))
            if found and (self.loose or found in self.lexicon):
                return found
        return None

    def _word(self, word: str) -> str:
        """A word of letters only, repaired if it is unknown."""
        low = word.lower()
        if self.known(low):
            return word
        if not low.isascii():
            bare, marks = without_accents(low)
            usual = self.loose or (marks > 1 and self.words[bare] >= COMMON)
            accepted = bare in self.lexicon or (bare in self.words and usual)
            if not bare.isascii() or not (accepted or (self.loose and marks > 1)):
                return word
            if accepted:
                return bare
            low = word = bare
        if len(low) < 4:
            return word
        found = self.vocabulary.shortened(low) or self._respelt(low)
        if not found and len(low) > 5:
            found = self.vocabulary.split(low, self.fewest)
        return found or word

    def _respelt(self, low: str) -> str | None:
        near = self.vocabulary.near(low)
        if not self.loose:
            self.slips += bool(near) and not self.foreign
            if self.foreign or not near <= self.lexicon:
                return None
            near = {word for word in near if self.words[word] >= COMMON and not _may_be_another(low, word)}
        return self.vocabulary.best(near)


def _may_be_another(word: str, near: str) -> bool:
    """Whether two words at distance 1 may well both be words: other endings, or short and with another letter."""
    stem = min(len(word), len(near)) - (len(word) == len(near))
    return word[:stem] == near[:stem] or (len(word) == len(near) < 6 and sorted(word) != sorted(near))


class Deobfuscated(NamedTuple):
    texts: dict[int, str]
    """Place -> reading, of the prompts that read differently from what is written."""
    scores: Tensor | None
    """(B, K) prompt scores of the readings, 0 for a prompt without one; None where no prompt has one."""
    words: dict[int, list[Word]]
    """Place -> the reading's words with their scores."""


AS_WRITTEN = Deobfuscated({}, None, {})


def deobfuscated(
    encoder: TextEncoder,
    sanitizer: EmbeddingSanitizer,
    deobfuscator: Deobfuscator | None,
    prompts: Sequence[str],
    encoding: Encoding,
) -> Deobfuscated:
    """Read the prompts; encode and score what reads differently. encoding: of the prompts. No deobfuscator: nothing."""
    texts = {} if deobfuscator is None else deobfuscator.readings(prompts, encoding.tokens, encoding.offsets)
    if not texts:
        return AS_WRITTEN
    places = list(texts)
    e = encode_all(encoder, [texts[b] for b in places])
    found = sanitizer.score(e.embeddings, e.mask, e.pooled, trusted=True)
    scores = found.prompt.new_zeros(len(prompts), found.prompt.shape[1])
    scores[places] = found.prompt
    read = {
        b: words(texts[b], e.tokens[i], e.offsets[i], found.tokens[i], sanitizer.concepts) for i, b in enumerate(places)
    }
    return Deobfuscated(texts, scores, read)
