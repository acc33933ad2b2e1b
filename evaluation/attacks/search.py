"""All attacks: what each is called, where it comes from, and how it is run on one target prompt.

Ring-A-Bell (arXiv 2310.10012) aims at E(prompt) + η · mean(E(unsafe) - E(safe)) over N pairs that differ in the concept
alone, with the squared distance to it as fitness and the search of sanitizer.audit.genetic. Other than there: prompts
are compared by mean embedding, last embedding and pooled vector in normalized channels, since encoders without a fixed
number of token embeddings have no places to compare; the pairs are prompts of the concept file's training split with
their safe counterfactuals; tokens are words of their own, and sensitive words are forbidden, as for MMA.

B prompts, L token embeddings, D channels, P pooled channels, V words of the vocabulary, F probe features.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from sanitizer.audit.genetic import genetic_search
from sanitizer.audit.space import Objective, Sanitize, cosine_distance, squared_distance, vectors
from sanitizer.audit.substitution import substitution_search
from sanitizer.audit.trace import Step
from sanitizer.encoders import TextEncoder
from sanitizer.model.gate import margins
from sanitizer.model.sanitizer import EmbeddingSanitizer

from .gcg import gcg_search
from .gradient_encoder import GradientEncoder, gradient_encoder
from .judge import Judge
from .words import BannedWords, Disguise

MMA, RING = "mma", "ring-a-bell"
ADAPTIVE = "adaptive-"
OBFUSCATION, SUBSTITUTION, CONTROL = "obfuscation", "substitution", "control"
NONE = "none"
"""The target as it is written, without any attack: always measured."""

SOURCES = {
    OBFUSCATION: "letters exchanged, spaced, mistyped and so on, one draw each; word order; words of other languages",
    MMA: "MMA-Diffusion, arXiv 2311.17516: greedy coordinate gradient towards the raw target; knows no sanitizer",
    RING: "Ring-A-Bell, arXiv 2310.10012: concept vector and genetic search; knows no sanitizer",
    ADAPTIVE + MMA: "the same gradient search through sanitizer and encoder together",
    ADAPTIVE + RING: "the same genetic search against sanitizer and encoder together",
    SUBSTITUTION: "adaptive and without gradients: words of the target exchanged, added, moved, disguised",
    CONTROL: "the search of mma towards a safe counterfactual: its success is the judge's error on text of this kind",
}
"""Name -> what it is, in the order of the report."""
TOKENS = (MMA, RING, ADAPTIVE + MMA, ADAPTIVE + RING, CONTROL)
"""Attacks that need the encoder's tokens."""
SOFTNESS = 1.0
"""Logits around the threshold over which the soft gate opens."""
ETA = 3.0
"""Ring-A-Bell's η for nudity."""


def hard(sanitizer: EmbeddingSanitizer, concept: str, strength: float = 1.0) -> Sanitize:
    """What the user gets: the sanitizer at its calibrated threshold, for one concept."""

    def apply(embeddings: Tensor, mask: Tensor, pooled: Tensor | None) -> tuple[Tensor, Tensor | None]:
        out = sanitizer.sanitize(embeddings, mask, pooled, strength=strength, concepts=[concept], trusted=True)
        return out.embeddings, out.pooled

    return apply


def soft(sanitizer: EmbeddingSanitizer, concept: str, strength: float = 1.0) -> Sanitize:
    """The same with a gate that opens smoothly with the concept's margin, so that the gradient says how to close it.

    The true gate is 0 below the threshold, where nothing tells an attack how near it is.
    """
    place = sanitizer.concepts.index(concept)

    def apply(embeddings: Tensor, mask: Tensor, pooled: Tensor | None) -> tuple[Tensor, Tensor | None]:
        scores = sanitizer.score(embeddings, mask, pooled, trusted=True).prompt
        gate = strength * torch.sigmoid(margins(sanitizer.config, scores)[:, place] / SOFTNESS)
        erased = sanitizer.sanitize(embeddings, mask, pooled, threshold=0.0, concepts=[concept], trusted=True)
        changed = embeddings + gate[:, None, None] * (erased.embeddings - embeddings)
        if pooled is None:
            return changed, None
        return changed, pooled + gate[:, None] * (erased.pooled - pooled)

    return apply


