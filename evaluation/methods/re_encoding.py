"""Re-encoding: words at fault replaced by a safe anchor, the prompt encoded again, the erase net for what remains.

A pure function of encoder, sanitizer, anchors and prompts; it needs the text, where the sanitizer alone needs rows.
What comes out is on the encoder's own manifold, for it is the encoding of a prompt. Shapes: B prompts, B' flagged ones,
L' rows of a rewritten prompt, D channels, P pooled channels, K concepts.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from sanitizer.concepts import Concept, Pair
from sanitizer.encoders import Encoding, TextEncoder
from sanitizer.heatmap import Word, words
from sanitizer.model import THRESHOLD, EmbeddingSanitizer
from sanitizer.templates import fix_articles

from .substitution import encode

ROUNDS = 3
"""Times that a prompt is rewritten at most."""
WORDS = (0.5, 0.8, 0.9, 0.97)
"""Scores from which a word is at fault; each gives candidates of its own. Words beside those at fault score, too."""
NEAREST = 2
"""Targets whose own anchors are tried."""
MARGIN, SLOPE = -5.0, 0.1
"""Logits below the threshold from which on a candidate is judged by its nearness alone, and what a logit above that
costs, in cosines. Held-out pairs, one half of them: the highest share clean, nearer to their twin and told apart."""
REST = 0.001
"""Score from which the erase net acts on a rewritten prompt."""
_ARTICLE = re.compile(r"\b[Aa]n? $")


class ReEncoded(NamedTuple):
    prompts: list[str]
    """As they were encoded; those not flagged as they came."""
    encoding: Encoding
    """Of the flagged prompts only, rewritten (B', L')."""
    rows: Tensor
    """(B', L', D) of the flagged ones, after the erase net."""
    pooled: Tensor | None
    flagged: Tensor
    """(B,) bool, before anything was rewritten."""
    left: Tensor
    """(B',) bool: the erase net acted on what remained."""


@dataclass(frozen=True)
class Anchors:
    """The pairs of a concept, with their targets as the encoder sees them."""

    pairs: list[Pair]
    vectors: Tensor
    """(N, D) of unit length: the mean text row of each target by itself, normalised as the sanitizer does."""

    @classmethod
    def build(
        cls, encoder: TextEncoder, sanitizer: EmbeddingSanitizer, concepts: Sequence[Concept], held_out: bool = True
    ) -> "Anchors":
        """Encode all targets. held_out False: without the pairs that are kept from training."""
        pairs = [pair for concept in concepts for pair in concept.pairs if held_out or not pair.held_out]
        return cls(pairs, _vectors(encoder, sanitizer, [pair.target for pair in pairs]))

    def nearest(self, vectors: Tensor, count: int) -> list[list[Pair]]:
        """For each of (M, D) the pairs whose targets are the nearest by cosine, nearest first."""
        found = (vectors @ self.vectors.T).topk(min(count, len(self.pairs)), dim=1).indices
        return [[self.pairs[i] for i in own] for own in found.tolist()]


def re_encode(
    encoder: TextEncoder,
    sanitizer: EmbeddingSanitizer,
    anchors: Anchors,
    prompts: Sequence[str],
    encoding: Encoding,
    *,
    concepts: Sequence[str] | None = None,
    threshold: float | None = None,
    strength: float = 1.0,
    rounds: int = ROUNDS,
) -> ReEncoded:
    """Rewrite the prompts that are flagged, at most `rounds` times, until they are not, and erase what remains.

    encoding: of the prompts, as the encoder gives it. concepts, threshold and strength as for
    EmbeddingSanitizer.sanitize; strength is the erase net's. Candidates for a prompt have the words at fault replaced,
    all in one manner: by the anchor of the nearest target, by the canonical anchor of its group, or by nothing. Taken
    is the one whose mean row is nearest to the original's, less SLOPE for each logit that its score lies above MARGIN.
    """
    chosen = list(sanitizer.erasable if concepts is None else concepts)
    verdict = _judge(sanitizer, encoding, chosen, threshold)
    flagged = verdict.flagged
    index = flagged.nonzero().squeeze(1).tolist()
    texts, now = list(prompts), _select(encoding, index)
    if not index:
        return ReEncoded(texts, now, now.rows, now.pooled, flagged, flagged[:0])
    verdict = verdict.select(index)
    original = _mean_rows(sanitizer, now)
    for _ in range(rounds):
        left = verdict.flagged.nonzero().squeeze(1).tolist()
        found = {i: texts[index[i]] for i in left}
        tried = _candidates(encoder, sanitizer, anchors, found, now, verdict)
        if not tried:
            break
        new = encode(encoder, [text for _, text in tried])
        judged = _judge(sanitizer, new, chosen, threshold)
        near = F.cosine_similarity(_mean_rows(sanitizer, new), original[[i for i, _ in tried]], dim=-1)
        worth = near - SLOPE * (judged.above - MARGIN).clamp_min(0)
        for i in left:
            own = [c for c, (place, _) in enumerate(tried) if place == i]
            if own:
                texts[index[i]] = tried[max(own, key=worth.tolist().__getitem__)][1]
        now = encode(encoder, [texts[b] for b in index])
        verdict = _judge(sanitizer, now, chosen, threshold)
    rest = min(REST, THRESHOLD if threshold is None else threshold)
    out = sanitizer.sanitize(now.rows, now.mask, now.pooled, strength=strength, threshold=rest, concepts=chosen)
    return ReEncoded(texts, now, out.rows, out.pooled, flagged, out.flagged)


class _Verdict(NamedTuple):
    flagged: Tensor
    above: Tensor
    """(B,): logits by which the highest score of a chosen concept lies above the threshold."""
    tokens: Tensor
    """(B, L, K) of the chosen concepts."""
    names: list[str]

    def select(self, index: list[int]) -> "_Verdict":
        return _Verdict(self.flagged[index], self.above[index], self.tokens[index], self.names)


def _judge(sanitizer: EmbeddingSanitizer, e: Encoding, chosen: list[str], threshold: float | None) -> _Verdict:
    out = sanitizer.sanitize(e.rows, e.mask, e.pooled, strength=0.0, threshold=threshold, concepts=chosen)
    at = [sanitizer.concepts.index(name) for name in chosen]
    score = out.scores.prompt[:, at].amax(1)
    limit = torch.full_like(score, THRESHOLD if threshold is None else threshold)
    return _Verdict(out.flagged, score.logit(eps=1e-6) - limit.logit(eps=1e-6), out.scores.tokens[..., at], chosen)


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


def _candidates(
    encoder: TextEncoder,
    sanitizer: EmbeddingSanitizer,
    anchors: Anchors,
    texts: dict[int, str],
    now: Encoding,
    verdict: _Verdict,
) -> list[tuple[int, str]]:
    """(place, what its text may become), every one once; texts: place -> text."""
    wanted = []
    for i, text in texts.items():
        found = words(text, now.tokens[i], now.offsets[i], verdict.tokens[i], verdict.names)
        spans = dict.fromkeys(tuple(find_spans(found, text, score)) for score in WORDS)
        wanted += [(i, own) for own in spans if own]
    parts = list(dict.fromkeys(texts[i][start:end] for i, own in wanted for start, end in own))
    if not parts:
        return []
    near = dict(zip(parts, anchors.nearest(_vectors(encoder, sanitizer, parts), NEAREST), strict=True))
    tried: dict[tuple[int, str], None] = {}
    for i, own in wanted:
        pairs = [near[texts[i][start:end]] for start, end in own]
        manners = [[found[min(rank, len(found) - 1)].anchor for found in pairs] for rank in range(NEAREST)]
        manners += [[found[0].canonical for found in pairs], [""] * len(pairs)]
        for manner in manners:
            new = put(texts[i], own, manner)
            if new and new != texts[i]:
                tried[i, new] = None
    return list(tried)


def _mean_rows(sanitizer: EmbeddingSanitizer, e: Encoding) -> Tensor:
    """(B, D): mean of the normalised rows that carry the prompt."""
    rows = e.rows.float()
    weight = (e.mask & ~sanitizer.is_constant(rows)).float()
    mean = (sanitizer.normalise(rows) * weight[..., None]).sum(1)
    return mean / weight.sum(1, keepdim=True).clamp_min(1)


def _vectors(encoder: TextEncoder, sanitizer: EmbeddingSanitizer, texts: Sequence[str]) -> Tensor:
    """(N, D) of unit length: the mean text row of each text by itself."""
    e = encode(encoder, texts)
    text = torch.tensor([[bool(token) for token in own] for own in e.tokens]).to(e.rows.device) & e.mask
    rows = sanitizer.normalise(e.rows.float()) * text[..., None]
    return F.normalize(rows.sum(1) / text.sum(1, keepdim=True).clamp_min(1), dim=-1)


def _select(e: Encoding, index: Sequence[int]) -> Encoding:
    at = list(index)
    return Encoding(e.rows[at], e.mask[at], _at(e.pooled, at), [e.tokens[i] for i in at], [e.offsets[i] for i in at])


def _at(values: Tensor | None, index: list[int]) -> Tensor | None:
    return None if values is None else values[index]
