"""Which row of the anchor prompt stands for which row of the target prompt, in any tokenizer.

Text rows align by the difference of the token strings; rows without text (start, end, padding) by position.
"""

from collections.abc import Sequence
from difflib import SequenceMatcher
from itertools import groupby


def align(target: Sequence[str], anchor: Sequence[str]) -> tuple[list[int], list[bool]]:
    """Align two lists of token strings ("" for a row without text).

    Returns for each row of the target the row of the anchor that stands for it, -1 for none, and whether the row's
    token differs between the two: those rows are the phrase at fault.
    """
    places = [-1] * len(target)
    differs = [False] * len(target)
    runs, anchor_runs = _runs(target), _runs(anchor)
    if [text for text, _, _ in runs] != [text for text, _, _ in anchor_runs]:
        # The runs do not correspond (an empty prompt, say): only the difference of the whole can be trusted.
        runs, anchor_runs = [(True, 0, len(target))], [(True, 0, len(anchor))]
    for (text, first, last), (_, anchor_first, anchor_last) in zip(runs, anchor_runs, strict=True):
        if text:
            _align_text(target, anchor, (first, last), (anchor_first, anchor_last), places, differs)
            continue
        for row in range(first, last):
            # The end token aligns with the end token, padding with padding in the same place.
            place = anchor_first if row == first else max(row, anchor_first + 1)
            places[row] = place if place < anchor_last else -1
    return places, differs


def _runs(tokens: Sequence[str]) -> list[tuple[bool, int, int]]:
    """Runs of rows with and without text: (has text, first, past last)."""
    runs, at = [], 0
    for text, group in groupby(tokens, key=bool):
        length = len(list(group))
        runs.append((text, at, at + length))
        at += length
    return runs


def _align_text(target, anchor, span, anchor_span, places: list[int], differs: list[bool]) -> None:
    (first, last), (anchor_first, anchor_last) = span, anchor_span
    matcher = SequenceMatcher(None, target[first:last], anchor[anchor_first:anchor_last], autojunk=False)
    for tag, i1, i2, j1, j2 in matcher.get_opcodes():
        for i in range(i1, i2):
            if tag == "equal":
                places[first + i] = anchor_first + j1 + i - i1
                continue
            differs[first + i] = True
            # Where lengths differ, the rows share the anchor's rows evenly; where nothing stands in the anchor prompt,
            # it is its next row, else its last.
            shared = j1 + (i - i1) * (j2 - j1) // (i2 - i1)
            places[first + i] = anchor_first + min(shared, anchor_last - anchor_first - 1)
