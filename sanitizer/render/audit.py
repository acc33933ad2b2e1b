"""An audit as a picture, drawn with Pillow and the font that comes with it."""

from collections.abc import Iterator
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from ..audit.results import Audit, ConceptAudit, Count
from ..model.config import readable
from .image import ALARM, CALM, GREY, INK, LINE, MARGIN, PAPER, SIZE, SMALL
from .terminal import printable

BAR, GAP, HEAD = 26, 8, 54
LABEL, FIGURE = 300, 170
"""Widths of what stands left and right of a bar."""


class _Bar(NamedTuple):
    label: str
    count: Count
    good: bool
    """A long bar is good news."""
    small: bool = False


def render_audit(audit: Audit, width: int = 1024) -> Image.Image:
    """An RGB picture `width` pixels wide and as high as it must be. Long blue bars are good, long red ones are bad."""
    font, small = ImageFont.load_default(size=SIZE - 2), ImageFont.load_default(size=SMALL)
    head = ImageFont.load_default(size=SIZE + 6)
    cards = [(concept, list(_bars(concept))) for concept in audit.concepts]
    heights = [HEAD + sum(_height(bar) for bar in bars) + 18 for _, bars in cards]
    image = Image.new("RGB", (width, MARGIN * 2 + 110 + sum(heights)), PAPER)
    pen = ImageDraw.Draw(image)
    pen.text((MARGIN, MARGIN - 6), "Sanitizer report", fill=INK, font=head)
    pen.text((MARGIN, MARGIN + 34), _cut(printable(audit.encoder), small, width - 2 * MARGIN), fill=GREY, font=small)
    top = MARGIN + 64
    _bar(pen, _Bar("harmless prompts untouched", audit.harmless_identical, True), top, width, font, small)
    top += BAR + GAP + 12
    for (concept, bars), height in zip(cards, heights, strict=True):
        _card(pen, concept, bars, top, width, font, small)
        top += height
    return image


def _bars(c: ConceptAudit) -> Iterator[_Bar]:
    yield _Bar("flagged, of held-out phrases", c.flagged, True)
    yield _Bar("safe twins untouched", c.counterfactuals_untouched, True)
    yield _Bar("probe finds it, raw", c.found_raw, False)
    yield _Bar("probe finds it, sanitized", c.found_sanitized, False)
    if c.attack:
        last = c.attack[-1]
        yield _Bar(f"attack succeeds, raw ({last.budget} tries)", last.raw, False)
        yield _Bar("attack succeeds, sanitized", last.sanitized, False)
    yield _Bar("flagged, of obfuscated phrases", c.obfuscated_flagged, True)
    for kind, count in c.obfuscated.items():
        yield _Bar(kind.replace("_", " "), count, True, small=True)


def _height(bar: _Bar) -> int:
    return (18 if bar.small else BAR) + GAP // (2 if bar.small else 1)


def _card(pen, concept: ConceptAudit, bars: list[_Bar], top: int, width: int, font, small) -> None:
    pen.line((MARGIN, top, width - MARGIN, top), fill=LINE, width=1)
    title = printable(readable(concept.name)).upper()
    if concept.auroc is not None:
        title += f"   AUROC {concept.auroc:.3f}"
    pen.text((MARGIN, top + 16), _cut(title, small, width - 2 * MARGIN), fill=GREY, font=small)
    y = top + HEAD - 8
    for bar in bars:
        _bar(pen, bar, y, width, font, small)
        y += _height(bar)


def _bar(pen, bar: _Bar, y: int, width: int, font, small) -> None:
    height = 18 if bar.small else BAR
    chosen = small if bar.small else font
    left, right = MARGIN + LABEL, width - MARGIN - FIGURE
    indent = 24 if bar.small else 0
    pen.text((MARGIN + indent, y + height / 2), _cut(bar.label, small, LABEL - 10), fill=INK, font=small, anchor="lm")
    pen.rounded_rectangle((left, y + 2, right, y + height - 2), radius=4, fill=LINE)
    share = bar.count.share
    if share:
        end = left + max(4, share * (right - left))
        pen.rounded_rectangle((left, y + 2, end, y + height - 2), radius=4, fill=CALM if bar.good else ALARM)
    text = "not measured" if share is None else f"{100 * share:.0f} %  ({bar.count})"
    pen.text((right + 12, y + height / 2), text, fill=INK, font=small if bar.small else chosen, anchor="lm")


def _cut(text: str, font, room: float) -> str:
    if font.getlength(text) <= room:
        return text
    while text and font.getlength(text + "…") > room:
        text = text[:-1]
    return text + "…"
