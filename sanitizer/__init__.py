"""The core of the Embedding Sanitizer: torch, safetensors and the standard library; knows nothing of ComfyUI.

The public interface is what stands in `__all__`; everything else may move. Each name is imported when it is asked for:
the command line's help must not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from .errors import SanitizerError

if TYPE_CHECKING:
    from .encoders import Encoding, TextEncoder, load_encoder
    from .model.artifact import load, save
    from .model.sanitizer import EmbeddingSanitizer, Sanitized, Scores
    from .prompts.concepts import load_concepts
    from .training.config import TrainingConfig
    from .training.fit import fit

__all__ = [
    "EmbeddingSanitizer",
    "Encoding",
    "Sanitized",
    "SanitizerError",
    "Scores",
    "TextEncoder",
    "TrainingConfig",
    "fit",
    "load",
    "load_concepts",
    "load_encoder",
    "save",
]
_HOMES = {
    "EmbeddingSanitizer": ".model.sanitizer",
    "Encoding": ".encoders",
    "Sanitized": ".model.sanitizer",
    "Scores": ".model.sanitizer",
    "TextEncoder": ".encoders",
    "TrainingConfig": ".training.config",
    "fit": ".training.fit",
    "load": ".model.artifact",
    "load_concepts": ".prompts.concepts",
    "load_encoder": ".encoders",
    "save": ".model.artifact",
}


def __getattr__(name: str):
    if name in _HOMES:
        return getattr(import_module(_HOMES[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
