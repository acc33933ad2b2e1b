"""Scores made visible: tokens joined to words, scores turned into colours, a terminal line, a picture.

Pure functions of text and numbers, used by the command line and by the nodes. Whatever a prompt holds, nothing of it
reaches a terminal as a control sequence: see :func:`printable`.
"""

import re
import unicodedata
from bisect import bisect_left
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

THRESHOLD = 0.5
"""The calibrated operating point of every concept; equal to model.THRESHOLD, which would import torch."""
FAINT = 0.05
"""Words below this score stay uncoloured in the terminal, so that the eye finds the others."""
SCALE_STEPS = 41

# ColorBrewer's OrRd: its lightness falls steadily, so that it reads the same without colour vision and in grey.
STOPS = (
    (255, 247, 236), (254, 232, 200), (253, 212, 158), (253, 187, 132), (252, 141, 89),
    (239, 101, 72), (215, 48, 31), (179, 0, 0), (127, 0, 0),
)  # fmt: skip
BLACK, WHITE = (0, 0, 0), (255, 255, 255)

# Chinese, Japanese, Thai, Lao, Khmer and Burmese put no spaces between words: there, every character stands alone.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u2fdf\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
_WORD = re.compile(rf"[{_UNSPACED}]|[^\s{_UNSPACED}]+")


@dataclass(frozen=True)
class Word:
    text: str
    start: int
    end: int
    """Characters start to end of the prompt."""
    scores: dict[str, float]
    """Concept -> score: the highest of the tokens that lie in the word."""

    def score(self, concepts: Collection[str] | None = None) -> float:
        """The highest score among the concepts, None for all."""
        chosen = self.scores.values() if concepts is None else [self.scores[c] for c in concepts if c in self.scores]
        return max(chosen, default=0.0)


def words(
    text: str,
    tokens: Sequence[str],
    offsets: Sequence[tuple[int, int]],
    token_scores,
    names: Sequence[str],
) -> list[Word]:
    """The words of a prompt with their scores.

    tokens, offsets and token_scores (L, K) are one prompt's rows, as TextEncoder and Scores give them; names are the K
    concepts. Text without a space in it is one word. All of the prompt's text is in a word; one that no token covers,
    such as a character that the tokenizer drops, scores 0.
    """
    values = token_scores.tolist() if hasattr(token_scores, "tolist") else token_scores
    found = [match.span() for match in _WORD.finditer(text)]
    ends = [end for _, end in found]
    scores = [[0.0] * len(names) for _ in found]
    for token, (start, end), row in zip(tokens, offsets, values, strict=True):
        if not token or start >= end:
            continue
        # The first word that ends behind the token's start. A token may hold the space before its word, or several.
        at = bisect_left(ends, start + 1)
        while at < len(found) and found[at][0] < end:
            scores[at] = [max(pair) for pair in zip(scores[at], row, strict=True)]
            at += 1
    return [
        Word(text[start:end], start, end, dict(zip(names, row, strict=True)))
        for (start, end), row in zip(found, scores, strict=True)
    ]


def colour(score: float) -> tuple[int, int, int]:
    """Red, green, blue from 0 to 255 for a score: cream at 0, orange at the threshold, dark red at 1."""
    place = min(max(float(score), 0.0), 1.0) * (len(STOPS) - 1)
    low = min(int(place), len(STOPS) - 2)
    part = place - low
    return tuple(round(a + (b - a) * part) for a, b in zip(STOPS[low], STOPS[low + 1], strict=True))


def text_colour(score: float) -> tuple[int, int, int]:
    """Black or white, whichever reads better on :func:`colour`; the contrast is always above 4.5 : 1."""
    light = luminance(colour(score))
    return BLACK if (light + 0.05) / 0.05 >= 1.05 / (light + 0.05) else WHITE


def luminance(rgb: tuple[int, int, int]) -> float:
    """Relative luminance of an sRGB colour after WCAG 2, from 0 to 1."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (value / 255 for value in rgb)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def scale(steps: int = SCALE_STEPS) -> list[tuple[str, str]]:
    """(background, text colour) as CSS colours for scores from 0 to 1 in even steps; for the front end."""
    at = [step / (steps - 1) for step in range(steps)]
    return [(_css(colour(score)), _css(text_colour(score))) for score in at]


def _css(rgb: tuple[int, int, int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*rgb)


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


def render_image(
    prompts: Iterable[tuple],
    *,
    concepts: Collection[str] | None = None,
    threshold: float = THRESHOLD,
    title: str = "",
    width: int = 1024,
) -> "Image":
    """A picture of prompts with coloured words, an RGB PIL image `width` pixels wide and as high as it must be.

    Each prompt is (words, concepts that fired, prompt scores by concept[, heading]). Words are coloured by their
    highest score among the concepts (None: all). Pillow is imported when a picture is asked for.
    """
    from .picture import draw

    return draw(list(prompts), concepts, threshold, title, width)
