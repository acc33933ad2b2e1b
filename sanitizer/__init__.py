"""The core of the Embedding Sanitizer: torch, safetensors and the standard library; knows nothing of ComfyUI."""

from .errors import SanitizerError
from .model import EmbeddingSanitizer, Sanitized, Scores

__all__ = ["EmbeddingSanitizer", "Sanitized", "SanitizerError", "Scores"]
