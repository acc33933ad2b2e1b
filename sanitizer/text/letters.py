"""Letters in other guises: look-alikes of other scripts, full-width and mathematical ones, accents, hidden characters.

The table is our own choice of what is common, after Unicode TR 39 ("confusables") and TR 15 (NFKC).
"""

import re
import unicodedata

CONFUSABLE = dict(
    zip(
        "аеорсхуіѕјһԁԛԝкмтнвгпАЕОРСХУІЅЈКМТНВԌαεοριυνκτχωγΑΕΟΡΙΥΝΚΤΧΒΗΜΖօսոհզցɑɡıᴀʙᴄᴅᴇꜰɢʜɪᴊᴋʟᴍɴᴏᴘʀꜱᴛᴜᴠᴡʏᴢ",
        "aeopcxyisjhdqwkmthbrnAEOPCXYISJKMTHBGaeopiuvktxwyAEOPIYNKTXBHMZounhqgagiabcdefghijklmnoprstuvwyz",
        strict=True,
    )
)
MARKS = ("\u034f", "\u115f", "\u1160", "\u3164", "\u2800")
"""Invisible characters that Unicode does not call format characters."""

_WORD = re.compile(r"[^\W\d_]+")


def plain_letters(text: str) -> str:
    """The text with Latin letters for those that only look like them; words in other scripts and accents stay.

    Look-alikes are mapped in words that mix scripts, and in words of nothing but look-alikes if no other word of the
    text is written in another script.
    """
    if text.isascii():
        return text
    text = _drop_invisible("".join(map(_compatible, text)))
    words = _WORD.findall(text)
    foreign = any(not _has_latin(word) and any(char not in CONFUSABLE for char in word) for word in words)

    def latin(match: re.Match[str]) -> str:
        word = match[0]
        if word.isascii() or not any(char in CONFUSABLE for char in word):
            return word
        mapped = "".join(CONFUSABLE.get(char, char) for char in word)
        return mapped if _has_latin(word) or (mapped.isascii() and not foreign) else word

    return _WORD.sub(latin, text)


def _has_latin(word: str) -> bool:
    return any("a" <= char <= "z" or "A" <= char <= "Z" or "\u00c0" <= char <= "\u024f" for char in word)


def _compatible(char: str) -> str:
    """Full-width, mathematical, circled letters and ligatures as plain letters; all else as it is."""
    if char.isascii():
        return char
    plain = unicodedata.normalize("NFKC", char)
    return plain if plain.isascii() and plain.isalpha() and char not in "™℠℡" else char


def _drop_invisible(text: str) -> str:
    """Without invisible characters beside plain letters; emoji and scripts that need joiners keep theirs."""
    kept, at = [], 0
    while at < len(text):
        end = at
        while end < len(text) and _hidden(text[end]):
            end += 1
        beside = (kept[-1:] and kept[-1].isascii()) or (end < len(text) and text[end].isascii())
        if end > at and not beside:
            kept.append(text[at:end])
        if end < len(text):
            kept.append(text[end])
        at = end + 1
    return "".join(kept)


def without_accents(word: str) -> tuple[str, int]:
    """A word without the marks on its Latin letters, and how many letters had one."""
    apart = [unicodedata.normalize("NFD", char) for char in unicodedata.normalize("NFC", word)]
    return "".join(a[0] if a[0].isascii() else a for a in apart), sum(len(a) > 1 and a[0].isascii() for a in apart)


def _hidden(char: str) -> bool:
    return unicodedata.category(char) == "Cf" or char in MARKS
