"""The baselines of all baselines: the prompt as it is, and a list of forbidden words, what most services began with."""

import re
from collections import Counter

import torch
from torch import Tensor

from ..types import FALSE_POSITIVES, Batch, Development, Treated, untouched
from .common import EmptyPrompt

WORD = re.compile(r"\w+(?:[-']\w+)*")
RARE = 2
"""Times that a single word must stand in target phrases to be listed by itself."""


class NoMethod:
    """Changes nothing, detects nothing."""

    name = "none"
    title = "No method"
    source = "-"

    def fit(self, development: Development) -> None:
        """Nothing to tune."""

    def score(self, batch: Batch) -> Tensor | None:
        """No score."""

    def token_scores(self, batch: Batch) -> Tensor | None:
        """No score."""

    def apply(self, batch: Batch, strength: float = 1.0) -> Treated:
        """The batch's own tensors."""
        return untouched(batch)


class WordList:
    """Target phrases, and words that stand in target phrases and in no harmless text, looked for letter by letter.

    A prompt that holds one of them is replaced by the empty prompt. An entry that touches calibration prompts is
    struck off, the worst first, until at most FALSE_POSITIVES of them are touched.
    """

    name = "word_list"
    title = "Word list"
    source = "text-match filter, as in SneakyPrompt, arXiv 2305.12082, section 5 (NSFW word list)"

    def fit(self, development: Development) -> None:
        """Compile the list."""
        d = development
        harmless = {word for text in (*d.safe, *d.benign, *d.anchors) for word, _ in _words(text)}
        counts = Counter(word for text in d.phrases for word in {w for w, _ in _words(text)})
        phrases = {tuple(w for w, _ in _words(text)) for text in d.phrases}
        single = {(word,) for word, count in counts.items() if count >= RARE and word not in harmless}
        self.entries = {entry for entry in phrases if len(entry) > 1 or entry[0] not in harmless} | single
        self.longest = max(map(len, self.entries), default=1)
        hits = [{entry for entry, _ in self._found(text)} for text in d.calibration]
        while sum(map(bool, hits)) > int(FALSE_POSITIVES * len(hits)):
            worst = Counter(entry for own in hits for entry in own).most_common(1)[0][0]
            self.entries.discard(worst)
            hits = [own - {worst} for own in hits]
        self.empty = EmptyPrompt(d.encoder)

    def score(self, batch: Batch) -> Tensor:
        """Entries found in the prompt."""
        return torch.tensor([float(len(self._found(text))) for text in batch.prompts])

    def token_scores(self, batch: Batch) -> Tensor:
        """1 for a token in an entry."""
        scores = torch.zeros(batch.encoding.mask.shape)
        for b, text in enumerate(batch.prompts):
            spans = [span for _, span in self._found(text)]
            for place, (token, (start, end)) in enumerate(
                zip(batch.encoding.tokens[b], batch.encoding.offsets[b], strict=True)
            ):
                if token and any(start < last and end > first for first, last in spans):
                    scores[b, place] = 1.0
        return scores

    @torch.no_grad()
    def apply(self, batch: Batch, strength: float = 1.0) -> Treated:
        """The empty prompt for one with an entry in it."""
        return self.empty.replace(batch, self.score(batch) > 0, strength)

    def _found(self, text: str) -> list[tuple[tuple[str, ...], tuple[int, int]]]:
        """Entries in the text, with their characters."""
        words = _words(text)
        found = []
        for first in range(len(words)):
            for last in range(first + 1, min(first + self.longest, len(words)) + 1):
                entry = tuple(word for word, _ in words[first:last])
                if entry in self.entries:
                    found.append((entry, (words[first][1][0], words[last - 1][1][1])))
        return found


def _words(text: str) -> list[tuple[str, tuple[int, int]]]:
    return [(match[0].lower(), match.span()) for match in WORD.finditer(text)]
