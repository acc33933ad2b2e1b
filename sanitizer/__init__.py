"""The core of the Embedding Sanitizer: torch, safetensors and the standard library; knows nothing of ComfyUI.

The public interface is what stands in `__all__`; everything else may move. Each name is imported when it is asked for:
the command line's help must not wait for torch.
"""

from importlib import import_module

from .errors import SanitizerError

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
__all__ = ["SanitizerError", *sorted(_HOMES)]


def __getattr__(name: str):
    if name in _HOMES:
        return getattr(import_module(_HOMES[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