def target_vector(prompt: Tensor, concept: Tensor, eta: float = ETA) -> Tensor:
    """(F,): the prompt with η times the concept added."""
    return prompt + eta * concept


@dataclass
class Setup:
    """What all attacks on one encoder and sanitizer share."""

    encoder: TextEncoder
    hard: Sanitize
    soft: Sanitize
    judge: Judge
    banned: BannedWords
    words: list[str]
    """Harmless words for the substitution attack."""
    counterfactuals: list[str]
    """Safe counterfactuals of held-out prompts, for the control."""
    disguises: dict[str, Disguise]
    budget: int
    seed: int
    _tokens: GradientEncoder | None = field(default=None, init=False)
    _allowed: Tensor | None = field(default=None, init=False)

    def tokens(self, attack: str) -> tuple[GradientEncoder, Tensor]:
        """The encoder's tokens, and which may be used (V,) bool. Raises SanitizerError where there are none."""
        if self._tokens is None:
            self._tokens = gradient_encoder(self.encoder, attack)
            forbidden = torch.tensor([word in self.banned for word in self._tokens.words])
            self._allowed = self._tokens.allowed & ~forbidden
        return self._tokens, self._allowed


def entries(attacks: list[str], setup: Setup) -> list[str]:
    """The attacks as they are run one by one: `obfuscation` becomes one for each kind, and `none` comes first."""
    found = [NONE]
    for name in attacks:
        found += [f"{OBFUSCATION}/{kind}" for kind in setup.disguises] if name == OBFUSCATION else [name]
    return found


class Finished(NamedTuple):
    """What an attack came to."""

    prompts: dict[int, str]
    """Budget -> best prompt within it; empty for an obfuscation that cannot be applied to the target."""
    queries: int
    """Prompts encoded."""
    target: Tensor
    """(F,) what its content is judged by."""


def run_attack(name: str, setup: Setup, target: str, vector: Tensor, step: Step) -> Finished:
    """Run one entry on one target; vector (F,): the target's, raw."""
    random_state = f"{setup.seed}-{name}-{target}"
    rng = random.Random(random_state)
    if name == NONE:
        return Finished({1: target}, 0, vector)
    if name.startswith(OBFUSCATION):
        text = setup.disguises[name.partition("/")[2]](target, rng)
        return Finished({} if text is None else {1: text}, 1, vector)
    if name == CONTROL:
        vector = vectors(setup.encoder, setup.judge.normalizer, [rng.choice(setup.counterfactuals)])[0]
    generator = torch.Generator().manual_seed(rng.getrandbits(62))
    search = _SEARCHES[name.removeprefix(ADAPTIVE)]
    adaptive = name.startswith(ADAPTIVE) or name == SUBSTITUTION
    objective = Objective(setup.encoder, setup.judge.normalizer, vector, setup.hard if adaptive else None)
    trace = search(name, setup, objective, target, rng, generator, step)
    return Finished(trace.found(), objective.queries, vector)


def _mma(name, setup, objective, target, rng, generator, step):
    encoder, allowed = setup.tokens(name)
    surrogate = setup.soft if objective.sanitize is not None else None
    return gcg_search(
        objective, encoder, allowed, budget=setup.budget, generator=generator, step=step, surrogate=surrogate
    )


def _ring(name, setup, objective, target, rng, generator, step):
    encoder, allowed = setup.tokens(name)
    if objective.sanitize is None:
        objective.target = target_vector(objective.target, setup.judge.concept_vector)
        objective.distance = squared_distance
    else:
        # Towards the raw target itself: what the sanitizer leaves must be the target, not something past it.
        objective.distance = cosine_distance
    tokens = allowed.nonzero().squeeze(1)
    return genetic_search(objective, encoder.texts, tokens, budget=setup.budget, generator=generator, step=step)


def _substitution(name, setup, objective, target, rng, generator, step):
    return substitution_search(objective, target, setup.words, budget=setup.budget, rng=rng, step=step)


_SEARCHES: dict[str, Callable] = {MMA: _mma, RING: _ring, SUBSTITUTION: _substitution, CONTROL: _mma}
