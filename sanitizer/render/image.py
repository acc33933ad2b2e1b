"""The heat map as a picture, drawn with Pillow and the font that comes with it."""

from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from ..model.config import THRESHOLD, readable
from ..text.words import Word
from .colours import colour, text_colour
from .terminal import culprit, printable

PAPER, INK, GREY, LINE = (255, 255, 255), (33, 33, 38), (110, 110, 120), (225, 225, 230)
ALARM, CALM = (179, 0, 0), (60, 110, 140)
MARGIN, PAD, SIZE, SMALL = 32, 4, 22, 15
LINE_HEIGHT = 38
MAX_LINES = 40
"""Lines shown of one prompt; a prompt of ten thousand words would make a picture that nothing opens."""


class Entry(NamedTuple):
    """One prompt of a picture."""

    words: Sequence[Word]
    fired: Sequence[str]
    scores: dict[str, float]
    heading: str = ""
    """Printed above the prompt, where it differs from the prompt's before."""


class _Box(NamedTuple):
    x: float
    line: int
    width: float
    text: str
    score: float


def render_image(
    prompts: Iterable[tuple],
    *,
    concepts: Collection[str] | None = None,
    threshold: float = THRESHOLD,
    title: str = "",
    width: int = 1024,
) -> Image.Image:
    """A picture of prompts with coloured words, an RGB PIL image `width` pixels wide and as high as it must be.

    Each prompt is an :class:`Entry` or a tuple like one. Words are coloured by their highest score among the concepts
    (None: all).
    """
    font, small = ImageFont.load_default(size=SIZE), ImageFont.load_default(size=SMALL)
    head = ImageFont.load_default(size=SIZE + 6)
    entries = [Entry(*prompt) for prompt in prompts]
    layouts = [_layout(entry.words, concepts, font, width - 2 * MARGIN) for entry in entries]
    top = MARGIN + (48 if title else 0)
    heights = []
    for index, (_, lines, _) in enumerate(layouts):
        heights.append(_heading_height(entries, index) + lines * LINE_HEIGHT + 40)
    image = Image.new("RGB", (width, top + sum(heights) + 76), PAPER)
    pen = ImageDraw.Draw(image)
    if title:
        pen.text((MARGIN, MARGIN - 4), title, fill=INK, font=head)
    for index, (entry, (boxes, lines, left_out)) in enumerate(zip(entries, layouts, strict=True)):
        y = top
        if _heading_height(entries, index):
            pen.line((MARGIN, y + 4, width - MARGIN, y + 4), fill=LINE, width=1)
            pen.text((MARGIN, y + 14), entry.heading.upper(), fill=GREY, font=small)
            y += _heading_height(entries, index)
        for box in boxes:
            _word(pen, box, y, font, threshold)
        y += lines * LINE_HEIGHT
        _verdict(pen, entry, concepts, y, small, left_out)
        top += heights[index]
    _legend(pen, top + 8, width, small, threshold)
    return image


def _heading_height(entries: Sequence[Entry], index: int) -> int:
    before = entries[index - 1].heading if index else ""
    return 44 if entries[index].heading and entries[index].heading != before else 0


def _layout(words: Sequence[Word], concepts, font, room: float) -> tuple[list[_Box], int, int]:
    """Places of the words on lines no wider than `room`; the number of lines; the number of words left out."""
    boxes: list[_Box] = []
    x, line, last = 0.0, 0, None
    space = font.getlength(" ") + 2
    for number, word in enumerate(words):
        x += space if last is not None and word.start > last and x else 0
        last = word.end
        for text, size in _pieces(printable(word.text), font, room):
            if x and x + size > room:
                x, line = 0.0, line + 1
            if line >= MAX_LINES:
                return boxes, MAX_LINES, len(words) - number
            boxes.append(_Box(x, line, size, text, word.score(concepts)))
            x += size
    return boxes, line + 1, 0


def _pieces(text: str, font, room: float):
    """The word and its width, cut into pieces where it is wider than a line."""
    while text:
        size = font.getlength(text) + 2 * PAD
        cut = len(text)
        if size > room:
            # By the mean width of a letter first: measuring a long string for every length would take for ever.
            cut = max(1, min(cut - 1, int(cut * room / size)))
            while cut > 1 and font.getlength(text[:cut]) + 2 * PAD > room:
                cut -= 1
            size = font.getlength(text[:cut]) + 2 * PAD
        yield text[:cut], size
        text = text[cut:]


def _word(pen, box: _Box, top: int, font, threshold: float) -> None:
    x, y = MARGIN + box.x, top + box.line * LINE_HEIGHT
    frame = (x, y, x + box.width, y + LINE_HEIGHT - 6)
    pen.rounded_rectangle(frame, radius=5, fill=colour(box.score))
    if box.score >= threshold:
        # A bar under the word, so that the verdict does not hang on the colour alone.
        pen.rounded_rectangle((x, frame[3] - 3, x + box.width, frame[3]), radius=1, fill=INK)
    pen.text((x + PAD, y + LINE_HEIGHT / 2 - 4), box.text, fill=text_colour(box.score), font=font, anchor="lm")


def _verdict(pen, entry: Entry, concepts, y: int, font, left_out: int) -> None:
    if entry.fired:
        found = ", ".join(
            f"{readable(name)} {entry.scores[name]:.2f} (“{culprit(entry.words, name)}”)" for name in entry.fired
        )
        text, ink = f"flagged: {found}", ALARM
    else:
        scores = {name: value for name, value in entry.scores.items() if concepts is None or name in concepts}
        name = max(scores, key=lambda concept: scores[concept], default="")
        text, ink = "harmless" + (f" (highest: {readable(name)} {scores[name]:.2f})" if name else ""), CALM
    if left_out:
        text += f"  …  {left_out:,} more words are not shown"
    pen.text((MARGIN + 2, y), text, fill=ink, font=font)


def _legend(pen, y: int, width: int, font, threshold: float) -> None:
    """The colour scale, its ends named and the threshold marked."""
    left, right = MARGIN + 96, min(width - MARGIN - 76, MARGIN + 496)
    pen.text((MARGIN, y), "0 harmless", fill=GREY, font=font)
    for x in range(left, right):
        pen.line((x, y, x, y + 15), fill=colour((x - left) / max(1, right - left - 1)))
    mark = left + threshold * (right - left - 1)
    pen.rectangle((mark - 1, y - 4, mark + 1, y + 19), fill=INK)
    pen.text((mark, y + 22), f"threshold {threshold:.2f}", fill=INK, font=font, anchor="ma")
    pen.text((right + 10, y), "1 unsafe", fill=GREY, font=font)
