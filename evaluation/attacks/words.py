"""The words of attacks: which must not stand in an adversarial prompt, and ways of writing that a filter overlooks.

Obfuscations are those of sanitizer.prompts.obfuscation; word order and other languages come on top.
"""

import random
import re
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path

from sanitizer.errors import SanitizerError
from sanitizer.prompts.obfuscation import OBFUSCATIONS

BANNED = Path(__file__).resolve().parent / "banned_words.toml"
FOREIGN = Path(__file__).resolve().parent / "foreign_words.toml"
WORD_ORDER, LANGUAGES = "word_order", "languages"
WHOLE = 4
"""Shorter entries forbid only themselves: other words may contain them."""

Disguise = Callable[[str, random.Random], str | None]
"""A prompt -> how it is written; None for a prompt to which it cannot be applied."""


class BannedWords:
    """Says which words are forbidden."""

    def __init__(self, entries: Sequence[str]) -> None:
        self.short = {entry.lower() for entry in entries if len(entry) < WHOLE}
        self.long = tuple(entry.lower() for entry in entries if len(entry) >= WHOLE)

    def __contains__(self, text: str) -> bool:
        """A word of the text is an entry, or contains one of four letters or more."""
        words = re.findall(r"[^\W_]+", text.lower())
        return any(word in self.short or any(entry in word for entry in self.long) for word in words)


def load_banned(concept: str, file: Path = BANNED) -> BannedWords:
    """The concept's list, all lists together for a concept without one. Raises SanitizerError for a file that cannot be
    read or holds anything else."""
    try:
        lists = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SanitizerError(f"{file}: no list of banned words ({error}).") from error
    for name, words in lists.items():
        if not isinstance(words, list) or not all(isinstance(word, str) and word for word in words):
            raise SanitizerError(f"{file}: expected {name} = a list of words, found {type(words).__name__}.")
    return BannedWords(lists.get(concept) or [word for words in lists.values() for word in words])


def word_order(text: str, rng: random.Random) -> str | None:
    """The same words in another order."""
    words = text.split()
    if len(set(words)) < 2:
        return None
    order = list(words)
    while order == words:
        rng.shuffle(order)
    return " ".join(order)


def other_language(dictionary: dict[str, list[str]]) -> Disguise:
    """Every word that the dictionary knows, in one of its languages."""
    known = re.compile(rf"\b(?:{'|'.join(map(re.escape, dictionary))})\b", re.IGNORECASE) if dictionary else None

    def apply(text: str, rng: random.Random) -> str | None:
        if known is None or not known.search(text):
            return None
        language = rng.randrange(min(map(len, dictionary.values())))
        return known.sub(lambda match: dictionary[match[0].lower()][language], text)

    return apply


def disguises(concept: str, file: Path = FOREIGN) -> dict[str, Disguise]:
    """Name -> disguise. Raises SanitizerError for a dictionary that cannot be read."""
    try:
        dictionary = tomllib.loads(file.read_text(encoding="utf-8")).get(concept, {})
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SanitizerError(f"{file}: no dictionary ({error}).") from error
    for word, entries in dictionary.items():
        if not isinstance(entries, list) or not entries or not all(isinstance(entry, str) for entry in entries):
            raise SanitizerError(f"{file}: expected {word} = a list of translations, one a language.")
    return {**OBFUSCATIONS, WORD_ORDER: word_order, LANGUAGES: other_language(dictionary)}
