"""Which words of a prompt are at fault, and the prompt with other words in their place. Text only."""

import re
from collections.abc import Sequence

from .heatmap import Word
from .templates import fix_articles

_ARTICLE = re.compile(r"\b[Aa]n? $")


def find_spans(found: Sequence[Word], text: str, score: float) -> list[tuple[int, int]]:
    """Characters (start, end) of the words of a text that score at least so high, neighbours joined; where none does,
    of the highest."""
    least = min([score, max((word.score() for word in found), default=score)])
    spans: list[tuple[int, int]] = []
    last = None
    for word in found:
        if word.score() < least:
            last = None
        elif last is None:
            last = word
            spans.append(_bare(text, word, word))
        else:
            spans[-1] = (spans[-1][0], _bare(text, word, word)[1])
    return spans


def _bare(text: str, first: Word, last: Word) -> tuple[int, int]:
    """Without the punctuation at either end."""
    start, end = first.start, last.end
    while start < end - 1 and not text[start].isalnum():
        start += 1
    while end > start + 1 and not text[end - 1].isalnum():
        end -= 1
    return start, end


def put(text: str, spans: Sequence[tuple[int, int]], anchors: Sequence[str]) -> str:
    """The text with an anchor, or "" to delete, in place of each span; articles before them set right."""
    for (start, end), anchor in sorted(zip(spans, anchors, strict=True), reverse=True):
        head, tail = text[:start], text[end:]
        if not anchor:
            text = (head.rstrip() + " " + tail.lstrip() if tail[:1] in ("", " ") else head.rstrip() + tail).strip()
            continue
        article = _ARTICLE.search(head)
        if article:
            head, anchor = head[: article.start()], fix_articles(article[0] + anchor)
        text = head + anchor + tail
    return text
