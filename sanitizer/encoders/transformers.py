"""Text encoders of the transformers library: CLIP text models, T5 encoders, BERT-like models."""

from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import SanitizerError
from .windows import WindowedEncoder, WindowLayout


class TransformersEncoder(WindowedEncoder):
    """What the three families share: a model and a fast tokenizer, both from `source`."""

    def __init__(self, source: str | Path, name: str, device: str, model: torch.nn.Module) -> None:
        from transformers import AutoTokenizer

        tokenizer = _load(AutoTokenizer, source)
        if not tokenizer.is_fast:
            raise SanitizerError(
                f"Encoder {name}: expected a fast tokenizer (tokenizer.json), which alone gives character offsets, "
                "found a slow one. Save the tokenizer again with a current transformers."
            )
        super().__init__(name, device, model, tokenizer)


class BertEncoder(TransformersEncoder):
    """Token embeddings of the last layer."""

    def __init__(self, source: str | Path, name: str, device: str) -> None:
        from transformers import AutoConfig, AutoModel

        config = _load(AutoConfig, source)
        kwargs = {"add_pooling_layer": False} if config.model_type == "bert" else {}
        super().__init__(source, name, device, _load(AutoModel, source, config=config, **kwargs))
        self.width = config.hidden_size
        self.architecture = config.model_type
        tokenizer = self.tokenizer
        self.layout = WindowLayout(
            length=min(config.max_position_embeddings, tokenizer.model_max_length),
            start=(tokenizer.cls_token_id,),
            end=(tokenizer.sep_token_id,),
            pad=tokenizer.pad_token_id,
            fixed=False,
        )

    def _run(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor | None]:
        out = self.model(input_ids=ids.to(self.device), attention_mask=mask.to(self.device).long())
        return out.last_hidden_state, None


class ClipEncoder(TransformersEncoder):
    """Rows of one layer of a CLIP text model, and its pooled vector.

    `layer` counts from the end: -1 is the last layer after the final norm (Stable Diffusion 1.x), -2 the second-last
    after the final norm (clip skip 2, Stable Diffusion 2). With `raw` the norm is left out (SDXL).
    """

    def __init__(self, source: str | Path, name: str, device: str, layer: int = -1, raw: bool = False) -> None:
        from transformers import AutoConfig, CLIPTextModel, CLIPTextModelWithProjection

        config = _load(AutoConfig, source)
        text = getattr(config, "text_config", config)
        self.projected = "CLIPTextModelWithProjection" in (config.architectures or [])
        cls = CLIPTextModelWithProjection if self.projected else CLIPTextModel
        if not -text.num_hidden_layers <= layer <= -1:
            raise SanitizerError(
                f"Encoder {name}: expected a layer from -{text.num_hidden_layers} to -1, found {layer}."
            )
        super().__init__(source, name, device, _load(cls, source, config=text))
        self.layer, self.raw = layer, raw
        self.width = text.hidden_size
        self.pooled_width = text.projection_dim if self.projected else text.hidden_size
        self.architecture = f"clip_text, layer {layer}{' raw' if raw else ''}{', projected' if self.projected else ''}"
        tokenizer = self.tokenizer
        self.layout = WindowLayout(
            length=min(text.max_position_embeddings, tokenizer.model_max_length),
            start=(tokenizer.bos_token_id,),
            end=(tokenizer.eos_token_id,),
            pad=tokenizer.pad_token_id,
            fixed=True,
        )

    def _run(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor | None]:
        out = self.model(input_ids=ids.to(self.device), output_hidden_states=True)
        rows = out.hidden_states[self.layer]
        if not self.raw:
            inner: Any = getattr(self.model, "text_model", self.model)
            rows = inner.final_layer_norm(rows)
        return rows, out.text_embeds if self.projected else out.pooler_output


class T5Encoder(TransformersEncoder):
    """Rows of a T5 encoder, the whole prompt at once; padding is masked."""

    def __init__(self, source: str | Path, name: str, device: str) -> None:
        from transformers import AutoConfig, T5EncoderModel, UMT5EncoderModel

        config = _load(AutoConfig, source)
        cls = UMT5EncoderModel if config.model_type == "umt5" else T5EncoderModel
        super().__init__(source, name, device, _load(cls, source))
        self.width = config.d_model
        self.architecture = config.model_type
        tokenizer = self.tokenizer
        self.layout = WindowLayout(
            length=None, start=(), end=(tokenizer.eos_token_id,), pad=tokenizer.pad_token_id, fixed=False
        )

    def _run(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor | None]:
        out = self.model(input_ids=ids.to(self.device), attention_mask=mask.to(self.device).long())
        return out.last_hidden_state, None


def load_transformers_encoder(name: str, device: str = "cpu") -> TransformersEncoder:
    """Load `folder-or-hub-name[@layer[raw]]` by the model type in its config.

    Raises SanitizerError for a missing package, an unreachable model or a type that is none of the three families.
    """
    source, _, choice = name.partition("@")
    try:
        from transformers import AutoConfig
    except ImportError as error:
        raise SanitizerError(f"Encoder {name}: transformers cannot be imported ({error}). Install it.") from error
    kind = _load(AutoConfig, source).model_type
    if kind in ("clip", "clip_text_model"):
        number, raw = choice.removesuffix("raw"), choice.endswith("raw")
        try:
            layer = int(number) if number else -1
        except ValueError:
            raise SanitizerError(f"Encoder {name}: expected a layer such as @-2 or @-2raw, found @{choice}.") from None
        return ClipEncoder(source, name, device, layer, raw)
    if choice:
        raise SanitizerError(f"Encoder {name}: a layer can be chosen for CLIP text models only, found type {kind}.")
    if kind in ("t5", "umt5"):
        return T5Encoder(source, name, device)
    if kind in ("bert", "roberta", "xlm-roberta", "distilbert", "mpnet", "electra"):
        return BertEncoder(source, name, device)
    raise SanitizerError(
        f"Encoder {name}: expected a CLIP text model, a T5 encoder or a BERT-like model, found type {kind!r}."
    )


@contextmanager
def errors_alone(logging):
    """The `utils.logging` of transformers or diffusers says errors alone; its level comes back."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)


@contextmanager
def _quiet():
    """No loading bar and no report on heads that a text encoder does not need; the user's settings come back."""
    from transformers.utils import logging

    bar = logging.is_progress_bar_enabled()
    with errors_alone(logging):
        logging.disable_progress_bar()
        try:
            yield
        finally:
            if bar:
                logging.enable_progress_bar()


def _load(cls, source: str | Path, **kwargs):
    """from_pretrained that never runs a model's own code, never unpickles, and fails with one line."""
    if cls.__name__.endswith("Model") or "Projection" in cls.__name__:
        # The computation of the sanitizer is float32, and half precision on a CPU is slow.
        kwargs |= {"use_safetensors": True, "dtype": torch.float32}
    try:
        with _quiet():
            return cls.from_pretrained(str(source), trust_remote_code=False, **kwargs)
    except (OSError, ValueError, ImportError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise SanitizerError(
            f"Encoder {source}: not a local folder or reachable hub name of a text encoder in safetensors ({first})"
        ) from error
