"""What a sanitizer is built from: its concepts, the sizes of its parts, and every constant that acts at inference.

All of it is saved in the sanitizer's file, so that changing a default here never changes an existing file.
"""

import math
from dataclasses import asdict, dataclass, field
from numbers import Real
from typing import Any

from ..errors import SanitizerError
from ..prompts.concepts import phrase_problem

THRESHOLD = 0.5
"""The calibrated operating point of every concept: calibration puts it at this score."""
MAX_STRENGTH = 2.0
MAX_CONCEPTS = 64
MAX_SIZE = 65_536
"""Of what a file may ask for; Ideogram 4 has 53,248 channels."""
MAX_VOTES = 8
MAX_LOWERED = 100.0
"""Logits by which a context concept may lower a threshold."""
MAX_WORD_SCORES = 16
UNLIMITED = 512
"""Window of an encoder without windows of fixed size."""


def check_number(name: str, value: Any, low: float, high: float) -> None:
    """Raises SanitizerError, with what the number is called, for one that is out of its range, for NaN, and for what is
    no number, True and False among them."""
    # Real covers numpy's numbers too, and has no order in the eyes of a type checker.
    number: Any = value if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    if not low <= number <= high:
        raise SanitizerError(f"{name}: expected a number from {low:g} to {high:g}, found {value!r:.80}.")


def readable(name: str) -> str:
    """A concept's name as people read it."""
    return name.replace("_", " ")


@dataclass(frozen=True)
class ConceptSpec:
    """What the model must know of a concept."""

    name: str
    context: bool = False
    """A context concept is scored, never erased."""
    lowers: dict[str, float] = field(default_factory=dict)
    """Concept -> logits by which this one's presence lowers that one's threshold."""


@dataclass(frozen=True)
class RewriteConfig:
    """Constants of re-encoding, see :mod:`sanitizer.text.rewrite`. They were chosen on held-out pairs of violence,
    shocking, self-harm and hate, on both embedded encoders."""

    rounds: int = 3
    """Times that a prompt is rewritten at most. The first is nearly always enough."""
    word_scores: tuple[float, ...] = (0.05, 0.2, 0.5)
    """Scores from which a word is at fault; each gives candidates of its own. Words beside those at fault score, too.
    With .5, .9 and .97, which suited scores that were not calibrated as votes, the concept was still seen in 82 % of
    rewritten prompts with several phrases on `minilm` and 71 % on `minilm-causal`; with these in 33 and 11 %, at the
    same nearness to the counterfactual."""
    margin: float = -6.0
    """Logits above the threshold (below it, being negative) up to which a candidate is judged by its nearness alone."""
    slope: float = 0.1
    """What a logit above :attr:`margin` costs a candidate, in cosines."""
    rest: float = 0.01
    """Score from which the erase net acts on a rewritten prompt in full."""
    finish: float = 0.6
    """Share of the strength with which the erase net acts on every other rewritten prompt: a probe finds traces that
    scores do not show. Half would leave more of them; all of it costs most of the nearness that re-encoding gains."""


