"""One run: fit every method on the same split, give every set to all of them, keep the parts on disk."""

import hashlib
import inspect
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from sanitizer.encoders import TextEncoder
from sanitizer.errors import SanitizerError
from sanitizer.model.sanitizer import EmbeddingSanitizer
from sanitizer.prompts.concepts import FOLDER

from .all_concepts import ALL, AllConcepts
from .base import BATCH, Method
from .bundled_sets import HELD_OUT, PROBE_BENIGN, PROBE_PAIRS, benign_set, bundled_sets
from .development_split import RememberingEncoder, make_development
from .measuring import Progress, keeps_vectors, measure_set, measure_strengths
from .misses import hardest_misses
from .prompt_sets import PromptSet
from .residual import PromptVectors
from .store import Store

OURS = "ours"
OWN = (OURS, "ours_text", "re_encode")
"""Methods that apply the sanitizer."""
RAW, STRENGTH, MISSES = "raw", "strength", "misses"
CURVE_PROMPTS = 150
SANITIZER = Path(__file__).resolve().parent.parent / "sanitizer"

Factory = Callable[[], Method]


@dataclass
class Measured:
    """All parts of a run, read from the store as they are needed."""

    store: Store
    sets: list[PromptSet]
    methods: dict[str, Method]
    """One of each name, not necessarily fitted."""
    concepts: list[str]
    width: int
    """Channels of the mean row, which comes first in a prompt vector."""
    seed: int

    def of_concept(self, concept: str, roles: Sequence[str]) -> list[PromptSet]:
        """The sets of these roles that concern the concept."""
        return [s for s in self.sets if s.role in roles and s.concept in (None, concept)]

    def named(self, concept: str, name: str) -> PromptSet:
        return next(s for s in self.sets if s.name == name and s.concept in (None, concept))

    def part(self, concept: str, method: str, prompts: PromptSet) -> dict[str, Tensor]:
        """See measuring.measure_set."""
        return self.store.load((prompts.key, concept, method)).tensors

    def info(self, concept: str, method: str, prompts: PromptSet) -> dict:
        return self.store.load((prompts.key, concept, method)).info

    def raw(self, prompts: PromptSet, side: str = "") -> Tensor:
        """(N, F) float32 vectors of the raw prompts, or with side "safe_" of their twins."""
        return self.store.load((prompts.key, RAW)).tensors[f"{side}vectors"].float()

    def sanitized(self, concept: str, method: str, prompts: PromptSet, side: str = "") -> Tensor:
        """(N, F) float32: the same after the method."""
        part, vectors = self.part(concept, method, prompts), self.raw(prompts, side)
        vectors[~part[f"{side}identical"]] = part[f"{side}vectors"].float()
        return vectors

    def strengths(self, concept: str, method: str) -> Tensor:
        """(S, N, F) float32: held-out prompts at each of STRENGTHS."""
        return self.store.load((STRENGTH, concept, method)).tensors["vectors"].float()

    def misses(self, concept: str) -> list[dict]:
        """See misses.hardest_misses; empty where ours was not measured."""
        key = (MISSES, concept, OURS)
        return self.store.load(key).info["misses"] if OURS in self.methods and self.store.digest(key) else []


def collect_sets(
    concepts: Sequence[str], given: Sequence[PromptSet], examples: int, limit: int | None, seed: int
) -> list[PromptSet]:
    """Bundled and given sets, the latter cut to `limit` prompts each."""
    sets = [benign_set(min(limit or 600, 600), seed)]
    for concept in concepts:
        sets += bundled_sets(concept, examples, limit, seed)
    return sets + [prompts.sample(limit, seed) for prompts in given]


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
    digest: str = "",
) -> Measured:
    """Measure what the store does not hold yet. Every part is saved as soon as it is there.

    With a sanitizer, harmless sets are also given to all of its concepts at once; `digest`, see sanitizer_digest.
    """
    keys = [(concept, name) for concept in concepts for name in factories]
    methods = {key: factories[key[1]]() for key in keys}
    sources = {key: source_digest(methods[key], digest if key[1] in OWN else "") for key in keys}
    todo = {s.key: [k for k in keys if s.concept in (None, k[0]) and not _has(store, s, k, sources[k])] for s in sets}
    whole = (ALL, OURS)
    if sanitizer is not None:
        methods[whole] = AllConcepts(sanitizer)
        sources[whole] = source_digest(methods[whole], digest)
        for s in sets:
            if s.concept is None and not _has(store, s, whole, sources[whole]):
                todo[s.key].append(whole)
    curves = [k for k in keys if store.digest((STRENGTH, *k)) != _curve_digest(sets, k, sources[k])]
    vectors = PromptVectors.measured(_sample(encoder, sets))
    _fit(
        encoder,
        methods,
        ({k for found in todo.values() for k in found} - {whole}) | set(curves),
        examples,
        seed,
        progress,
    )
    for prompts in sets:
        wanted = {key: methods[key] for key in todo[prompts.key]}
        bare = keeps_vectors(prompts) and store.digest((prompts.key, RAW)) != prompts.digest
        if not wanted and not bare:
            continue
        raw, parts = measure_set(encoder, vectors, prompts, wanted, progress)
        if raw.tensors:
            store.save((prompts.key, RAW), raw, prompts.digest)
        for key, part in parts.items():
            store.save((prompts.key, *key), part, prompts.digest + sources[key])
    for at, key in enumerate(curves):
        progress("strengths", at, len(curves))
        texts = _curve_set(sets, key).prompts[:CURVE_PROMPTS]
        part = measure_strengths(encoder, vectors, texts, methods[key])
        store.save((STRENGTH, *key), part, _curve_digest(sets, key, sources[key]))
        if key[1] == OURS:
            held_out = _curve_set(sets, key)
            misses = hardest_misses(encoder, key[0], held_out, methods[key], store.load((held_out.key, *key)))
            store.save((MISSES, *key), misses, held_out.digest)
    named = {name: methods[concepts[0], name] for name in factories}
    return Measured(store, list(sets), named, list(concepts), vectors.width, seed)


