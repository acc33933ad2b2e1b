"""The core of the Embedding Sanitizer: torch, safetensors and the standard library; knows nothing of ComfyUI."""

from .errors import SanitizerError

__all__ = ["EmbeddingSanitizer", "Sanitized", "SanitizerError", "Scores"]


def __getattr__(name: str):
    """The model's names, imported when asked for: the command line's help must not wait for torch."""
    if name in __all__:
        from . import model

        return getattr(model, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
