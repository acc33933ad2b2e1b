"""Genetic search over token sequences, after Ring-A-Bell (arXiv 2310.10012). No gradients. N sequences of K tokens.

As there: the better half survives, each survivor is crossed with another at one point with probability 0.5 (both
children join), and one token of a sequence is drawn anew with probability 0.25. Other than there, the best sequence is
never mutated, survivors that stay as they were are not encoded again, children beyond the population's size are
dropped, and the population shrinks with the budget.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .space import Objective
from .trace import Step, Trace

LENGTH, POPULATION = 16, 200
"""The paper's K and population; its 3000 generations make about 600,000 queries."""
SMALLEST = 16
CROSSOVER, MUTATION = 0.5, 0.25


def population_size(budget: int) -> int:
    """The paper's for its budget; for a smaller one fewer, so that there are some dozens of generations."""
    return max(SMALLEST, min(POPULATION, budget // 50))


def genetic_search(
    objective: Objective,
    texts: Callable[[Tensor], list[str]],
    tokens: Tensor,
    *,
    budget: int,
    generator: torch.Generator,
    step: Step,
    length: int = LENGTH,
) -> Trace:
    """The prompt nearest to the objective's target.

    texts: (N, K) tokens -> N prompts; tokens (T,): those that may be used; budget: prompts to encode.
    """
    size = min(population_size(budget), budget)
    trace = Trace(budget)

    def drawn(*shape: int) -> Tensor:
        return tokens[torch.randint(len(tokens), shape, generator=generator)]

    def measured(sequences: Tensor) -> Tensor:
        prompts = texts(sequences)
        losses = objective(prompts)
        trace.offer(objective.queries, prompts, losses.tolist())
        return losses

    population = drawn(size, length)
    losses = measured(population)
    while objective.queries < budget:
        step(objective.queries, budget)
        order = losses.argsort()[: max(2, size // 2)]
        survivors, known = population[order], losses[order]
        population = torch.cat([survivors, _children(survivors, generator)])[:size]
        mutated = torch.rand(len(population), generator=generator) < MUTATION
        mutated[0] = False
        places = torch.randint(length, (len(population),), generator=generator)
        fresh = drawn(len(population))
        population[mutated, places[mutated]] = fresh[mutated]
        # Survivors as they were need no second look, and what is past the budget gets none.
        new = mutated.clone()
        new[len(survivors) :] = True
        rank = new.cumsum(0)
        population, new = (part[~new | (rank <= budget - objective.queries)] for part in (population, new))
        losses = torch.full((len(population),), math.inf)
        old = (~new).nonzero().squeeze(1)
        losses[old] = known[old]
        if new.any():
            losses[new] = measured(population[new])
    step(objective.queries, budget)
    return trace


def _children(parents: Tensor, generator: torch.Generator) -> Tensor:
    """Two children of each of about half of the parents."""
    count, length = parents.shape
    crossed = (torch.rand(count, generator=generator) < CROSSOVER).nonzero().squeeze(1)
    others = torch.randint(count, (len(crossed),), generator=generator)
    points = torch.randint(1, length, (len(crossed), 1), generator=generator)
    first = torch.arange(length)[None] < points
    a, b = parents[crossed], parents[others]
    return torch.cat([torch.where(first, a, b), torch.where(first, b, a)])