def _fit(encoder, methods: dict, wanted: set, examples: int, seed: int, progress: Progress) -> None:
    for concept in dict.fromkeys(concept for concept, _ in methods):
        chosen = [key for key in methods if key in wanted and key[0] == concept]
        if not chosen:
            continue
        # One for each concept, given up before the next: it holds all the split's rows.
        development = make_development(RememberingEncoder(encoder), concept, seed, examples)
        for at, key in enumerate(chosen):
            progress(f"fit, {concept}", at, len(chosen))
            methods[key].fit(development)
        progress(f"fit, {concept}", len(chosen), len(chosen))


def _sample(encoder: TextEncoder, sets: Sequence[PromptSet]) -> list:
    """Batches of raw prompts of all kinds, to measure the channels' statistics on."""
    texts = []
    for prompts in sets:
        if prompts.name == PROBE_PAIRS:
            texts += prompts.prompts[:BATCH] + prompts.safe[:BATCH]
        elif prompts.name == PROBE_BENIGN:
            texts += prompts.prompts[: 2 * BATCH]
    with torch.no_grad():
        return [encoder.encode(texts[first : first + BATCH]) for first in range(0, len(texts), BATCH)]


def _has(store: Store, prompts: PromptSet, key: tuple[str, str], source: str) -> bool:
    return store.digest((prompts.key, *key)) == prompts.digest + source


def _curve_set(sets: Sequence[PromptSet], key: tuple[str, str]) -> PromptSet:
    return next(s for s in sets if s.name == HELD_OUT and s.concept == key[0])


def _curve_digest(sets: Sequence[PromptSet], key: tuple[str, str], source: str) -> str:
    return _curve_set(sets, key).digest + source


def source_digest(method: Method, more: str = "") -> str:
    """Of the source of the method's module and of what it takes from its own folder: a part that other code made is
    measured anew."""
    module = inspect.getmodule(type(method))
    sources = sorted(_sources(module, {})) if module else [repr(type(method))]
    return hashlib.sha256("\0".join([*sources, more]).encode()).hexdigest()[:16]


def _sources(module: ModuleType, seen: dict[str, str]) -> Iterable[str]:
    """Source of a module and, from there on, of the modules of its package whose names it uses."""
    if module.__name__ not in seen:
        try:
            seen[module.__name__] = inspect.getsource(module)
        except (OSError, TypeError):
            seen[module.__name__] = module.__name__
        package = module.__name__.rpartition(".")[0]
        for value in list(vars(module).values()):
            other = value if inspect.ismodule(value) else inspect.getmodule(value)
            if other is not None and package and other.__name__.startswith(f"{package}."):
                _sources(other, seen)
    return seen.values()


def sanitizer_digest(path: Path | None) -> str:
    """Of a sanitizer's file and of the code that applies it."""
    return file_digest(path, *sorted(SANITIZER.glob("*.py"))) if path else ""


def file_digest(*paths: Path) -> str:
    """Of the files' names and contents. Raises SanitizerError for one that cannot be read."""
    digest = hashlib.sha256()
    for path in paths:
        try:
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
        except OSError as error:
            raise SanitizerError(f"{path}: cannot be read ({error.strerror or error}).") from error
    return digest.hexdigest()[:16]


def concept_digest(folder: Path = FOLDER) -> str:
    """Of the concept files: with others, every method is tuned and every probe trained anew."""
    return file_digest(*sorted(folder.glob("*.toml")))


class Clock:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self.began = time.monotonic()

    @property
    def minutes(self) -> float:
        return (time.monotonic() - self.began) / 60
