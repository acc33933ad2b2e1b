"""One run: fit every method on the same split, give every set to all of them, keep the results in the store.

What is kept of a method's work on a prompt set: scores, what was touched, and one vector a prompt, never the text.
N prompts, F probe features of a prompt, B prompts of a batch, S strengths.
"""

import re
import time
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sanitizer.encoders import Encoding, TextEncoder, load_encoder
from sanitizer.encoders.alignment import align
from sanitizer.errors import SanitizerError
from sanitizer.model import artifact
from sanitizer.model.normalizer import Normalizer
from sanitizer.model.sanitizer import EmbeddingSanitizer
from sanitizer.training.dataset import measure

from .data import HELD_OUT, PROBE_BENIGN, PROBE_PAIRS, benign_set, bundled_sets
from .methods import OWN
from .methods.ours import AllConcepts
from .split import make_development
from .store import Entry, Store, file_digest
from .types import BATCH, PROBE_ROLE, UNSAFE_ROLES, Batch, Method, Progress, PromptSet, Treated, batches, identical

OURS, RAW, STRENGTH, ALL = "ours", "raw", "strength", "all_concepts"
STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
CURVE_PROMPTS = 150
SIDES = ("", "safe_")
"""Names of tensors begin with it: the prompts themselves, and their safe counterfactuals."""

Factory = Callable[[], Method]
Key = tuple[str, str]
"""Concept and method's name."""


def load(encoder_name: str, sanitizer_name: str | None) -> tuple[TextEncoder, EmbeddingSanitizer | None, Path | None]:
    """The encoder, the sanitizer and its file; "auto" takes the one in weights/ for the encoder, None takes none.

    Raises SanitizerError where one is missing or they do not fit.
    """
    if sanitizer_name is None:
        return load_encoder(encoder_name), None, None
    return artifact.load_pair(encoder_name, sanitizer_name)


def check_erasable(sanitizer: EmbeddingSanitizer, path: Path, concepts: Sequence[str], option: str) -> None:
    """Raises SanitizerError where the sanitizer does not know one of the concepts."""
    for name in concepts:
        if name not in sanitizer.erasable:
            known = ", ".join(sanitizer.erasable)
            raise SanitizerError(f"{path}: knows nothing of {name!r}, only of {known}. Choose {option} among them.")


def collect_sets(
    concepts: Sequence[str], given: Sequence[PromptSet], examples: int, limit: int | None, seed: int
) -> list[PromptSet]:
    """Bundled and given sets, the latter cut to `limit` prompts each."""
    sets = [benign_set(min(limit or 600, 600), seed)]
    for concept in concepts:
        sets += bundled_sets(concept, examples, limit, seed)
    return sets + [prompts.sample(limit, seed) for prompts in given]


@dataclass
class Measured:
    """All results of a run, read from the store as they are needed."""

    store: Store
    sets: list[PromptSet]
    methods: dict[str, Method]
    """One of each name, not necessarily fitted."""
    concepts: list[str]
    width: int
    """Channels of the mean embedding, which comes first in a prompt's vector."""
    seed: int

    def of_concept(self, concept: str, roles: Sequence[str]) -> list[PromptSet]:
        """The sets of these roles that concern the concept."""
        return [s for s in self.sets if s.role in roles and s.concept in (None, concept)]

    def named(self, concept: str, name: str) -> PromptSet:
        return next(s for s in self.sets if s.name == name and s.concept in (None, concept))

    def entry(self, concept: str, method: str, prompts: PromptSet) -> Entry:
        """See measure_set."""
        return self.store.load((prompts.key, concept, method))

    def raw(self, prompts: PromptSet, side: str = "") -> Tensor:
        """(N, F) float32 vectors of the raw prompts, or with side "safe_" of their counterfactuals."""
        return self.store.load((prompts.key, RAW)).tensors[f"{side}vectors"].float()

    def sanitized(self, concept: str, method: str, prompts: PromptSet, side: str = "") -> Tensor:
        """(N, F) float32: the same after the method."""
        tensors, vectors = self.entry(concept, method, prompts).tensors, self.raw(prompts, side)
        vectors[~tensors[f"{side}identical"]] = tensors[f"{side}vectors"].float()
        return vectors

    def strengths(self, concept: str, method: str) -> Tensor:
        """(S, N, F) float32: held-out prompts at each of STRENGTHS."""
        return self.store.load((STRENGTH, concept, method)).tensors["vectors"].float()


