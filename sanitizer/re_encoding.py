"""Re-encoding: words at fault replaced by a safe anchor, the prompt encoded again, the erase net for what remains.

It needs the text and the encoder, where the sanitizer alone needs rows. What comes out is near the encoder's own
manifold, for it is the encoding of a prompt. Shapes: B prompts, B' flagged ones, L rows, L' rows of the longest prompt
before or after, D channels, P pooled channels, K concepts.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .anchors import Anchors, text_vectors
from .concepts import Pair
from .encoders.base import Encoding, TextEncoder
from .errors import SanitizerError
from .heatmap import Word, words
from .joining import blend, encode, exchanged, select
from .model import MAX_STRENGTH, THRESHOLD, EmbeddingSanitizer, Scores
from .rewording import find_spans, put
from .second_reading import NOTHING, SecondReading

AT_ONCE = 8
"""Flagged prompts that are rewritten together; each has several candidates, whose rows are held at once."""
ROUNDS = 3
"""Times that a prompt is rewritten at most. The first is nearly always enough."""
WORDS = (0.5, 0.9, 0.97)
"""Scores from which a word is at fault; each gives candidates of its own. Words beside those at fault score, too."""
MARGIN, SLOPE = -6.0, 0.1
"""Logits below the threshold from which on a candidate is judged by its nearness alone, and what a logit above that
costs, in cosines."""
REST = 0.01
"""Score from which the erase net acts on a rewritten prompt in full."""
FINISH = 0.6
"""Share of the strength with which it acts on every other rewritten prompt: a probe finds traces that scores do not
show. Half would leave more of them, all of it costs most of the nearness that re-encoding gains. Chosen, as the values
above, on held-out pairs of violence, shocking, self-harm and hate, on both embedded encoders."""


class ReEncoded(NamedTuple):
    rows: Tensor
    """(B, L', D), dtype and device of the input. A prompt that was not flagged has its rows bit for bit; where none
    was, or at strength 0, these are the very tensors that came in."""
    mask: Tensor
    """(B, L') bool: the rows may have moved."""
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
    """A sanitizer with its encoder and the anchors of its concepts."""

    def __init__(self, encoder: TextEncoder, sanitizer: EmbeddingSanitizer, anchors: Anchors) -> None:
        self.encoder, self.sanitizer, self.anchors = encoder, sanitizer, anchors

    def sanitize(
        self,
        prompts: Sequence[str],
        encoding: Encoding,
        *,
        strength: float = 1.0,
        threshold: float | None = None,
        concepts: Iterable[str] | None = None,
        reading: SecondReading = NOTHING,
    ) -> ReEncoded:
        """Sanitize the prompts that are flagged, leave all others bit for bit.

        encoding: of the prompts, as the encoder gives it. threshold and concepts as for EmbeddingSanitizer.sanitize,
        and the same errors. strength 0 changes nothing, 1 is the rewritten prompt, what lies between is on the way from
        one to the other; past 1 the erase net acts with that strength on what remains. reading: of the prompts, see
        :func:`.second_reading.second_reading`; a prompt whose reading is what is unsafe is rewritten from its reading.
        """
        if not 0 <= strength <= MAX_STRENGTH:
            raise SanitizerError(f"Strength: expected a number from 0 to {MAX_STRENGTH:g}, found {strength}.")
        chosen = list(self.sanitizer.erasable if concepts is None else concepts)
        first = self.sanitizer.sanitize(
            encoding.rows, encoding.mask, encoding.pooled,
            strength=0.0, threshold=threshold, concepts=chosen, also=reading.scores,
        )  # fmt: skip
        index = first.flagged.nonzero().squeeze(1).tolist()
        left = torch.zeros_like(first.flagged)
        given = ReEncoded(
            encoding.rows, encoding.mask, encoding.pooled, first.scores, first.flagged, first.fired, list(prompts), left
        )
        if strength == 0 or not index:
            return given
        out = encoding
        for first_place in range(0, len(index), AT_ONCE):
            part = index[first_place : first_place + AT_ONCE]
            before = select(encoding, part)
            texts, after = self._rewritten([prompts[b] for b in part], before, chosen, threshold, _own(reading, part))
            after, left[part] = self._erased(after, chosen, max(1.0, strength), threshold)
            out = exchanged(out, part, blend(before, after, min(1.0, strength)))
            for b, text in zip(part, texts, strict=True):
                given.prompts[b] = text
        return given._replace(rows=out.rows, mask=out.mask, pooled=out.pooled)

    def _rewritten(
        self, texts: list[str], e: Encoding, chosen: list[str], threshold: float | None, reading: SecondReading
    ) -> tuple[list[str], Encoding]:
        """Flagged prompts, rewritten at most ROUNDS times, until none is flagged.

        Candidates for a prompt have the words at fault replaced, all in one manner: by the anchor of the nearest
        target, by the canonical anchor of its group, or by nothing. Taken is the one whose mean row is nearest to the
        original's, less SLOPE for each logit that its score lies above MARGIN.
        """
        now, verdict = e, self._judge(e, chosen, threshold)
        begun = self._begun(verdict, reading, chosen, threshold)
        if begun:
            texts = [begun.get(i, text) for i, text in enumerate(texts)]
            now = encode(self.encoder, texts)
            verdict = self._judge(now, chosen, threshold)
        original = self._mean_rows(now)
        # Each was flagged, be it by a reading that another concept's score came with.
        at = list(range(len(texts)))
        for _ in range(ROUNDS):
            tried = self._candidates({i: texts[i] for i in at}, now, verdict, chosen)
            if not tried:
                break
            new = encode(self.encoder, [text for _, text in tried])
            judged = self._judge(new, chosen, threshold)
            near = F.cosine_similarity(self._mean_rows(new), original[[i for i, _ in tried]], dim=-1)
            worth = (near - SLOPE * (judged.above - MARGIN).clamp_min(0)).tolist()
            taken = {}
            for c, (i, _) in enumerate(tried):
                if i not in taken or worth[c] > worth[taken[i]]:
                    taken[i] = c
            for i, c in taken.items():
                texts[i] = tried[c][1]
            now = exchanged(now, list(taken), select(new, list(taken.values())))
            verdict = self._judge(now, chosen, threshold)
            at = verdict.flagged.nonzero().squeeze(1).tolist()
            if not at:
                break
        return texts, now

    def _erased(
        self, e: Encoding, chosen: list[str], strength: float, threshold: float | None
    ) -> tuple[Encoding, Tensor]:
        """Rewritten prompts after the erase net, and (B',) where the concept was still seen."""
        rest = min(REST, THRESHOLD if threshold is None else threshold)
        given = {"mask": e.mask, "pooled": e.pooled, "concepts": chosen}
        full = self.sanitizer.sanitize(e.rows, **given, strength=strength, threshold=rest)
        light = self.sanitizer.sanitize(e.rows, **given, strength=FINISH * strength, threshold=0.0)
        seen = full.flagged.to(e.rows.device)
        pooled = e.pooled
        if pooled is not None:
            pooled = torch.where(full.flagged.to(pooled.device)[:, None], full.pooled, light.pooled)
        return replace(e, rows=torch.where(seen[:, None, None], full.rows, light.rows), pooled=pooled), full.flagged

    def _begun(
        self, verdict: "_Verdict", reading: SecondReading, chosen: list[str], threshold: float | None
    ) -> dict[int, str]:
        """Place -> reading of the prompts that are rewritten from it: it is unsafe, or more so than what is written."""
        if reading.scores is None:
            return {}
        read = self._above(reading.scores, chosen, threshold)
        return {i: text for i, text in reading.texts.items() if read[i] >= min(0.0, float(verdict.above[i]))}

    def _judge(self, e: Encoding, chosen: list[str], threshold: float | None) -> "_Verdict":
        out = self.sanitizer.sanitize(e.rows, e.mask, e.pooled, strength=0.0, threshold=threshold, concepts=chosen)
        return _Verdict(out.flagged, self._above(out.scores.prompt, chosen, threshold), out.scores.tokens)

    def _above(self, prompt: Tensor, chosen: list[str], threshold: float | None) -> Tensor:
        """(B, K) -> (B,): logits by which the highest score of a chosen concept lies above the threshold."""
        score = prompt[:, self._places(chosen)].amax(1)
        limit = torch.full_like(score, THRESHOLD if threshold is None else threshold)
        return score.logit(eps=1e-6) - limit.logit(eps=1e-6)

    def _places(self, chosen: list[str]) -> list[int]:
        return [self.sanitizer.concepts.index(name) for name in chosen]

    def _candidates(
        self, texts: dict[int, str], now: Encoding, verdict: "_Verdict", chosen: list[str]
    ) -> list[tuple[int, str]]:
        """(place, what its text may become), every one once; texts: place -> text."""
        at = self._places(chosen)
        wanted: list[tuple[int, list[tuple[int, int]], list[str]]] = []
        for i, text in texts.items():
            found = words(text, now.tokens[i], now.offsets[i], verdict.tokens[i][:, at], chosen)
            for spans in dict.fromkeys(tuple(find_spans(found, text, score)) for score in WORDS):
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
            pairs = self.anchors.nearest(concept, text_vectors(self.anchors.encoder, self.sanitizer, own))
            found |= {(concept, phrase): pair for phrase, pair in zip(own, pairs, strict=True)}
        return found

    def _mean_rows(self, e: Encoding) -> Tensor:
        """(B, D): mean of the normalised rows that carry the prompt."""
        sanitizer = self.sanitizer
        rows = e.rows.to(sanitizer.mean.device, torch.float32)
        weight = (e.mask.to(rows.device) & ~sanitizer.is_constant(rows)).float()
        mean = (sanitizer.normalise(rows) * weight[..., None]).sum(1)
        return mean / weight.sum(1, keepdim=True).clamp_min(1)


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


def _own(reading: SecondReading, index: Sequence[int]) -> SecondReading:
    """Of the prompts of index, by their places in it."""
    if reading.scores is None:
        return reading
    texts = {i: reading.texts[b] for i, b in enumerate(index) if b in reading.texts}
    return SecondReading(texts, reading.scores[list(index)], {})
