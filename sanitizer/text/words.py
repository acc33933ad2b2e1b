"""The words of a prompt with their scores: tokens joined to words, whatever the tokenizer cut."""

import re
from bisect import bisect_left
from collections.abc import Collection, Sequence
from dataclasses import dataclass

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

    tokens, offsets and token_scores (L, K) are one prompt's, as TextEncoder and Scores give them; names are the K
    concepts. Text without a space in it is one word. All of the prompt's text is in a word; one that no token covers,
    such as a character that the tokenizer drops, scores 0.
    """
    values = token_scores.tolist() if hasattr(token_scores, "tolist") else token_scores
    found = [match.span() for match in _WORD.finditer(text)]
    ends = [end for _, end in found]
    scores = [[0.0] * len(names) for _ in found]
    for token, (start, end), own in zip(tokens, offsets, values, strict=True):
        if not token or start >= end:
            continue
        # The first word that ends behind the token's start. A token may hold the space before its word, or several.
        at = bisect_left(ends, start + 1)
        while at < len(found) and found[at][0] < end:
            scores[at] = [max(pair) for pair in zip(scores[at], own, strict=True)]
            at += 1
    return [
        Word(text[start:end], start, end, dict(zip(names, own, strict=True)))
        for (start, end), own in zip(found, scores, strict=True)
    ]