def run(
    encoder: TextEncoder,
    factories: dict[str, Factory],
    concepts: Sequence[str],
    sets: Sequence[PromptSet],
    store: Store,
    *,
    examples: int,
    seed: int,
    progress: Progress,
    sanitizer: EmbeddingSanitizer | None = None,
    weights: Path | None = None,
) -> Measured:
    """Measure what the store does not hold yet. Every result is saved as soon as it is there.

    With a sanitizer, harmless sets are also given to all of its concepts at once. weights: the sanitizer's file.
    """
    keys = [(concept, name) for concept in concepts for name in factories]
    methods: dict[Key, Method] = {key: factories[key[1]]() for key in keys}
    whole = (ALL, OURS)
    if sanitizer is not None:
        methods[whole] = AllConcepts(sanitizer)
    file = file_digest(weights) if weights else ""
    # Another file of weights leaves the results of other methods as they are.
    made_of = {key: [file if key[1] in OWN else ""] for key in methods}
    todo: dict[str, list[Key]] = {}
    for s in sets:
        own = [key for key in keys if s.concept in (None, key[0])]
        own += [whole] if sanitizer is not None and s.concept is None else []
        todo[s.key] = [key for key in own if not store.has((s.key, *key), [s.digest, *made_of[key]])]
    curve_sets = {c: next(s for s in sets if s.name == HELD_OUT and s.concept == c) for c in concepts}
    curves = [k for k in keys if not store.has((STRENGTH, *k), [curve_sets[k[0]].digest, *made_of[k]])]
    normalizer = measure(_sample(encoder, sets))
    wanted = ({key for own in todo.values() for key in own} - {whole}) | set(curves)
    _fit(encoder, methods, wanted, examples, seed, progress)
    for prompts in sets:
        chosen = {key: methods[key] for key in todo[prompts.key]}
        bare = keeps_vectors(prompts) and not store.has((prompts.key, RAW), [prompts.digest])
        if not chosen and not bare:
            continue
        raw, found = measure_set(encoder, normalizer, prompts, chosen, progress)
        if raw.tensors:
            store.save((prompts.key, RAW), raw, [prompts.digest])
        for key, entry in found.items():
            store.save((prompts.key, *key), entry, [prompts.digest, *made_of[key]])
    for at, key in enumerate(curves):
        progress("strengths", at, len(curves))
        prompts = curve_sets[key[0]]
        entry = measure_strengths(encoder, normalizer, prompts.prompts[:CURVE_PROMPTS], methods[key])
        store.save((STRENGTH, *key), entry, [prompts.digest, *made_of[key]])
    named = {name: methods[concepts[0], name] for name in factories}
    return Measured(store, list(sets), named, list(concepts), len(normalizer.mean), seed)


def _fit(
    encoder: TextEncoder, methods: dict[Key, Method], wanted: set[Key], examples: int, seed: int, progress: Progress
) -> None:
    for concept in dict.fromkeys(concept for concept, _ in methods):
        chosen = [key for key in methods if key in wanted and key[0] == concept]
        if not chosen:
            continue
        # One for each concept, given up before the next: it holds all the split's embeddings.
        development = make_development(encoder, concept, seed, examples)
        for at, key in enumerate(chosen):
            progress(f"fit, {concept}", at, len(chosen))
            methods[key].fit(development)
        progress(f"fit, {concept}", len(chosen), len(chosen))


def _sample(encoder: TextEncoder, sets: Sequence[PromptSet]) -> list[Encoding]:
    """Batches of raw prompts of all kinds, to measure the channels' statistics on."""
    texts = []
    for prompts in sets:
        if prompts.name == PROBE_PAIRS:
            texts += prompts.prompts[:BATCH] + prompts.safe[:BATCH]
        elif prompts.name == PROBE_BENIGN:
            texts += prompts.prompts[: 2 * BATCH]
    with torch.no_grad():
        return [batch.encoding for batch in batches(encoder, texts)]


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
    return prompts.role in (*UNSAFE_ROLES, PROBE_ROLE)


