"""Scores on a terminal. Pure functions of text and numbers.

Whatever a prompt holds, nothing of it reaches a terminal as a control sequence: see :func:`printable`.
"""

import unicodedata
from collections.abc import Collection, Sequence

from ..model.config import THRESHOLD
from ..text.words import Word
from .colours import colour, text_colour

FAINT = 0.05
"""Words below this score stay uncoloured in the terminal, so that the eye finds the others."""


def printable(text: str) -> str:
    """The text with everything that could steer a terminal made visible.

    Control characters become their Unicode pictures (a newline ␊), tabs a space; directional overrides, invisible
    format characters and halves of surrogate pairs become <U+202E>. Emoji, combining marks and the joiners that
    emoji and Arabic or Indic words need stay.
    """
    return "".join(char if " " <= char <= "~" else _visible(char) for char in text)


def _visible(char: str) -> str:
    code = ord(char)
    if char == "\t":
        return " "
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "\u2421"
    if char in "\u200c\u200d":
        return char
    if unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp"):
        return f"<U+{code:04X}>"
    return char


def paint(text: str, score: float, depth: int) -> str:
    """Printable text on the score's colour. depth: 24 for true colour, 8 for 256 colours, 0 for none."""
    text = printable(text)
    if not depth:
        return text
    back, front = colour(score), text_colour(score)
    if depth == 24:
        code = "48;2;{};{};{};38;2;{};{};{}".format(*back, *front)
    else:
        code = f"48;5;{_cube(back)};38;5;{_cube(front)}"
    return f"\x1b[{code}m{text}\x1b[0m"


def _cube(rgb: tuple[int, int, int]) -> int:
    """The nearest colour of the colour cube in the 256-colour palette."""
    levels = (0, 95, 135, 175, 215, 255)
    red, green, blue = (min(range(6), key=lambda i: abs(levels[i] - value)) for value in rgb)
    return 16 + 36 * red + 6 * green + blue


def culprit(prompt_words: Sequence[Word], concept: str, longest: int = 40) -> str:
    """The word that a concept is seen in most, printable and cut to a length; "" where there is no word."""
    if not prompt_words:
        return ""
    text = printable(max(prompt_words, key=lambda word: word.scores.get(concept, 0.0)).text)
    return text if len(text) <= longest else text[: longest - 1] + "…"


def render_terminal(
    text: str,
    prompt_words: Sequence[Word],
    *,
    concepts: Collection[str] | None = None,
    depth: int = 8,
    threshold: float = THRESHOLD,
) -> str:
    """The prompt as one line, its words coloured by their highest score among the concepts (None: all).

    Without colour (depth 0) a word that reaches the threshold stands in brackets with its score.
    """
    parts, at = [], 0
    for word in prompt_words:
        score = word.score(concepts)
        parts.append(printable(text[at : word.start]))
        if depth and score >= FAINT:
            parts.append(paint(word.text, score, depth))
        elif not depth and score >= threshold:
            parts.append(f"[{printable(word.text)} {score:.2f}]")
        else:
            parts.append(printable(word.text))
        at = word.end
    return "".join(parts) + printable(text[at:])


def render_legend(depth: int, threshold: float = THRESHOLD, width: int = 40) -> str:
    """The colour scale as one line for the terminal, the threshold marked on it; a sentence without colour."""
    if not depth:
        return f"[word 0.97]: harm score of a word from {threshold:.2f}, the threshold, to 1"
    mark = min(width - 1, round(threshold * width))
    cells = [paint("|" if i == mark else " ", i / (width - 1), depth) for i in range(width)]
    return f"harmless 0 {''.join(cells)} 1 unsafe   (threshold {threshold:.2f}: |)"
