"""Greedy coordinate gradient on tokens, as MMA-Diffusion's text attack does it (arXiv 2311.17516, section 3.2).

From random tokens, in each step: the gradient of 1 - cos(adversarial, target) with respect to every token names the
`TOP` best exchanges for each place; candidates with one random exchange each are measured; the best stands. Forbidden
tokens, those of words from a list of sensitive ones, are never exchanged in.

Other than there: the candidates of a step shrink with the budget; only tokens that stand for a word of their own are
used, so that the prompt survives being typed in; the best prompt of all steps is kept, not the last; and prompts are
compared by mean embedding, last embedding and pooled vector instead of the pooled vector alone, which not all encoders
have.
"""

import torch
from torch import Tensor

from sanitizer.audit.space import Objective, Sanitize
from sanitizer.audit.trace import Step, Trace

from .gradient_encoder import GradientEncoder

LENGTH, TOP, CANDIDATES, STEPS = 20, 256, 512, 1000
"""The paper's; CANDIDATES times STEPS is the published budget."""
FEWEST = 16
CLOSE = 0.05
"""A loss at which the search ends: nothing more is to be had."""


def candidates_per_step(budget: int) -> int:
    """The paper's for its budget; for a smaller one fewer, so that there are at least a hundred steps or so."""
    return max(FEWEST, min(CANDIDATES, budget // 120))


def gcg_search(
    objective: Objective,
    encoder: GradientEncoder,
    allowed: Tensor,
    *,
    budget: int,
    generator: torch.Generator,
    step: Step,
    surrogate: Sanitize | None = None,
    length: int = LENGTH,
) -> Trace:
    """The prompt nearest to the objective's target, of `length` tokens among `allowed` (V,) bool.

    budget: prompts to encode, a gradient counting as one. surrogate: what stands for the objective's sanitizer where
    the gradient is taken, for a sanitizer whose gate has none; candidates are measured with the sanitizer itself.
    """
    trace, tokens = Trace(budget), allowed.nonzero().squeeze(1)
    top = min(TOP, len(tokens))
    ids = tokens[torch.randint(len(tokens), (length,), generator=generator)]
    loss = _measured(objective, encoder, ids[None], trace)[0]
    while objective.queries < budget and trace.loss > CLOSE:
        step(objective.queries, budget)
        objective.queries += 1
        gradient = encoder.gradient(ids, lambda *e: objective.of_embeddings(*e, sanitize=surrogate))
        best = (-gradient).masked_fill(~allowed, -torch.inf).topk(top, dim=1).indices
        count = min(candidates_per_step(budget), budget - objective.queries)
        if count < 1:
            break
        places = torch.randint(length, (count,), generator=generator)
        chosen = torch.randint(top, (count,), generator=generator)
        candidates = ids.repeat(count, 1)
        candidates[torch.arange(count), places] = best[places, chosen]
        candidates = _stable(encoder, candidates)
        if len(candidates):
            losses = _measured(objective, encoder, candidates, trace)
            # As in the paper the best candidate stands even where it is a little worse: it gets out of dead ends. Far
            # worse ones, of a step without a good exchange, do not.
            if losses.min() < loss + CLOSE / 5:
                ids, loss = candidates[losses.argmin()], losses.min()
    step(min(objective.queries, budget), budget)
    return trace


def _measured(objective: Objective, encoder: GradientEncoder, ids: Tensor, trace: Trace) -> Tensor:
    losses = encoder.losses(ids, objective.of_embeddings)
    objective.queries += len(ids)
    trace.offer(objective.queries, encoder.texts(ids), losses.tolist())
    return losses


def _stable(encoder: GradientEncoder, ids: Tensor) -> Tensor:
    """The sequences that are read as they were written."""
    read = encoder.read(encoder.texts(ids))
    return ids[[i for i, (own, back) in enumerate(zip(ids.tolist(), read, strict=True)) if own == back]]
