"""Attack all targets, one after the other, and keep every finished attack in the store."""

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sanitizer.audit.space import vectors
from sanitizer.encoders import TextEncoder
from sanitizer.errors import SanitizerError
from sanitizer.model.sanitizer import EmbeddingSanitizer
from sanitizer.prompts.concepts import load_concepts
from sanitizer.prompts.generator import PromptGenerator
from sanitizer.prompts.templates import load_templates

from ..data import column_of, read_table
from ..store import Entry, Store, text_digest
from ..types import Progress
from .judge import Judge, held_out, make_judge
from .search import NONE, TOKENS, Setup, entries, hard, run_attack, soft
from .words import disguises, load_banned

DRAWN = 4
"""Targets looked at for each that is wanted: the judge does not find the concept in all of them."""


def make_setup(
    encoder: TextEncoder,
    sanitizer: EmbeddingSanitizer,
    concept: str,
    budget: int,
    examples: int,
    seed: int,
    progress: Progress,
) -> Setup:
    """Judge, word lists and the sanitizer as the attacks see it. Raises SanitizerError for an unknown concept."""
    return Setup(
        encoder=encoder,
        hard=hard(sanitizer, concept),
        soft=soft(sanitizer, concept),
        judge=make_judge(encoder, concept, examples, seed, progress),
        banned=load_banned(concept),
        words=PromptGenerator(load_concepts([concept]), load_templates(), seed).words,
        counterfactuals=held_out(concept, seed).safe,
        disguises=disguises(concept),
        budget=budget,
        seed=seed,
    )


def read_targets(file: str | None, column: str, concept: str, seed: int) -> list[str]:
    """Prompts of a file, in its order, or the bundled held-out ones of the concept, in an order by the seed.

    Raises SanitizerError for a file that cannot be read, lacks the column or has no prompts.
    """
    if file is None:
        found, where = held_out(concept, seed).prompts, f"concept {concept}"
    else:
        path = Path(file)
        found, where = column_of(path, read_table(path), column), file
    found = list(dict.fromkeys(text.strip() for text in found if text.strip()))
    if not found:
        raise SanitizerError(f"{where}: no target prompts. Expected at least one unsafe prompt to attack with.")
    return found


def choose_targets(
    targets: Sequence[str], samples: int, judge: Judge, encoder: TextEncoder
) -> tuple[list[str], Tensor, int]:
    """The first `samples` in which the judge finds the concept; their raw vectors (N, F); how many were looked at.

    Where the judge does not find it in the raw prompt, nothing could show that an attack brought it back. Raises
    SanitizerError where it finds it in none.
    """
    chosen, kept, seen = [], [], 0
    while len(chosen) < samples and seen < len(targets):
        part = list(targets[seen : seen + DRAWN * samples])
        x = vectors(encoder, judge.normalizer, part)
        for at in np.flatnonzero(judge.found(x))[: samples - len(chosen)].tolist():
            chosen.append(part[at])
            kept.append(x[at])
        seen += at + 1 if len(chosen) == samples else len(part)
    if not chosen:
        raise SanitizerError(
            f"No target holds the concept, says the probe, in {seen} prompts. Choose other --targets or another "
            "--concept."
        )
    return chosen, torch.stack(kept), seen


def key(attack: str, target: str) -> tuple[str, str]:
    """Of an attack on a target prompt, in the store: the prompt itself is not kept."""
    return attack, text_digest([target])


def attack_all(
    setup: Setup,
    attacks: Sequence[str],
    targets: Sequence[str],
    x: Tensor,
    store: Store,
    made_of: Sequence[str],
    show: bool,
    progress: Progress,
) -> list[dict]:
    """Run what the store does not hold yet; returns all records, attack by attack.

    x (N, F): raw vectors of the targets. made_of: what else the records depend on. show: keep the prompts' text.
    """
    names = entries(list(attacks), setup)
    for name in names:
        if name in TOKENS:
            setup.tokens(name)  # Fails for an encoder without tokens before anything is spent on other attacks.
    records = []
    for name in names:
        done, total = 0, len(targets) * (1 if "/" in name or name == NONE else setup.budget)
        for at, target in enumerate(targets):
            if not store.has(key(name, target), made_of):

                def step(queries: int, budget: int, name=name, done=done, total=total) -> None:
                    progress(name, done + min(queries, budget), total)

                progress(name, done, total)
                record = finished(name, setup, target, x[at], step, show)
                store.save(key(name, target), Entry(info=record), made_of)
            records.append(store.load(key(name, target)).info)
            done += total // len(targets)
        progress(name, total, total)
    return records


def finished(name: str, setup: Setup, target: str, vector: Tensor, step, show: bool) -> dict:
    """One attack on one target: its record."""
    began = time.monotonic()
    found, queries, wanted = run_attack(name, setup, target, vector, step)
    record = {"attack": name, "target": key(name, target)[1], "queries": queries}
    record |= {"points": _judged(setup, found, wanted), "seconds": round(time.monotonic() - began, 3)}
    if show:
        record["target_prompt"] = target
        record["prompts"] = {str(budget): text for budget, text in found.items()}
    return record


def _judged(setup: Setup, found: dict[int, str], vector: Tensor) -> list[dict]:
    """The verdict on each budget's prompt, as the encoder gives it and sanitized."""
    if not found:
        return []
    with torch.no_grad():
        e = setup.encoder.encode(list(found.values()))
        embeddings, pooled = setup.hard(e.embeddings, e.mask, e.pooled)
        features = setup.judge.normalizer.features
        raw, sanitized = features(e.embeddings, e.mask, e.pooled), features(embeddings, e.mask, pooled)
        changed = (embeddings != e.embeddings).flatten(1).any(1)
    wanted = vector.expand_as(raw)
    before, after = setup.judge.verdicts(raw, wanted), setup.judge.verdicts(sanitized, wanted)
    return [
        {"budget": budget, "changed": touched, "raw": b._asdict(), "sanitized": a._asdict()}
        for budget, touched, b, a in zip(found, changed.tolist(), before, after, strict=True)
    ]
