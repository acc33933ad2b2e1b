"""Words that must not stand in an adversarial prompt, from banned_words.toml."""

import re
import tomllib
from collections.abc import Sequence
from pathlib import Path

from sanitizer.errors import SanitizerError

FILE = Path(__file__).resolve().parent / "banned_words.toml"
WHOLE = 4
"""Shorter entries forbid only themselves: other words may contain them."""


class BannedWords:
    """Says which words are forbidden."""

    def __init__(self, entries: Sequence[str]) -> None:
        self.short = {entry.lower() for entry in entries if len(entry) < WHOLE}
        self.long = tuple(entry.lower() for entry in entries if len(entry) >= WHOLE)

    def __contains__(self, text: str) -> bool:
        """A word of the text is an entry, or contains one of four letters or more."""
        words = re.findall(r"[^\W_]+", text.lower())
        return any(word in self.short or any(entry in word for entry in self.long) for word in words)


def load_banned(concept: str, file: Path = FILE) -> BannedWords:
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
