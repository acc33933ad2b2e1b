"""ComfyUI's CLIP object as a TextEncoder: any text encoder that ComfyUI can load, with its clip-skip and LoRA.

Shapes: N prompts, L token embeddings, D channels, P pooled channels.
"""

from collections.abc import Iterator, Sequence
from itertools import permutations
from typing import Any

import comfy.model_management
import torch
from comfy.sd1_clip import ClipTokenWeightEncoder
from torch import Tensor

from ...sanitizer.encoders.base import Encoding, Fingerprint, hash_weights
from ...sanitizer.errors import SanitizerError
from .conditioning import Part, parts
from .tokens import row_tokens, spans

TOKENS_PER_CALL = 64 * 77
"""Tokens that are encoded at once, so that a T5 with 256 of them gets smaller batches than CLIP."""
PROBES = ("", "a red boat on a lake", "three cups of tea and a book on a wooden table")
PROBE_TOLERANCE = 0.01
"""Of the largest value: kernels may differ with the batch size, a wrong arrangement differs by far more."""


class ComfyTextEncoder:
    """Encodes batches of prompts exactly as a text encode node would encode them one by one.

    A CLIP that came through Sanitize CLIP is read without its sanitizer.
    """

    def __init__(self, clip) -> None:
        self.clip = clip.clone()
        while hasattr(self.clip.cond_stage_model, "unsanitized"):
            self.clip.cond_stage_model = self.clip.cond_stage_model.unsanitized
        self._fingerprint: Fingerprint | None = None
        self._batches: bool | None = None

    @property
    def name(self) -> str:
        return self.architecture

    @property
    def architecture(self) -> str:
        """Class of the text model, and the layer where it is not the class's own."""
        name = type(self.clip.cond_stage_model).__name__.strip("_")
        layers = _layers(self.clip.cond_stage_model, self.clip.layer_idx)
        return name if layers == _layers(self.clip.cond_stage_model, None) else f"{name}, {layers}"

    @property
    def fingerprint(self) -> Fingerprint:
        if self._fingerprint is None:
            part = self._encode_one(self.clip.tokenize(""))
            pooled = 0 if part.pooled is None else part.pooled.shape[1]
            if replaced_forwards(self.clip.cond_stage_model):
                raise SanitizerError(
                    "CLIP: a LoRA in bypass mode is on the text encoder, which then cannot be told from the plain one. "
                    "Load the LoRA with an ordinary LoRA loader."
                )
            weights = hash_weights(self._weights())
            self._fingerprint = Fingerprint(self.architecture, part.embeddings.shape[2], pooled, weights)
        return self._fingerprint

    def encode(self, prompts: Sequence[str]) -> Encoding:
        """Encode a batch; what a shorter prompt lacks is zero and masked. Raises SanitizerError for a model
        whose conditioning has text in a place that is not covered, and ComfyUI's interrupt exception between the
        batches that the model takes: a large encoder needs minutes for those of training."""
        with torch.inference_mode():
            tokens = [self.clip.tokenize(prompt) for prompt in prompts]
            encoded = self._encode_all(tokens)
        # Tensors made under inference mode cannot be trained on; the copies that are made here can.
        parts_of = []
        for part, own, prompt in zip(encoded, tokens, prompts, strict=True):
            embeddings = part.embeddings.to("cpu", torch.float32)
            found = row_tokens(self.clip, own, embeddings.shape[1])
            mask = torch.ones(embeddings.shape[:2], dtype=torch.bool) if part.mask is None else part.mask.cpu().bool()
            pooled = None if part.pooled is None else part.pooled.to("cpu", torch.float32)
            parts_of.append(Encoding(embeddings, mask, pooled, [found], [spans(prompt, found)]))
        return Encoding.cat(parts_of)

    def _encode_all(self, tokens: list[dict]) -> list[Part]:
        found: dict[int, Part] = {}
        groups: dict[tuple, list[int]] = {}
        for index, own in enumerate(tokens):
            groups.setdefault(_shape(own), []).append(index)
        for shape, members in groups.items():
            if shape == () or len(members) == 1 or not self._can_batch():
                for index in members:
                    comfy.model_management.throw_exception_if_processing_interrupted()
                    found[index] = self._encode_one(tokens[index])
                continue
            size = max(1, TOKENS_PER_CALL // max(length for _, length in shape))
            while members:
                comfy.model_management.throw_exception_if_processing_interrupted()
                some = members[:size]
                try:
                    encoded = self._encode_batch([tokens[i] for i in some])
                except (RuntimeError, MemoryError) as error:
                    if size == 1 or not _out_of_memory(error):
                        raise
                    size = max(1, size // 2)
                    comfy.model_management.soft_empty_cache()
                    continue
                found.update(zip(some, encoded, strict=True))
                members = members[size:]
        return [found[index] for index in range(len(tokens))]

    def _encode_one(self, tokens: dict) -> Part:
        out = self.clip.encode_from_tokens(tokens, return_pooled=True, return_dict=True)
        return parts([out.pop("cond"), out])[0]

    def _encode_batch(self, tokens: list[dict]) -> list[Part]:
        """ComfyUI runs the chunks of one long prompt as a batch; here every chunk is a prompt of its own."""
        joined = {key: [own[key][0] for own in tokens] for key in tokens[0]}
        with _PooledVectors(self.clip.cond_stage_model) as vectors:
            out = self.clip.encode_from_tokens(joined, return_pooled=True, return_dict=True)
        part = parts([out.pop("cond"), out])[0]
        count = len(tokens)
        embeddings = part.embeddings.reshape(count, -1, part.embeddings.shape[2])
        mask = None if part.mask is None else part.mask.reshape(count, -1)
        pooled = None if part.pooled is None else vectors.like(part.pooled, count)
        return [
            Part(
                part.keys,
                embeddings[i : i + 1],
                None if mask is None else mask[i : i + 1],
                None if pooled is None else pooled[i : i + 1],
            )
            for i in range(count)
        ]

    def _can_batch(self) -> bool:
        """Whether a batch gives what single prompts give; models that cut, stack or append embeddings do not."""
        if self._batches is None:
            tokens = [self.clip.tokenize(prompt) for prompt in PROBES]
            single = [self._encode_one(own) for own in tokens]
            try:
                batch = self._encode_batch(tokens) if len({_shape(own) for own in tokens}) == 1 else []
            except (RuntimeError, ValueError, IndexError, MemoryError) as error:
                if _out_of_memory(error):
                    return False  # that says nothing of the model, so it is tried again the next time
                batch = []
            self._batches = len(batch) == len(single) and all(map(_alike, single, batch))
        return self._batches

    def _weights(self) -> Iterator[tuple[str, Tensor]]:
        """Every weight as it is without patches, then the patches (LoRA), all in float16: the same file gives the same
        values whether ComfyUI holds it in single or in half precision. Raises SanitizerError for one that is not
        there."""
        patcher, own = self.clip.patcher, dict(self.clip.cond_stage_model.named_parameters())
        for name, tensor in self.clip.cond_stage_model.state_dict().items():
            if name.endswith("logit_scale") or not torch.is_tensor(tensor):
                continue
            if name in patcher.backup:
                # A loaded model has its LoRA already added to the weight; the original lies here.
                tensor = patcher.backup[name].weight
            elif tensor.is_meta:
                # ComfyUI-GGUF gives sizes in place of weights, and names some that are none.
                if name not in own:
                    continue
                tensor = own[name]
            if tensor.is_meta:
                raise SanitizerError(
                    f"CLIP: the weight {name!r} is not loaded, so which text encoder this is cannot be told. Load the "
                    "CLIP with one of ComfyUI's own loaders."
                )
            yield name, _half(tensor)
        for name, patches in patcher.patches.items():
            for number, patch in enumerate(patches):
                yield f"{name}/patch{number}", torch.tensor([float(patch[0]), float(patch[2])])
                for place, tensor in enumerate(_tensors(patch[1])):
                    yield f"{name}/patch{number}/{place}", _half(tensor)


class _PooledVectors:
    """Records the pooled vectors of every chunk; ComfyUI hands on the first chunk's only."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.encoders = [module for module in model.modules() if isinstance(module, ClipTokenWeightEncoder)]
        self.found: list[Tensor] = []
        self.hooks: list = []

    def __enter__(self) -> "_PooledVectors":
        def record(_module, _inputs, output) -> None:
            if len(output) > 1 and torch.is_tensor(output[1]):
                self.found.append(output[1])

        self.hooks = [encoder.register_forward_hook(record) for encoder in self.encoders]
        return self

    def __exit__(self, *_exc) -> None:
        for hook in self.hooks:
            hook.remove()

    def like(self, first: Tensor, count: int) -> Tensor:
        """(count, P): the recorded vectors, one or two joined, whose first is `first` (1, P)."""
        found = [vector[:count].to(first.device) for vector in self.found]
        for size in (1, 2):
            for some in permutations(found, size):
                joined = torch.cat(some, dim=-1)
                if joined.shape == (count, first.shape[1]) and torch.equal(joined[:1], first):
                    return joined
        raise ValueError("no recorded pooled vector is the model's")


def _out_of_memory(error: BaseException) -> bool:
    """On a processor it is a RuntimeError that only its text tells."""
    return isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)) or "memory" in str(error).lower()


def _shape(tokens: dict) -> tuple:
    """(key, length) of each key, or () for a prompt that must go alone: several chunks, weights, embeddings."""
    shape = []
    for key, chunks in tokens.items():
        if len(chunks) != 1 or any(not isinstance(entry[0], int) or entry[1] != 1.0 for entry in chunks[0]):
            return ()
        shape.append((key, len(chunks[0])))
    return tuple(shape)


def _alike(a: Part, b: Part) -> bool:
    same_mask = a.mask is b.mask if a.mask is None or b.mask is None else torch.equal(a.mask, b.mask)
    same_pooled = a.pooled is b.pooled if a.pooled is None or b.pooled is None else _near(a.pooled, b.pooled)
    return same_mask and same_pooled and _near(a.embeddings, b.embeddings)


def _near(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool((a - b).abs().max() <= PROBE_TOLERANCE * a.abs().max())


def _layers(model, layer_idx) -> str:
    """Which layer each encoder puts out when the CLIP asks for `layer_idx`."""
    model.reset_clip_options()
    if layer_idx is not None:
        model.set_clip_options({"layer": layer_idx})
    chosen = chosen_layers(model)
    model.reset_clip_options()
    return chosen


def chosen_layers(model) -> str:
    """Which layer each encoder of a text model puts out as it is set now."""
    chosen = []
    for name, module in model.named_modules():
        if isinstance(module, ClipTokenWeightEncoder) and hasattr(module, "layer"):
            inner: Any = module
            layer = inner.layer_idx if inner.layer == "hidden" else inner.layer
            # The last hidden layer with the final norm is the last layer.
            last = layer == -1 and getattr(module, "layer_norm_hidden_state", False)
            chosen.append(f"{name} layer {'last' if last else layer}")
    return ", ".join(chosen)


def replaced_forwards(model) -> tuple:
    """Methods by which other code has replaced `forward` of a module, as LoRA in bypass mode does."""
    found = []
    for module in model.modules():
        own = vars(module).get("forward")
        if own is not None and getattr(own, "__func__", None) is not type(module).forward:
            found.append(own)
    return tuple(found)


def _half(tensor: Tensor) -> Tensor:
    if type(tensor) not in (torch.Tensor, torch.nn.Parameter):
        # Quantized weights are subclasses. Where one has no method of its own for it, its bytes are as good.
        own = type(tensor).dequantize is not torch.Tensor.dequantize
        tensor = tensor.dequantize() if own else tensor.as_subclass(torch.Tensor)
    return tensor.detach().reshape(-1)[:: max(1, tensor.numel() // 4096)].to(torch.float16)


def _tensors(value) -> Iterator[Tensor]:
    """Tensors inside a patch: a tuple, or an adapter that keeps them in `weights`."""
    if torch.is_tensor(value):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
    elif hasattr(value, "weights"):
        yield from _tensors(value.weights)
