"""Whether a text model still encodes as it did, told whenever it encodes: a LoRA, a clip-skip, a hook or a merge behind
Sanitize CLIP makes another encoder of it, which the sanitizer does not know.

ComfyUI's patches, options and hooks leave marks on the text model. While those are as they were, nothing is computed;
where one is another, a probe is encoded once more, so that a change without effect, such as a LoRA of strength 0, is
no error.
"""

from typing import Any, NamedTuple

import torch
from comfy.sd1_clip import ClipTokenWeightEncoder

from ...sanitizer.errors import SanitizerError
from .clip import PROBES, ComfyTextEncoder

TOLERANCE = 1e-4
"""Of the largest value of the probe's encoding. The same weights give the same values; a LoRA changes more."""


class _State(NamedTuple):
    weights: Any
    """ModelPatcher's id of the patches (LoRA, merge) that the loaded weights have; both versions set it on loading,
    with low VRAM too, where patches are added to a weight only when it is used."""
    layers: tuple
    """Layer and kind of pooled vector that each encoder puts out."""
    hooked: bool
    forwards: tuple
    """Replaced `forward` methods of modules, as LoRA in bypass mode sets them."""


class EncoderCheck:
    """Compares a CLIP's text model, when called, with what it was when this was made."""

    def __init__(self, clip) -> None:
        own = ComfyTextEncoder(clip).clip
        self._model, self._patcher = own.cond_stage_model, own.patcher
        self._probe = own.tokenize(PROBES[1])
        self._expected = _tensors(own.encode_from_tokens(self._probe, return_pooled=True))
        self._first = self._state()
        self._known = {self._first}

    def __call__(self) -> None:
        """To be called where the text model is about to encode. Raises SanitizerError where it has become another."""
        state = self._state()
        # Hooks change weights for each step of a schedule under one id.
        if state in self._known and not state.hooked:
            return
        if not self._same(_tensors(self._model.encode_token_weights(self._probe))):
            raise SanitizerError(
                f"Sanitize CLIP: the encoder was changed behind this node by {self._change(state)}, so the sanitizer "
                "does not know it. Put such nodes in front of Sanitize CLIP and connect the changed CLIP to Load "
                "Sanitizer, too."
            )
        if not state.hooked:
            self._known.add(state)

    def _state(self) -> _State:
        layers, forwards = [], []
        for name, module in self._model.named_modules():
            if isinstance(module, ClipTokenWeightEncoder):
                options = [getattr(module, key, None) for key in ("layer", "layer_idx", "return_projected_pooled")]
                layers.append((name, str(options)))
            if "forward" in vars(module):
                forwards.append(vars(module)["forward"])
        # The patcher's clones share one dict of the weights that hooks have changed.
        hooked = bool(self._patcher.hook_backup)
        return _State(self._model.current_weight_patches_uuid, tuple(layers), hooked, tuple(forwards))

    def _same(self, found: list) -> bool:
        if [tensor.shape for tensor in found] != [tensor.shape for tensor in self._expected]:
            return False
        return all(
            bool((a - b).abs().max() <= TOLERANCE * b.abs().max()) for a, b in zip(found, self._expected, strict=True)
        )

    def _change(self, state: _State) -> str:
        if state.hooked:
            return "hooks (Set CLIP Hooks)"
        if state.layers != self._first.layers:
            return "another layer or pooled vector (clip-skip, GLIGEN)"
        if state.forwards != self._first.forwards:
            return "a LoRA in bypass mode"
        return "patches to its weights (LoRA, merging of CLIPs)"


def _tensors(encoded: tuple) -> list[torch.Tensor]:
    """Embeddings and, where there is one, the pooled vector."""
    return [tensor.to("cpu", torch.float32, copy=True) for tensor in encoded[:2] if torch.is_tensor(tensor)]


def refuse_merging(patcher) -> None:
    """Makes a patcher, and its clones, refuse to give its weights away: merged into another CLIP, they would go past
    the sanitizer. The merging node calls this method of the patcher, so nothing of ComfyUI's own is changed."""
    kind = type(patcher)
    if not hasattr(kind, "refuses_merging"):
        methods = {"get_key_patches": _refuse, "refuses_merging": True}
        patcher.__class__ = type(kind.__name__, (kind,), methods)


def _refuse(*_args, **_options) -> None:
    raise SanitizerError(
        "Sanitize CLIP: a node wants the weights of the sanitized CLIP, to merge them or to put hooks on them, and what "
        "it makes would go past the sanitizer. Merge the plain CLIPs, add hooks to the plain CLIP, and put Sanitize CLIP "
        "behind."
    )
