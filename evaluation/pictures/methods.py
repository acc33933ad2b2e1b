"""What is compared on pictures beside the methods of evaluation/methods: the negative prompt, which acts in the
sampler, and the oracle, which knows the safe counterfactual."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from sanitizer.encoders import Encoding, TextEncoder
from sanitizer.encoders.alignment import lerp
from sanitizer.model.sanitizer import EmbeddingSanitizer
from sanitizer.prompts.concepts import Concept

from ..methods import METHODS, OWN
from ..methods.common import substitute
from ..types import Batch, Development, Method, Treated, untouched

NONE, NEGATIVE, ORACLE = "none", "negative_prompt", "oracle"
COMPARED = ("word_list", "safree", "semantic_surgery", "leace", "concept_vector", "linear_edit", "ours", "re_encode")
KNOWN = (NONE, NEGATIVE, *COMPARED, ORACLE)
"""All, in the report's order."""


class NegativePrompt:
    """The concept's plain names as a negative prompt, what people use today. Strength weighs it as ComfyUI weighs
    words: the embedding is moved from the empty prompt's through its own."""

    name = NEGATIVE
    title = "Negative prompt"
    source = "Ho and Salimans 2022, classifier-free guidance, arXiv 2207.12598"

    def __init__(self, names: list[str]) -> None:
        self.text = ", ".join(names)

    def fit(self, development: Development) -> None:
        """Encode it."""
        self.own, self.empty = (development.encoder.encode([text]) for text in (self.text, ""))

    def score(self, batch: Batch) -> Tensor | None:
        """No score."""

    def token_scores(self, batch: Batch) -> Tensor | None:
        """No score."""

    def apply(self, batch: Batch, strength: float = 1.0) -> Treated:
        """The batch as it is."""
        return untouched(batch)

    def negative(self, strength: float) -> Encoding:
        """What the picture is guided away from."""
        return lerp(self.empty, self.own, strength) if strength else self.empty


class Oracle:
    """The safe counterfactual itself, encoded: what no method can know, and the best that one could do."""

    name = ORACLE
    title = "Oracle: the safe counterfactual"
    source = "-"

    def __init__(self, safe: dict[str, str]) -> None:
        self.safe = safe
        """Prompt -> its counterfactual."""

    def fit(self, development: Development) -> None:
        """Keep the encoder."""
        self.encoder: TextEncoder = development.encoder

    def score(self, batch: Batch) -> Tensor | None:
        """No score."""

    def token_scores(self, batch: Batch) -> Tensor | None:
        """No score."""

    @torch.no_grad()
    def apply(self, batch: Batch, strength: float = 1.0) -> Treated:
        """Encode the counterfactual where there is another one."""
        index = [i for i, text in enumerate(batch.prompts) if self.safe.get(text, text) != text]
        safe = [self.safe[batch.prompts[i]] for i in index]
        return substitute(batch, index, self.encoder.encode(safe), strength) if index else untouched(batch)


def factories(
    sanitizer: EmbeddingSanitizer, concepts: list[Concept], names: list[str], safe: dict[str, str]
) -> dict[str, Callable[[], Method]]:
    """Name -> factory, in the report's order. concepts: whose words the deobfuscator knows; names: of the negative
    prompt; safe: prompt -> counterfactual."""
    own = {name: partial(METHODS[name], sanitizer) for name in OWN}
    own["re_encode"] = partial(METHODS["re_encode"], sanitizer, concepts)
    return {
        NONE: METHODS[NONE],
        NEGATIVE: partial(NegativePrompt, names),
        **{name: own.get(name, METHODS[name]) for name in COMPARED},
        ORACLE: partial(Oracle, safe),
    }
