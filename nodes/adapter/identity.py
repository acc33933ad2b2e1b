"""Whether a text model still encodes as it did, told whenever it encodes: a LoRA, a clip-skip, a hook or a merge behind
Sanitize CLIP makes another encoder of it, which the sanitizer does not know.

Nothing is encoded for this. ComfyUI's loaded patcher says which patches and hooks are on the weights, at whatever place
and time they are added (with low VRAM when a weight is used), and the text model says which layer it puts out.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import comfy.model_management
from comfy.sd1_clip import ClipTokenWeightEncoder

from ...sanitizer.errors import SanitizerError
from .clip import ComfyTextEncoder, chosen_layers, replaced_forwards


class _State(NamedTuple):
    patches: tuple
    """LoRA and merges: what is added to which weight."""
    hooks: tuple
    """The same of hooks, with the strength of the moment."""
    layers: tuple
    """Layer that each encoder puts out, and whether its pooled vector is projected."""
    forwards: tuple
    """Replaced methods of modules, as LoRA in bypass mode sets them."""


class EncoderCheck:
    """Compares a CLIP's text model, when called, with what it was when this was made."""

    def __init__(self, clip) -> None:
        own = ComfyTextEncoder(clip).clip
        # The clip keeps the patches, so that no other object can take their ids.
        self._clip, self._model = own, own.cond_stage_model
        own.encode_from_tokens(own.tokenize(""))
        self._first = self._state()

    def __call__(self) -> None:
        """To be called where the text model is about to encode. Raises SanitizerError where it has become another."""
        state = self._state()
        if state == self._first:
            return
        changes = {
            "patches": "patches to its weights (LoRA, merged CLIPs)",
            "hooks": "hooks (Set CLIP Hooks)",
            "layers": "another layer or pooled vector (clip-skip, GLIGEN)",
            "forwards": "a LoRA in bypass mode",
        }
        found = [text for name, text in changes.items() if getattr(state, name) != getattr(self._first, name)]
        raise SanitizerError(
            f"Sanitize CLIP: the encoder was changed behind this node by {' and '.join(found)}, so the sanitizer does "
            "not know it. Put such nodes in front of Sanitize CLIP and connect the changed CLIP to Load Sanitizer, too."
        )

    def _state(self) -> _State:
        patcher = self._loaded()
        layers: list[Any] = [chosen_layers(self._model)]
        for module in self._model.modules():
            if isinstance(module, ClipTokenWeightEncoder):
                layers.append(getattr(module, "return_projected_pooled", None))
        return _State(
            _effective(patcher.patches.items()),
            _effective(patcher.get_combined_hook_patches(patcher.current_hooks).items()),
            tuple(layers),
            replaced_forwards(self._model),
        )

    def _loaded(self) -> Any:
        """The patcher with which ComfyUI has loaded the text model: the one of the CLIP that encodes."""
        for loaded in comfy.model_management.current_loaded_models:
            if loaded.model is not None and loaded.model.model is self._model:
                return loaded.model
        raise SanitizerError(
            "Sanitize CLIP: ComfyUI did not load the text model that is about to encode, so what it is cannot be told. "
            "Put nodes that change the CLIP in front of Sanitize CLIP."
        )


def _effective(patches: Iterable[tuple[str, list[tuple]]]) -> tuple:
    """Comparable, in the order in which they are added; without those of strength 0, which change nothing."""
    found = []
    for name, own in patches:
        for strength, value, strength_model, offset, function in own:
            sets = isinstance(value, tuple) and isinstance(value[0], str) and value[0] == "set"
            if strength != 0 or strength_model != 1 or sets:
                found.append((name, strength, id(value), strength_model, offset, function))
    return tuple(found)


def refuse_merging(patcher) -> None:
    """Makes a patcher, and its clones, refuse to give its weights away: merged into another CLIP, they would go past
    the sanitizer. The merging node calls this method of the patcher, so nothing of ComfyUI's own is changed."""
    kind = type(patcher)
    if not hasattr(kind, "refuses_merging"):
        methods = {"get_key_patches": _refuse, "refuses_merging": True}
        patcher.__class__ = type(kind.__name__, (kind,), methods)


def _refuse(*_args, **_options) -> None:
    raise SanitizerError(
        "Sanitize CLIP: a node wants the weights of the sanitized CLIP, to merge them or to put hooks on them. What it "
        "makes would go past the sanitizer. Merge the plain CLIPs or add hooks to the plain CLIP, and put Sanitize "
        "CLIP behind."
    )
