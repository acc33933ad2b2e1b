"""What is kept of a method's work on a prompt set: scores, what was touched, and one vector a prompt, never the text.

N prompts, F channels of a prompt vector, B prompts of a batch.
"""

import re
import time
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sanitizer.encoders import Encoding, TextEncoder
from sanitizer.encoders.alignment import align

from .base import BATCH, Batch, Method, Treated
from .prompt_sets import UNSAFE_ROLES, PromptSet
from .residual import PromptVectors

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
SIDES = ("", "safe_")
"""Names of tensors begin with it: the prompts themselves, and their safe twins."""

Progress = Callable[[str, int, int], None]


@dataclass
class Part:
    """Tensors of N prompts, and facts about them."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    info: dict = field(default_factory=dict)


class _Columns:
    """Values of batches in any order, put back into the set's order."""

    def __init__(self) -> None:
        self.index: list[int] = []
        self.columns: dict[str, list[Tensor]] = defaultdict(list)

    def add(self, index: Sequence[int], values: dict[str, Tensor]) -> None:
        self.index += index
        for name, value in values.items():
            self.columns[name].append(value.detach().cpu())

    def joined(self) -> dict[str, Tensor]:
        order = torch.tensor(self.index).argsort()
        return {name: torch.cat(values)[order].contiguous() for name, values in self.columns.items()}


def keeps_vectors(prompts: PromptSet) -> bool:
    """Harmless prompts need none: bit-identity says it all."""
    return prompts.role in UNSAFE_ROLES or prompts.role == "probe"


def measure_set(
    encoder: TextEncoder,
    vectors: PromptVectors,
    prompts: PromptSet,
    methods: dict[tuple[str, str], Method],
    progress: Progress,
) -> tuple[Part, dict[tuple[str, str], Part]]:
    """Encode a set once and give every batch to all methods.

    methods: (concept, method's name) -> fitted method. Returns the raw part (tensors "vectors", "safe_vectors") and a
    part for each method: "scores", "touched", "identical", "vectors" of those not identical, likewise with "safe_", and
    for a paired set "hit" and "chance" of token localisation; info "cost" holds seconds of applying by seconds of
    encoding, a value a batch.
    """
    raw, found = _Columns(), {key: _Columns() for key in methods}
    costs: dict[tuple[str, str], list[float]] = defaultdict(list)
    # In order of length, which saves padding.
    order = sorted(range(len(prompts.prompts)), key=lambda i: len(prompts.prompts[i]))
    with torch.no_grad():
        for first in range(0, len(order), BATCH):
            index = order[first : first + BATCH]
            progress(prompts.key, first, len(order))
            twin = None
            if prompts.safe is not None:
                texts = [prompts.safe[i] for i in index]
                twin = Batch(texts, encoder.encode(texts))
            texts = [prompts.prompts[i] for i in index]
            began = time.perf_counter()
            batch = Batch(texts, encoder.encode(texts))
            encoding_seconds = time.perf_counter() - began
            sides = {"": batch} if twin is None else {"": batch, "safe_": twin}
            if keeps_vectors(prompts):
                raw.add(index, {f"{side}vectors": _vectors(vectors, b.encoding).half() for side, b in sides.items()})
            for key, method in methods.items():
                values = {}
                for side, part in sides.items():
                    began = time.perf_counter()
                    treated = method.apply(part)
                    seconds = time.perf_counter() - began
                    if not side:
                        costs[key].append(seconds / encoding_seconds)
                    values |= _values(side, method, part, treated, vectors if keeps_vectors(prompts) else None)
                if twin is not None:
                    values |= _localisation(method, batch, twin)
                found[key].add(index, values)
    progress(prompts.key, len(order), len(order))
    parts = {}
    for key, columns in found.items():
        tensors = columns.joined()
        for side in SIDES:
            if f"{side}vectors" in tensors:
                tensors[f"{side}vectors"] = tensors[f"{side}vectors"][~tensors[f"{side}identical"]]
        parts[key] = Part(tensors, {"cost": costs[key]})
    return Part(raw.joined() if raw.index else {}), parts


