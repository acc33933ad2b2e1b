"""Re-encoding: words at fault replaced by a safe anchor, the prompt encoded again, the erase net for what remains.

It needs the text and the encoder, where the sanitizer alone needs embeddings. What comes out is near the encoder's own
manifold, for it is the encoding of a prompt. Shapes: B prompts, B' flagged ones, L token embeddings, L' of the longest
prompt before or after, D channels, P pooled channels, K concepts. The constants are in
:class:`.model.config.RewriteConfig`.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..encoders.alignment import lerp
from ..encoders.base import Encoding, TextEncoder, encode_all
from ..model.config import MAX_STRENGTH, THRESHOLD, check_number
from ..model.gate import amount, margins
from ..model.sanitizer import EmbeddingSanitizer, Scores
from ..prompts.concepts import Pair
from ..prompts.templates import fix_articles
from .deobfuscate import AS_WRITTEN, Deobfuscated
from .replacements import Replacements
from .words import Word, words

AT_ONCE = 8
"""Flagged prompts that are rewritten together; each has several candidates, whose embeddings are held at once."""
_ARTICLE = re.compile(r"\b[Aa]n? $")


class ReEncoded(NamedTuple):
    embeddings: Tensor
    """(B, L', D), dtype and device of the input. A prompt that was not flagged has its own bit for bit; where none
    was, or at strength 0, these are the very tensors that came in."""
    mask: Tensor
    """(B, L') bool: the tokens may have moved."""
    pooled: Tensor | None
    """(B, P) or None."""
    scores: Scores
    """Of the prompts as they came, the higher one where they read differently."""
    flagged: Tensor
    """(B,) bool: a chosen concept reached its threshold."""
    fired: Tensor
    """(B, K) bool: which ones."""
    prompts: list[str]
    """As they were encoded at last."""
    left: Tensor
    """(B,) bool: the erase net acted on what remained."""


class ReEncoder:
    """A sanitizer with its encoder and the replacements of its concepts."""

    def __init__(self, encoder: TextEncoder, sanitizer: EmbeddingSanitizer, replacements: Replacements) -> None:
        self.encoder, self.sanitizer, self.replacements = encoder, sanitizer, replacements
        self.config = sanitizer.config.rewrite

    def sanitize(
        self,
        prompts: Sequence[str],
        encoding: Encoding,
        *,
        strength: float = 1.0,
        threshold: float | None = None,
        concepts: Iterable[str] | None = None,
        reading: Deobfuscated = AS_WRITTEN,
    ) -> ReEncoded:
        """Sanitize the prompts that are flagged, leave all others bit for bit.

        encoding: of the prompts, as the encoder gives it. threshold and concepts as for EmbeddingSanitizer.sanitize,
        and the same errors. strength 0 changes nothing, 1 is the rewritten prompt, what lies between is on the way from
        one to the other; past 1 the erase net acts with that strength on what remains. reading: of the prompts, see
        :func:`.deobfuscate.deobfuscated`; a prompt whose reading is what is unsafe is rewritten from its reading.
        """
        check_number("Strength", strength, 0, MAX_STRENGTH)
        chosen = list(self.sanitizer.erasable if concepts is None else concepts)
        first = self.sanitizer.sanitize(
            encoding.embeddings, encoding.mask, encoding.pooled,
            strength=0.0, threshold=threshold, concepts=chosen, also=reading.scores, trusted=True,
        )  # fmt: skip
        index: list[int] = first.flagged.nonzero().squeeze(1).tolist()
        left = torch.zeros_like(first.flagged)
        given = ReEncoded(
            encoding.embeddings,
            encoding.mask,
            encoding.pooled,
            first.scores,
            first.flagged,
            first.fired,
            list(prompts),
            left,
        )
        if strength == 0 or not index:
            return given
        out = encoding
        for first_place in range(0, len(index), AT_ONCE):
            part = index[first_place : first_place + AT_ONCE]
            before = encoding.select(part)
            texts, after = self._rewritten([prompts[b] for b in part], before, chosen, threshold, _own(reading, part))
            after, left[part] = self._erased(after, chosen, max(1.0, strength), threshold)
            out = out.scatter(part, lerp(before, after, min(1.0, amount(self.sanitizer.config, strength))))
            for b, text in zip(part, texts, strict=True):
                given.prompts[b] = text
        return given._replace(embeddings=out.embeddings, mask=out.mask, pooled=out.pooled)

    def _rewritten(
        self, texts: list[str], e: Encoding, chosen: list[str], threshold: float | None, reading: Deobfuscated
    ) -> tuple[list[str], Encoding]:
        """Flagged prompts, rewritten at most `rounds` times, until none is flagged.

        Candidates for a prompt have the words at fault replaced, all in one manner: by the anchor of the nearest
        target, by the canonical anchor of its group, or by nothing. Taken is the one whose mean embedding is nearest to
        the original's, less `slope` for each logit that its score lies above `margin`.
        """
        now, verdict = e, self._judge(e, chosen, threshold)
        begun = self._begun(verdict, reading, chosen, threshold)
        if begun:
            texts = [begun.get(i, text) for i, text in enumerate(texts)]
            now = encode_all(self.encoder, texts)
            verdict = self._judge(now, chosen, threshold)
        original = self._vectors(now)
        # Each was flagged, be it by a reading that another concept's score came with.
        at = list(range(len(texts)))
        for _ in range(self.config.rounds):
            tried = self._candidates({i: texts[i] for i in at}, now, verdict, chosen)
            if not tried:
                break
            new = encode_all(self.encoder, [text for _, text in tried])
            judged = self._judge(new, chosen, threshold)
            near = F.cosine_similarity(self._vectors(new), original[[i for i, _ in tried]], dim=-1)
            worth = (near - self.config.slope * (judged.above - self.config.margin).clamp_min(0)).tolist()
            taken = {}
            for c, (i, _) in enumerate(tried):
                if i not in taken or worth[c] > worth[taken[i]]:
                    taken[i] = c
            for i, c in taken.items():
                texts[i] = tried[c][1]
            now = now.scatter(list(taken), new.select(list(taken.values())))
            verdict = self._judge(now, chosen, threshold)
            at = verdict.flagged.nonzero().squeeze(1).tolist()
            if not at:
                break
        return texts, now

    def _erased(
        self, e: Encoding, chosen: list[str], strength: float, threshold: float | None
    ) -> tuple[Encoding, Tensor]:
        """Rewritten prompts after the erase net, and (B',) where the concept was still seen."""
        rest = min(self.config.rest, THRESHOLD if threshold is None else threshold)
        given = {"mask": e.mask, "pooled": e.pooled, "concepts": chosen, "trusted": True}
        full = self.sanitizer.sanitize(e.embeddings, **given, strength=strength, threshold=rest)
        light = self.sanitizer.sanitize(e.embeddings, **given, strength=self.config.finish * strength, threshold=0.0)
        seen = full.flagged.to(e.embeddings.device)
        pooled = e.pooled
        if full.pooled is not None and light.pooled is not None:
            pooled = torch.where(full.flagged.to(full.pooled.device)[:, None], full.pooled, light.pooled)
        embeddings = torch.where(seen[:, None, None], full.embeddings, light.embeddings)
        return replace(e, embeddings=embeddings, pooled=pooled), full.flagged

    def _begun(
        self, verdict: "_Verdict", reading: Deobfuscated, chosen: list[str], threshold: float | None
    ) -> dict[int, str]:
        """Place -> reading of the prompts that are rewritten from it: it is unsafe, or more so than what is written."""
        if reading.scores is None:
            return {}
        read = self._above(reading.scores, chosen, threshold)
        return {i: text for i, text in reading.texts.items() if read[i] >= min(0.0, float(verdict.above[i]))}

    def _judge(self, e: Encoding, chosen: list[str], threshold: float | None) -> "_Verdict":
        out = self.sanitizer.sanitize(
            e.embeddings, e.mask, e.pooled, strength=0.0, threshold=threshold, concepts=chosen, trusted=True
        )
        return _Verdict(out.flagged, self._above(out.scores.prompt, chosen, threshold), out.scores.tokens)

    def _above(self, prompt: Tensor, chosen: list[str], threshold: float | None) -> Tensor:
        """(B, K) -> (B,): logits by which the highest score of a chosen concept lies above its limit."""
        return margins(self.sanitizer.config, prompt, threshold)[:, self.sanitizer.places(chosen)].amax(1)

    def _candidates(
        self, texts: dict[int, str], now: Encoding, verdict: "_Verdict", chosen: list[str]
    ) -> list[tuple[int, str]]:
        """(place, what its text may become), every one once; texts: place -> text."""
        at = self.sanitizer.places(chosen)
        wanted: list[tuple[int, list[tuple[int, int]], list[str]]] = []
        for i, text in texts.items():
            found = words(text, now.tokens[i], now.offsets[i], verdict.tokens[i][:, at], chosen)
            for spans in dict.fromkeys(tuple(find_spans(found, text, score)) for score in self.config.word_scores):
                concepts = [_concept(found, span, chosen) for span in spans]
                wanted += [(i, list(spans), concepts)] if spans else []
        parts = {(c, texts[i][a:b]) for i, spans, own in wanted for (a, b), c in zip(spans, own, strict=True)}
        near = self._nearest(parts)
        tried: dict[tuple[int, str], None] = {}
        for i, spans, concepts in wanted:
            pairs = [near[c, texts[i][a:b]] for (a, b), c in zip(spans, concepts, strict=True)]
            for manner in ([p.anchor for p in pairs], [p.canonical for p in pairs], [""] * len(pairs)):
                new = put(texts[i], spans, manner)
                if new and new != texts[i]:
                    tried[i, new] = None
        return list(tried)

    def _nearest(self, phrases: set[tuple[str, str]]) -> dict[tuple[str, str], Pair]:
        """(concept, phrase) -> the pair of the concept with the target nearest to the phrase."""
        found: dict[tuple[str, str], Pair] = {}
        for concept in sorted({concept for concept, _ in phrases}):
            own = sorted(phrase for name, phrase in phrases if name == concept)
            pairs = self.replacements.nearest(concept, self.replacements.embed(own))
            found |= {(concept, phrase): pair for phrase, pair in zip(own, pairs, strict=True)}
        return found

    def _vectors(self, e: Encoding) -> Tensor:
        """(B, D): see :meth:`.normalizer.Normalizer.mean_embedding`."""
        return self.sanitizer.normalizer.mean_embedding(e.embeddings, e.mask)


class _Verdict(NamedTuple):
    flagged: Tensor
    """(B,) bool."""
    above: Tensor
    """(B,), see _above."""
    tokens: Tensor
    """(B, L, K)."""


def _concept(found: Sequence[Word], span: tuple[int, int], chosen: Sequence[str]) -> str:
    """The concept that the words in a span score highest in."""
    inside = [word for word in found if word.start < span[1] and word.end > span[0]]
    return max(chosen, key=lambda name: max((word.scores[name] for word in inside), default=0.0))


def _own(reading: Deobfuscated, index: Sequence[int]) -> Deobfuscated:
    """Of the prompts of index, by their places in it."""
    if reading.scores is None:
        return reading
    texts = {i: reading.texts[b] for i, b in enumerate(index) if b in reading.texts}
    return Deobfuscated(texts, reading.scores[list(index)], {})


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
