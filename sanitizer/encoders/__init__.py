"""Text encoders. The heavy libraries behind them are imported when an encoder is asked for."""

from .base import Encoding, Fingerprint, TextEncoder, hash_weights

__all__ = ["EMBEDDED", "Encoding", "Fingerprint", "TextEncoder", "hash_weights", "load_encoder"]

EMBEDDED = ("minilm", "minilm-causal")


def load_encoder(name: str, device: str = "cpu") -> TextEncoder:
    """Load an encoder by name.

    `minilm` and `minilm-causal` come with the extra `cli` or requirements-demo.txt. Anything else is a local folder
    or a hub name of a CLIP text model, a T5 encoder or a BERT-like model for transformers; `folder@-2` takes the
    second-last layer of a CLIP text model, as Stable Diffusion 2 and SDXL do.

    Raises SanitizerError where the encoder cannot be had.
    """
    if name in EMBEDDED:
        from .minilm import load_minilm

        return load_minilm(causal=name == "minilm-causal", device=device)
    from .transformers import load_transformers_encoder

    return load_transformers_encoder(name, device=device)