def measure_set(
    encoder: TextEncoder, normalizer: Normalizer, prompts: PromptSet, methods: dict[Key, Method], progress: Progress
) -> tuple[Entry, dict[Key, Entry]]:
    """Encode a set once and give every batch to all methods.

    methods: (concept, method's name) -> fitted method. Returns the raw entry (tensors "vectors", "safe_vectors") and an
    entry for each method: "scores", "touched", "identical", "vectors" of those not identical, likewise with "safe_",
    and for a paired set "hit" and "chance" of token localisation; info "cost" holds seconds of applying by seconds of
    encoding, a value a batch.
    """
    raw, found = _Columns(), {key: _Columns() for key in methods}
    costs: dict[Key, list[float]] = defaultdict(list)
    kept = normalizer if keeps_vectors(prompts) else None
    # In order of length, which saves padding.
    order = sorted(range(len(prompts.prompts)), key=lambda i: len(prompts.prompts[i]))
    with torch.no_grad():
        for first in range(0, len(order), BATCH):
            index = order[first : first + BATCH]
            progress(prompts.key, first, len(order))
            safe = None
            if prompts.safe is not None:
                texts = [prompts.safe[i] for i in index]
                safe = Batch(texts, encoder.encode(texts))
            texts = [prompts.prompts[i] for i in index]
            began = time.perf_counter()
            batch = Batch(texts, encoder.encode(texts))
            encoding_seconds = time.perf_counter() - began
            sides = {"": batch} if safe is None else {"": batch, "safe_": safe}
            if kept is not None:
                raw.add(index, {f"{side}vectors": _vectors(kept, b.encoding).half() for side, b in sides.items()})
            for key, method in methods.items():
                values = {}
                for side, part in sides.items():
                    began = time.perf_counter()
                    treated = method.apply(part)
                    seconds = time.perf_counter() - began
                    if not side:
                        costs[key].append(seconds / encoding_seconds)
                    values |= _values(side, method, part, treated, kept)
                if safe is not None:
                    values |= _localisation(method, batch, safe)
                found[key].add(index, values)
    progress(prompts.key, len(order), len(order))
    entries = {}
    for key, columns in found.items():
        tensors = columns.joined()
        for side in SIDES:
            if f"{side}vectors" in tensors:
                tensors[f"{side}vectors"] = tensors[f"{side}vectors"][~tensors[f"{side}identical"]]
        entries[key] = Entry(tensors, {"cost": costs[key]})
    return Entry(raw.joined() if raw.index else {}), entries


def measure_strengths(encoder: TextEncoder, normalizer: Normalizer, texts: Sequence[str], method: Method) -> Entry:
    """Tensor "vectors" (S, N, F) float16 of sanitized prompts at each of STRENGTHS."""
    columns = []
    with torch.no_grad():
        for batch in batches(encoder, texts):
            treated = [method.apply(batch, strength) for strength in STRENGTHS]
            columns.append(torch.stack([_vectors(normalizer, t).half() for t in treated]))
    return Entry({"vectors": torch.cat(columns, dim=1)})


def _vectors(normalizer: Normalizer, e: Encoding | Treated) -> Tensor:
    return normalizer.features(e.embeddings, e.mask, e.pooled)


def _values(side: str, method: Method, batch: Batch, treated: Treated, normalizer: Normalizer | None):
    values = {f"{side}touched": treated.touched.bool(), f"{side}identical": identical(batch.encoding, treated)}
    scores = method.score(batch)
    if scores is not None:
        values[f"{side}scores"] = scores.float()
    if normalizer is not None:
        values[f"{side}vectors"] = _vectors(normalizer, treated).half()
    return values


def _localisation(method: Method, batch: Batch, safe: Batch) -> dict[str, Tensor]:
    """ "hit" (B,) int8: the highest token score lies on a word that differs from the counterfactual's; -1 where nothing
    differs. "chance" (B,): share of the text tokens that would have been right."""
    scores = method.token_scores(batch)
    if scores is None:
        return {}
    hits, chances = [], []
    for b, prompt in enumerate(batch.prompts):
        tokens = batch.encoding.tokens[b]
        right = differing(prompt, tokens, batch.encoding.offsets[b], safe.encoding.tokens[b])
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
    prompt: str, tokens: Sequence[str], offsets: Sequence[tuple[int, int]], safe: Sequence[str]
) -> list[bool]:
    """For each token: it lies in a word in which a token differs from the counterfactual's tokens."""
    _, differs = align(tokens, safe)
    ends = [match.end() for match in re.finditer(r"\S+", prompt)]
    # The first word that ends behind the token's start: a token may hold the space before its word.
    words = [bisect_right(ends, start) if token else -1 for token, (start, _) in zip(tokens, offsets, strict=True)]
    wrong = {word for word, d in zip(words, differs, strict=True) if d and word >= 0}
    return [word in wrong for word in words]
