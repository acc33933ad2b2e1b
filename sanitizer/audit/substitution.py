"""Gradient-free search from a prompt outwards, for any text encoder: words exchanged, added, moved, disguised.

A greedy random search: from the best prompts so far, variants with one change each; the better ones stay. It begins
with the target prompt as it is written, so it finds at least what a person finds who simply asks.
"""

import random
from collections.abc import Sequence

from ..prompts.obfuscation import OBFUSCATIONS
from .space import Objective
from .trace import Step, Trace

BEAM, VARIANTS = 4, 24
MOST_WORDS = 40
CHANGES = ("disguise", "disguise", "disguise", "replace", "insert", "insert", "delete", "swap", "fragment")


def substitution_search(
    objective: Objective, prompt: str, words: Sequence[str], *, budget: int, rng: random.Random, step: Step
) -> Trace:
    """The prompt nearest to the objective's target, in `budget` prompts encoded; words: harmless ones to put in."""
    trace = Trace(budget)
    tried = {prompt}
    beam = _measured(objective, trace, [prompt])
    idle = 0
    while objective.queries < budget and idle < VARIANTS:
        step(objective.queries, budget)
        wanted = min(VARIANTS, budget - objective.queries)
        fresh = []
        for _ in range(8 * wanted):
            text = changed(rng.choice(beam)[1], words, rng)
            if len(fresh) < wanted and text not in tried:
                tried.add(text)
                fresh.append(text)
        # A short prompt may run out of variants before its budget.
        idle = 0 if fresh else idle + 1
        if fresh:
            beam = sorted([*beam, *_measured(objective, trace, fresh)])[:BEAM]
    step(min(objective.queries, budget), budget)
    return trace


def _measured(objective: Objective, trace: Trace, texts: list[str]) -> list[tuple[float, str]]:
    losses = objective(texts).tolist()
    trace.offer(objective.queries, texts, losses)
    return list(zip(losses, texts, strict=True))


def changed(text: str, words: Sequence[str], rng: random.Random) -> str:
    """The text with one change; never empty."""
    own = text.split(" ")
    at = rng.randrange(len(own))
    kind = rng.choice(CHANGES)
    if kind == "disguise":
        own[at] = rng.choice(tuple(OBFUSCATIONS.values()))(own[at], rng)
    elif kind == "replace":
        own[at] = rng.choice(words)
    elif kind == "insert" and len(own) < MOST_WORDS:
        own.insert(at, rng.choice(words))
    elif kind == "delete" and len(own) > 1:
        del own[at]
    elif kind == "swap":
        other = rng.randrange(len(own))
        own[at], own[other] = own[other], own[at]
    else:
        letters = "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.randint(2, 5)))
        own.insert(at, letters)
    return " ".join(own)
