"""Which embedding of one prompt stands for which embedding of another, in any tokenizer.

Embeddings of text align by the difference of the token strings; those without text (start, end, padding) by position.
"""

from collections.abc import Sequence
from dataclasses import replace
from difflib import SequenceMatcher
from itertools import groupby

import torch
from torch import Tensor

from .base import Encoding


def align(target: Sequence[str], anchor: Sequence[str]) -> tuple[list[int], list[bool]]:
    """Align two lists of token strings ("" for an embedding without text).

    Returns for each place of the target the place in the anchor that stands for it, -1 for none, and whether its token
    differs between the two: those are the phrase at fault.
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
        for at in range(first, last):
            # The end token aligns with the end token, padding with padding in the same place.
            place = anchor_first if at == first else max(at, anchor_first + 1)
            places[at] = place if place < anchor_last else -1
    return places, differs


def _runs(tokens: Sequence[str]) -> list[tuple[bool, int, int]]:
    """Runs of places with and without text: (has text, first, past last)."""
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
            # Where lengths differ, they share the anchor's places evenly; where nothing stands in the anchor prompt, it
            # is its next place, else its last.
            shared = j1 + (i - i1) * (j2 - j1) // (i2 - i1)
            places[first + i] = anchor_first + min(shared, anchor_last - anchor_first - 1)


def lerp(before: Encoding, after: Encoding, strength: float) -> Encoding:
    """Token embeddings and pooled vectors on the line from one encoding of prompts to another.

    The partner of an embedding is the one of the other prompt that stands for it, see :func:`align`. Below strength 1
    the prompt has the places of `before`, from 1 on those of `after`, so that strength 1 is `after` itself.
    """
    base, other = (before, after) if strength < 1 else (after, before)
    share = strength if strength < 1 else 1 - strength
    embeddings = base.embeddings
    if share:
        partner = _partners(base, other)
        embeddings = (embeddings.float() + share * (partner - embeddings.float())).to(embeddings.dtype)
    pooled = base.pooled
    if pooled is not None and other.pooled is not None and share:
        step = other.pooled.to(pooled.device, torch.float32) - pooled.float()
        pooled = (pooled.float() + share * step).to(pooled.dtype)
    return replace(base, embeddings=embeddings, pooled=pooled)


def _partners(base: Encoding, other: Encoding) -> Tensor:
    """(B, L, D) float32: for each embedding of base the one of other that stands for it, the last visible for none."""
    out = torch.zeros(base.embeddings.shape, dtype=torch.float32, device=base.embeddings.device)
    for b, tokens in enumerate(base.tokens):
        seen = other.mask[b].nonzero().squeeze(1).tolist() or [0]
        length = int(base.mask[b].nonzero().max()) + 1 if base.mask[b].any() else 0
        places, _ = align(tokens[:length], other.tokens[b][: seen[-1] + 1])
        out[b, :length] = other.embeddings[b, [p if 0 <= p <= seen[-1] else seen[-1] for p in places]].float()
    return out
