"""Ways in which people write around a filter: training augments with them, the evaluation attacks with them."""

import random
from collections.abc import Callable

LEET = {"a": "4", "e": "3", "i": "1", "o": "0", "s": "5", "t": "7", "b": "8", "g": "9"}
SYMBOLS = {"a": "@", "s": "$", "i": "!", "o": "*", "e": "*", "u": "*", "c": "(", "l": "|"}
HOMOGLYPHS = {"a": "а", "e": "е", "o": "о", "p": "р", "c": "с", "x": "х", "y": "у", "i": "і", "s": "ѕ"}
ACCENTS = {"a": "á", "e": "ë", "i": "î", "o": "ö", "u": "ü", "n": "ñ", "c": "ç"}
ZERO_WIDTH = "\u200b"


def _swap_letters(table: dict[str, str]) -> Callable[[str, random.Random], str]:
    def apply(text: str, rng: random.Random) -> str:
        share = rng.choice((0.5, 1.0))
        return "".join(table.get(c.lower(), c) if rng.random() < share else c for c in text)

    return apply


def spaced(text: str, rng: random.Random) -> str:
    """n u d e, or n.u.d.e, n-u-d-e."""
    separator = rng.choice((" ", " ", ".", "-", "_", "*"))
    return " ".join(separator.join(word) for word in text.split(" "))


def typo(text: str, rng: random.Random) -> str:
    """One slip per word of four letters or more: two letters exchanged, one lost, doubled or mistyped."""
    words = []
    for word in text.split(" "):
        if len(word) >= 4:
            at = rng.randrange(1, len(word) - 1)
            kind = rng.randrange(4)
            if kind == 0:
                word = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
            elif kind == 1:
                word = word[:at] + word[at + 1 :]
            elif kind == 2:
                word = word[:at] + word[at] + word[at:]
            else:
                word = word[:at] + rng.choice("abcdefghijklmnopqrstuvwxyz") + word[at + 1 :]
        words.append(word)
    return " ".join(words)


def zero_width(text: str, rng: random.Random) -> str:
    """An invisible character after every letter or so."""
    return "".join(c + ZERO_WIDTH if rng.random() < 0.6 else c for c in text)


def stretched(text: str, rng: random.Random) -> str:
    """One letter of each word held, as in nuuude."""
    words = []
    for word in text.split(" "):
        if len(word) > 2:
            at = rng.randrange(1, len(word))
            word = word[:at] + word[at] * rng.randint(1, 3) + word[at:]
        words.append(word)
    return " ".join(words)


def joined(text: str, rng: random.Random) -> str:
    """Words run together, or with a sign between them."""
    return rng.choice(("", "_", "-", "+")).join(text.split(" "))


def cut(text: str, rng: random.Random) -> str:
    """A space or hyphen inside each longer word."""
    words = []
    for word in text.split(" "):
        if len(word) >= 4:
            at = rng.randrange(2, len(word) - 1)
            word = word[:at] + rng.choice((" ", "-", "'")) + word[at:]
        words.append(word)
    return " ".join(words)


def upper(text: str, rng: random.Random) -> str:
    """Capitals, or capitals here and there."""
    return text.upper() if rng.random() < 0.5 else "".join(c.upper() if rng.random() < 0.5 else c for c in text)


OBFUSCATIONS: dict[str, Callable[[str, random.Random], str]] = {
    "leet": _swap_letters(LEET),
    "symbols": _swap_letters(SYMBOLS),
    "homoglyphs": _swap_letters(HOMOGLYPHS),
    "accents": _swap_letters(ACCENTS),
    "spaced": spaced,
    "typo": typo,
    "zero_width": zero_width,
    "stretched": stretched,
    "joined": joined,
    "cut": cut,
    "upper": upper,
}
"""Name -> function of a text and a random generator. They keep the text readable for a person."""


def obfuscate(text: str, rng: random.Random) -> str:
    """Apply one obfuscation at random."""
    return rng.choice(tuple(OBFUSCATIONS.values()))(text, rng)