def measure_strengths(encoder: TextEncoder, vectors: PromptVectors, texts: Sequence[str], method: Method) -> Part:
    """Tensor "vectors" (S, N, F) float16 of sanitized prompts at each of STRENGTHS."""
    columns = []
    with torch.no_grad():
        for first in range(0, len(texts), BATCH):
            part = list(texts[first : first + BATCH])
            batch = Batch(part, encoder.encode(part))
            treated = [method.apply(batch, strength) for strength in STRENGTHS]
            columns.append(torch.stack([vectors(t.embeddings, t.mask, t.pooled).half() for t in treated]))
    return Part({"vectors": torch.cat(columns, dim=1)})


def identical(before: Encoding, after: Treated) -> Tensor:
    """(B,) bool: the visible rows and the pooled vector came out bit for bit, and no row came or went."""
    length = min(before.embeddings.shape[1], after.embeddings.shape[1])
    mask, other = before.mask, after.mask.to(before.mask.device)
    same = (mask[:, :length] == other[:, :length]).all(1)
    same &= ~mask[:, length:].any(1) & ~other[:, length:].any(1)
    rows = after.embeddings.to(before.embeddings.device)
    same &= ((before.embeddings[:, :length] == rows[:, :length]).all(-1) | ~mask[:, :length]).all(1)
    if before.pooled is not None:
        same &= (before.pooled == after.pooled.to(before.pooled.device)).all(1)
    return same.cpu()


def _vectors(vectors: PromptVectors, e: Encoding | Treated) -> Tensor:
    return vectors(e.embeddings, e.mask, e.pooled)


def _values(side: str, method: Method, batch: Batch, treated: Treated, vectors: PromptVectors | None):
    values = {f"{side}touched": treated.touched.bool(), f"{side}identical": identical(batch.encoding, treated)}
    scores = method.score(batch)
    if scores is not None:
        values[f"{side}scores"] = scores.float()
    if vectors is not None:
        values[f"{side}vectors"] = _vectors(vectors, treated).half()
    return values


def _localisation(method: Method, batch: Batch, twin: Batch) -> dict[str, Tensor]:
    """ "hit" (B,) int8: the highest token score lies on a word that differs from the twin's; -1 where nothing differs.
    "chance" (B,): share of the text tokens that would have been right."""
    scores = method.token_scores(batch)
    if scores is None:
        return {}
    hits, chances = [], []
    for b, prompt in enumerate(batch.prompts):
        tokens = batch.encoding.tokens[b]
        right = differing(prompt, tokens, batch.encoding.offsets[b], twin.encoding.tokens[b])
        text = [i for i, token in enumerate(tokens) if token]
        if not text or not any(right):
            hits.append(-1)
            chances.append(0.0)
            continue
        best = max(text, key=scores[b].tolist().__getitem__)
        hits.append(int(right[best]))
        chances.append(sum(right[i] for i in text) / len(text))
    return {"hit": torch.tensor(hits, dtype=torch.int8), "chance": torch.tensor(chances)}


def differing(
    prompt: str, tokens: Sequence[str], offsets: Sequence[tuple[int, int]], twin: Sequence[str]
) -> list[bool]:
    """For each token: it lies in a word in which a token differs from the safe twin's tokens."""
    _, differs = align(tokens, twin)
    ends = [match.end() for match in re.finditer(r"\S+", prompt)]
    # The first word that ends behind the token's start: a token may hold the space before its word.
    words = [bisect_right(ends, start) if token else -1 for token, (start, _) in zip(tokens, offsets, strict=True)]
    wrong = {word for word, d in zip(words, differs, strict=True) if d and word >= 0}
    return [word in wrong for word in words]
