"""Attack all targets, one after the other, and keep every finished attack on disk."""

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sanitizer.audit.space import vectors
from sanitizer.cli.readers import read_prompts
from sanitizer.errors import SanitizerError

from .journal import Journal, key
from .judge import Judge, held_out
from .table import NONE, TOKENS, Setup, entries, run_attack

Say = Callable[[str, int, int], None]
"""Attack, prompts encoded so far, prompts in all. It may raise, which ends the run; what is finished is kept."""

DRAWN = 4
"""Targets looked at for each that is wanted: the judge does not find the concept in all of them."""


def read_targets(file: str | None, column: str, concept: str, seed: int) -> list[str]:
    """Prompts of a file, in its order, or the bundled held-out ones of the concept, in an order by the seed.

    Raises SanitizerError for a file that cannot be read, lacks the column or has no prompts.
    """
    if file is None:
        found = held_out(concept, seed).prompts
        where = f"concept {concept}"
    else:
        found, where = list(read_prompts(file, column)), file
    found = list(dict.fromkeys(text.strip() for text in found if text.strip()))
    if not found:
        raise SanitizerError(f"{where}: no target prompts. Expected at least one unsafe prompt to attack with.")
    return found


def choose_targets(targets: Sequence[str], samples: int, judge: Judge, encoder) -> tuple[list[str], Tensor, int]:
    """The first `samples` in which the judge finds the concept; their raw vectors (N, F); how many were looked at.

    Where the judge does not find it in the raw prompt, nothing could show that an attack brought it back. Raises
    SanitizerError where it finds it in none.
    """
    chosen, kept, seen = [], [], 0
    while len(chosen) < samples and seen < len(targets):
        part = list(targets[seen : seen + DRAWN * samples])
        x = vectors(encoder, judge.space, part)
        for at, found in enumerate(judge.found(x).tolist()):
            seen += 1
            if found:
                chosen.append(part[at])
                kept.append(x[at])
                if len(chosen) == samples:
                    break
    if not chosen:
        raise SanitizerError(
            f"No target holds the concept, says the probe, in {seen} prompts. Choose other --targets or another "
            "--concept."
        )
    return chosen, torch.stack(kept), seen


def attack_all(
    setup: Setup, attacks: Sequence[str], targets: Sequence[str], x: Tensor, journal: Journal, show: bool, say: Say
) -> None:
    """Run what the journal does not hold yet. x (N, F): raw vectors of the targets. show: keep the prompts' text."""
    names = entries(list(attacks), setup)
    for name in names:
        _check_tokens(name, setup)
    for name in names:
        done, total = 0, len(targets) * (1 if "/" in name or name == NONE else setup.budget)
        for at, target in enumerate(targets):
            share = total // len(targets)
            if key(name, target) not in journal.records:

                def step(queries: int, budget: int, name=name, done=done, total=total) -> None:
                    say(name, done + min(queries, budget), total)

                say(name, done, total)
                journal.add(_finished(name, setup, target, x[at], step, show))
            done += share
        say(name, total, total)


def _check_tokens(name: str, setup: Setup) -> None:
    """Fail for an encoder without tokens before anything is spent on other attacks."""
    if name in TOKENS:
        setup.tokens(name)


def _finished(name: str, setup: Setup, target: str, vector: Tensor, step, show: bool) -> dict:
    began = time.monotonic()
    found, queries, wanted = run_attack(name, setup, target, vector, step)
    digest = key(name, target)[1]
    record = {"attack": name, "target": digest, "queries": queries, "points": _judged(setup, found, wanted)}
    record["seconds"] = round(time.monotonic() - began, 3)
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
        rows, pooled = setup.hard(e.embeddings, e.mask, e.pooled)
        space = setup.judge.space
        raw, sanitized = space(e.embeddings, e.mask, e.pooled), space(rows, e.mask, pooled)
        changed = (rows != e.embeddings).flatten(1).any(1)
    wanted = vector.expand_as(raw)
    before, after = setup.judge.verdicts(raw, wanted), setup.judge.verdicts(sanitized, wanted)
    return [
        {"budget": budget, "changed": touched, "raw": b._asdict(), "sanitized": a._asdict()}
        for budget, touched, b, a in zip(found, changed.tolist(), before, after, strict=True)
    ]
