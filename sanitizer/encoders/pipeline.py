"""The text encoders of a diffusers pipeline, called as the pipeline calls them, so that a sanitizer is trained on
exactly what reaches its diffusion model.

diffusers is imported with the first prompt: whoever has a pipeline has it.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import SanitizerError
from .base import Encoding, Fingerprint, hash_weights
from .transformers import errors_alone


class _Family(NamedTuple):
    """Pipelines of one kind, whose class names begin alike."""

    begins: str
    components: tuple[str, ...]
    """Text encoders, in the order in which they are hashed."""
    tokenizer: str
    """Of the token embeddings."""
    options: tuple[str, ...]
    """Arguments of the pipeline that change what its text encoders put out."""


FAMILIES = (
    _Family("StableDiffusionXL", ("text_encoder", "text_encoder_2"), "tokenizer", ("clip_skip",)),
    _Family("StableDiffusion", ("text_encoder",), "tokenizer", ("clip_skip",)),
    _Family("Flux", ("text_encoder", "text_encoder_2"), "tokenizer_2", ("max_sequence_length",)),
)
REFUSED = ("StableDiffusion3", "Flux2")
"""They begin like one of the families, and put text in further places."""


class PipelineEncoder:
    """The text encoders of a pipeline of Stable Diffusion 1 and 2, SDXL or Flux.1 as one encoder.

    pipe: the pipeline, with its LoRA. options: those of the pipeline's own arguments that change what the text encoders
    put out, as they will be given to it: `clip_skip`, or `max_sequence_length` for Flux. A prompt that is longer than
    the tokenizer allows is cut off, as the pipeline does.

    Raises SanitizerError for another kind of pipeline, one without its text encoders, other options, and tokenizers
    that give no character offsets.
    """

    def __init__(self, pipe: Any, **options: int) -> None:
        self.pipe, self.options = pipe, {name: value for name, value in options.items() if value is not None}
        self.name = type(pipe).__name__
        self._family = _family(self.name)
        for name in self._family.components:
            if getattr(pipe, name, None) is None:
                raise SanitizerError(
                    f"Pipeline {self.name}: expected its {name}, found none. Load it with all its text encoders."
                )
        for name in self.options:
            if name not in self._family.options:
                raise SanitizerError(
                    f"Pipeline {self.name}: {name} is no option of its text encoders. "
                    f"Expected {', '.join(self._family.options)}."
                )
        self.tokenizer = getattr(pipe, self._family.tokenizer)
        if not getattr(self.tokenizer, "is_fast", False):
            raise SanitizerError(
                f"Pipeline {self.name}: expected a fast {self._family.tokenizer}, which alone gives character offsets, "
                f"found {type(self.tokenizer).__name__}. Give the pipeline its fast version, such as CLIPTokenizerFast."
            )
        self._fingerprint: Fingerprint | None = None

    @property
    def fingerprint(self) -> Fingerprint:
        if self._fingerprint is None:
            rows, pooled = self._run([""])
            named = [item for name in self._family.components for item in _weights(name, getattr(self.pipe, name))]
            said = "".join(f", {name} {value}" for name, value in sorted(self.options.items()))
            width, pooled_width = rows.shape[2], 0 if pooled is None else pooled.shape[1]
            self._fingerprint = Fingerprint(f"{self._family.begins}{said}", width, pooled_width, hash_weights(named))
        return self._fingerprint

    def encode(self, prompts: Sequence[str]) -> Encoding:
        """What the pipeline makes of the prompts: embeddings (B, L, D) and pooled (B, P) or None, in its dtype and on
        its device; every embedding is visible, the padding among them, as the diffusion model sees it."""
        rows, pooled = self._run(list(prompts))
        length = rows.shape[1]
        with _quiet():
            found = self.tokenizer(
                list(prompts), max_length=length, truncation=True, padding="max_length",
                return_offsets_mapping=True, return_special_tokens_mask=True,
            )  # fmt: skip
        tokens, offsets = [], []
        for ids, spans, special in zip(
            found["input_ids"], found["offset_mapping"], found["special_tokens_mask"], strict=True
        ):
            pieces = self.tokenizer.convert_ids_to_tokens(ids)
            empty = [bool(mark) or start == end for mark, (start, end) in zip(special, spans, strict=True)]
            tokens.append(["" if none else piece for none, piece in zip(empty, pieces, strict=True)])
            offsets.append([(0, 0) if none else tuple(span) for none, span in zip(empty, spans, strict=True)])
        return Encoding(rows, torch.ones(rows.shape[:2], dtype=torch.bool, device=rows.device), pooled, tokens, offsets)

    def arguments(self, embeddings: Tensor, pooled: Tensor | None) -> Mapping[str, Tensor]:
        """Embeddings as arguments of the pipeline: `pipe(**encoder.arguments(out.embeddings, out.pooled))`."""
        found = {"prompt_embeds": embeddings}
        return found if pooled is None else found | {"pooled_prompt_embeds": pooled}

    def _run(self, prompts: list[str]) -> tuple[Tensor, Tensor | None]:
        pipe, begins = self.pipe, self._family.begins
        with torch.inference_mode(False), torch.no_grad(), _quiet():
            if begins == "StableDiffusion":
                found = pipe.encode_prompt(prompts, pipe._execution_device, 1, False, **self.options)
                return found[0], None
            if begins == "StableDiffusionXL":
                found = pipe.encode_prompt(prompts, do_classifier_free_guidance=False, **self.options)
                return found[0], found[2]
            found = pipe.encode_prompt(prompts, **self.options)
            return found[0], found[1]


def _weights(name: str, model: torch.nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Everything that says what a text encoder puts out: also the strengths of LoRA that are not fused into it, which
    peft keeps in its layers' `scaling`."""
    yield from ((f"{name}.{own}", tensor) for own, tensor in model.named_parameters())
    for own, module in model.named_modules():
        scaling = getattr(module, "scaling", None)
        if isinstance(scaling, dict) and not getattr(module, "disable_adapters", False):
            active = getattr(module, "active_adapters", list(scaling))
            for adapter in sorted(set(active) & scaling.keys()):
                yield f"{name}.{own}.scaling.{adapter}", torch.tensor([float(scaling[adapter])])


def _family(name: str) -> _Family:
    for family in FAMILIES:
        if name.startswith(family.begins) and not name.startswith(REFUSED):
            return family
    raise SanitizerError(
        f"Pipeline {name}: expected one of {', '.join(family.begins + '…' for family in FAMILIES)}. For another one, "
        "write an encoder of your own (see docs/python.md): it may put text in places that are not known here."
    )


@contextmanager
def _quiet():
    """Without a warning for each training prompt that is longer than the tokenizer allows; the settings come back."""
    import diffusers.utils.logging as of_diffusers
    import transformers.utils.logging as of_transformers

    with errors_alone(of_diffusers), errors_alone(of_transformers):
        yield