@dataclass(frozen=True)
class SanitizerConfig:
    """Sizes and constants of a sanitizer; with the tensors it is all that a file needs to rebuild one."""

    concepts: tuple[ConceptSpec, ...]
    width: int
    """Channels D of a token embedding."""
    pooled_width: int = 0
    """Channels P of the pooled vector, 0 for none."""
    window: int = UNLIMITED
    """Most token embeddings that the networks see at once; longer inputs are split. For an encoder with a fixed number
    of them (CLIP: 77) it is that number, so that joined chunks are seen one by one, as in training."""
    constant_embeddings: int = 0
    """Leading embeddings, such as BOS in a causal encoder, that are the same for every prompt: carried along, never
    written."""
    heads: int = 4
    """Attention heads of both networks."""
    score_width: int = 192
    """Width of the score net. With 96 it underfits a full set of seven concepts on `minilm`: at the same limits of
    false positives 95 and not 96 % of several unseen phrases of nudity are flagged, 91 and not 93 % of violence's, and
    .4 and not .2 % of captions are touched, 15 and not 9 % of OVERT's sexual_content."""
    erase_width: int = 192
    """Width of the erase net."""
    erase_blocks: int = 2
    """Transformer blocks of the erase net."""
    gated: bool = False
    """Whether the erase net is a :class:`.networks.GatedEraser`; False in files from before it, whose
    :class:`.networks.SubspaceEraser` has the ranks and gains that follow."""
    rank: int = 0
    pooled_rank: int = 0
    concept_rank: int = 0
    pooled_concept_rank: int = 0
    concept_gain: float = 0.0
    residual_gain: float = 0.0
    strength_curve: float = 1.0
    """Exponent of a strength below 1: see :func:`.gate.amount`. 1 in files from before it."""
    gate_floor: float = 0.8
    """The gate at the threshold itself: a flagged prompt is never changed by less than this share of the strength."""
    gate_range: float = 2.0
    """Logits above the threshold at which the gate is fully open; the gate's slope is (1 - floor) / range."""
    clip: float = 12.0
    """Normalized channels are clipped here, in standard deviations, before the networks read them."""
    constant_tolerance: float = 0.05
    """Share of its norm by which an embedding may differ from a constant one. On `minilm-causal` BOS differs by .0006
    in float16, .005 in bfloat16 and .036 with weights in 8 bits, where it is known again; by .05 to .07 under a LoRA of
    2 % of the weights and by .08 and more under one of 3 %, which is refused."""
    constant_scale: float = 0.1
    """Share by which a constant embedding may be scaled: weights in the manner of A1111 bring the prompt's mean back to
    what it was and take BOS along."""
    verified: bool = False
    """Whether embeddings that are not the encoder's are refused, see :mod:`.provenance`. False in files from before."""
    directions: int = 0
    """Directions K in which prompts vary least, see :class:`.provenance.Provenance`; 0 where every window begins with
    constant embeddings, which tell more."""
    size_deviations: float = 2.0
    """Standard deviations from its expected size beyond which a prompt is scored at its usual size as well. On `minilm`
    one is a factor of 1.08; unsafe prompts scaled by .2 to .9 are all found again, of which 12 % were at .2 and 47 % at
    .3."""
    vote_weights: tuple[tuple[float, float, float], ...] = ((0.85, 0.0, 0.15), (0.0, 1.0, 0.0))
    """Votes, each of which can flag a prompt by itself: weights of the prompt head, the strongest token and the linear
    probe, each divided by its spread over harmless prompts. Calibration writes them into the tensor `vote_mix`."""
    score_span: int = 0
    """Token embeddings that the score net sees at once, in spans that overlap by half; 0: all of a window."""
    rewrite: RewriteConfig = RewriteConfig()

    def to_dict(self) -> dict:
        """For JSON."""
        return asdict(self)

    @property
    def sizes(self) -> int:
        """Sizes S that are verified, see :mod:`.provenance`."""
        return self.verified * (bool(self.directions) + bool(self.pooled_width))

    @classmethod
    def from_dict(cls, values: object) -> "SanitizerConfig":
        """The inverse of :meth:`to_dict`. Raises ValueError, TypeError or KeyError for keys and types that it does not
        write; :meth:`check` looks at the values."""
        if not isinstance(values, dict):
            raise ValueError(f"config: expected an object, found {type(values).__name__}")
        values = dict(values)
        specs = values.pop("concepts")
        if not isinstance(specs, list | tuple) or not all(isinstance(spec, dict) for spec in specs):
            raise ValueError("concepts: expected a list of objects")
        concepts = tuple(ConceptSpec(**spec) for spec in specs)
        rewrite = values.pop("rewrite", {})
        if not isinstance(rewrite, dict):
            raise ValueError(f"rewrite: expected an object, found {type(rewrite).__name__}")
        rewrite = dict(rewrite)
        if "word_scores" in rewrite:
            rewrite["word_scores"] = tuple(rewrite["word_scores"])
        if "vote_weights" in values:
            values["vote_weights"] = tuple(tuple(vote) for vote in values["vote_weights"])
        return cls(concepts=concepts, rewrite=RewriteConfig(**rewrite), **values)

    def check(self) -> None:
        """Raises ValueError for values that no training gives: they come from a forged or damaged header."""
        self._check_concepts()
        sizes = {
            "width": (1, MAX_SIZE),
            "pooled_width": (0, MAX_SIZE),
            "window": (1, MAX_SIZE),
            "constant_embeddings": (0, MAX_SIZE),
            "heads": (1, 64),
            "score_span": (0, MAX_SIZE),
            "score_width": (1, MAX_SIZE),
            "erase_width": (1, MAX_SIZE),
            "erase_blocks": (0, 16),
            "rank": (0 if self.gated else 1, self.width),
            "pooled_rank": (0, self.pooled_width),
            "concept_rank": (0, self.width),
            "pooled_concept_rank": (0, self.pooled_width),
            "directions": (0, self.width),
        }
        for name, (low, high) in sizes.items():
            value = getattr(self, name)
            if type(value) is not int or not low <= value <= high:
                raise ValueError(f"{name}: expected a whole number from {low} to {high}, found {value!r}")
        if self.score_span == 1:
            raise ValueError("score_span: expected 0 or at least 2, as spans overlap by half, found 1")
        for name in ("verified", "gated"):
            if type(getattr(self, name)) is not bool:
                raise ValueError(f"{name}: expected true or false, found {getattr(self, name)!r}")
        if self.score_width % self.heads or self.erase_width % self.heads:
            raise ValueError(f"expected widths divisible by {self.heads} heads")
        if not 1 <= len(self.vote_weights) <= MAX_VOTES or any(len(vote) != 3 for vote in self.vote_weights):
            raise ValueError(f"vote_weights: expected 1 to {MAX_VOTES} votes of three weights")
        if not 1 <= len(self.rewrite.word_scores) <= MAX_WORD_SCORES:
            raise ValueError(f"rewrite.word_scores: expected 1 to {MAX_WORD_SCORES} scores")
        numbers = {
            "concept_gain": (0, 10, self.concept_gain),
            "residual_gain": (0, 10, self.residual_gain),
            "strength_curve": (1e-3, 10, self.strength_curve),
            "gate_floor": (0, 1, self.gate_floor),
            "gate_range": (1e-3, 100, self.gate_range),
            "clip": (1e-3, 1e6, self.clip),
            "constant_tolerance": (0, 1, self.constant_tolerance),
            "constant_scale": (0, 1, self.constant_scale),
            "size_deviations": (0, 1e6, self.size_deviations),
            "rewrite.rounds": (0, 100, self.rewrite.rounds),
            "rewrite.margin": (-100, 100, self.rewrite.margin),
            "rewrite.slope": (0, 100, self.rewrite.slope),
            "rewrite.rest": (0, 1, self.rewrite.rest),
            "rewrite.finish": (0, 10, self.rewrite.finish),
        }
        numbers |= {
            f"vote_weights[{i}][{j}]": (0, 1, value)
            for i, vote in enumerate(self.vote_weights)
            for j, value in enumerate(vote)
        }
        numbers |= {f"rewrite.word_scores[{i}]": (0, 1, value) for i, value in enumerate(self.rewrite.word_scores)}
        for name, (low, high, value) in numbers.items():
            # Written so that NaN fails too.
            if type(value) not in (int, float) or not (math.isfinite(value) and low <= value <= high):
                raise ValueError(f"{name}: expected a number from {low} to {high}, found {value!r}")

    def _check_concepts(self) -> None:
        if not 1 <= len(self.concepts) <= MAX_CONCEPTS:
            raise ValueError(f"expected 1 to {MAX_CONCEPTS} concepts, found {len(self.concepts)}")
        for spec in self.concepts:
            problem = phrase_problem(spec.name)
            if problem:
                raise ValueError(f"name of a concept: {problem:.200}")
        names = [spec.name for spec in self.concepts]
        if len(set(names)) != len(names):
            raise ValueError(f"expected different concepts, found {', '.join(names):.200}")
        if all(spec.context is True for spec in self.concepts):
            raise ValueError("expected a concept that can be erased, found context concepts alone")
        for spec in self.concepts:
            if type(spec.context) is not bool:
                raise ValueError(f"context of {spec.name!r}: expected true or false, found {spec.context!r:.80}")
            if not isinstance(spec.lowers, dict):
                raise ValueError(f"lowers of {spec.name!r}: expected an object, found {spec.lowers!r:.80}")
            for name, value in spec.lowers.items():
                if name not in names:
                    raise ValueError(f"lowers of {spec.name!r}: {name!r:.80} is none of its concepts")
                if type(value) not in (int, float) or not 0 <= value <= MAX_LOWERED:
                    raise ValueError(
                        f"lowers of {spec.name!r}: expected logits from 0 to {MAX_LOWERED:g}, found {value!r:.80}"
                    )
