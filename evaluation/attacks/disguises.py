"""Ways of writing a prompt so that a filter overlooks it: sanitizer.obfuscation, word order, other languages."""

import random
import re
import tomllib
from collections.abc import Callable
from pathlib import Path

from sanitizer.errors import SanitizerError
from sanitizer.prompts.obfuscation import OBFUSCATIONS

FILE = Path(__file__).resolve().parent / "foreign_words.toml"
WORD_ORDER, LANGUAGES = "word_order", "languages"

Disguise = Callable[[str, random.Random], str | None]
"""A prompt -> how it is written; None for a prompt to which it cannot be applied."""


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


def disguises(concept: str, file: Path = FILE) -> dict[str, Disguise]:
    """Name -> disguise. Raises SanitizerError for a dictionary that cannot be read."""
    try:
        dictionary = tomllib.loads(file.read_text(encoding="utf-8")).get(concept, {})
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SanitizerError(f"{file}: no dictionary ({error}).") from error
    for word, entries in dictionary.items():
        if not isinstance(entries, list) or not entries or not all(isinstance(entry, str) for entry in entries):
            raise SanitizerError(f"{file}: expected {word} = a list of translations, one a language.")
    return {**OBFUSCATIONS, WORD_ORDER: word_order, LANGUAGES: other_language(dictionary)}
