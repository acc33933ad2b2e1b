"""Safety methods on prompt embeddings: our own code from the published formulas, LEACE from its authors' package.

A method is made by its factory in METHODS and imported then.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..types import Method


def _lazily(module: str, name: str) -> Callable[..., Method]:
    def make(*arguments, **named) -> Method:
        return getattr(import_module(f".{module}", __name__), name)(*arguments, **named)

    make.__name__ = module
    return make


METHODS: dict[str, Callable[..., Method]] = {
    "none": _lazily("baselines", "NoMethod"),
    "word_list": _lazily("baselines", "WordList"),
    "semantic_surgery": _lazily("semantic_surgery", "SemanticSurgery"),
    "safree": _lazily("safree", "Safree"),
    "leace": _lazily("leace", "Leace"),
    "concept_vector": _lazily("concept_vector", "ConceptVector"),
    "linear_edit": _lazily("linear_edit", "LinearEdit"),
    "latent_guard": _lazily("latent_guard", "LatentGuard"),
    "safeguider": _lazily("safeguider", "SafeGuider"),
    "re_encode": _lazily("ours", "ReEncode"),
    "ours_text": _lazily("ours", "OursText"),
    "ours": _lazily("ours", "Ours"),
}
"""Name -> factory. Those of OWN take the EmbeddingSanitizer, the others nothing."""
OWN = ("re_encode", "ours_text", "ours")
"""Methods that apply the sanitizer."""
