"""Sanitize CLIP: everything that is encoded with it comes out sanitized."""

from typing import Any

from comfy_api.latest import io

from ..sanitizer.errors import SanitizerError
from .conditioning import RECORD
from .loaded import LoadedSanitizer, SanitizerSocket
from .messages import CATEGORY, STRENGTH, THRESHOLD, readable, ui
from .tokens import has_text, row_tokens


class UnsanitizedPart(SanitizerError, AttributeError):
    """An encoder inside a sanitized CLIP was asked for. To `hasattr` it is as if it were not there."""


class SanitizedTextModel:
    """Stands in for a CLIP's text model and sanitizes what it puts out; everything else is the model's own.

    The place of the text model, because a CLIP's own methods are lost when another node clones it.
    """

    def __init__(self, clip, sanitizer: LoadedSanitizer, strength: float, threshold: float) -> None:
        self.unsanitized = clip.cond_stage_model
        self._clip = clip
        self._sanitizer = sanitizer
        self._strength = strength
        self._threshold = threshold

    def __getattr__(self, name: str) -> Any:
        # A copy asks for names before it has any attribute.
        if name == "unsanitized":
            raise AttributeError(name)
        value = getattr(self.unsanitized, name)
        if hasattr(value, "encode_token_weights"):
            raise UnsanitizedPart(
                f"Sanitize CLIP: a node wants the encoder {name!r} inside the CLIP, which would go past the sanitizer. "
                "Give that node the plain CLIP and put Sanitize Conditioning behind it."
            )
        return value

    def encode_token_weights(self, token_weight_pairs: dict) -> tuple:
        """(cond, pooled, extras) as the text model gives them, sanitized, with the tokens of the rows in extras."""
        out = self.unsanitized.encode_token_weights(token_weight_pairs)
        entry = [out[0], {"pooled_output": out[1], **(out[2] if len(out) > 2 else {})}]
        [(cond, extras)], _ = self._sanitizer.sanitize_all([entry], self._strength, self._threshold)
        pooled = extras.pop("pooled_output")
        tokens = row_tokens(self._clip, token_weight_pairs, cond.shape[1])
        if has_text(tokens):
            extras[RECORD] = {"tokens": tokens}
        return cond, pooled, extras


class SanitizeCLIP(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ESSanitizeCLIP",
            display_name="Sanitize CLIP",
            category=CATEGORY,
            description="A CLIP whose every encoding is sanitized, whatever text encode node is used. Use it for the "
            "positive prompt and keep the plain CLIP for the negative one.",
            inputs=[
                io.Clip.Input("clip", tooltip="The CLIP that the sanitizer was trained on."),
                SanitizerSocket.Input("sanitizer", tooltip="From Load Sanitizer or Train Sanitizer."),
                io.Float.Input("strength", **STRENGTH),
                io.Float.Input("threshold", **THRESHOLD),
            ],
            outputs=[
                io.Clip.Output(
                    "sanitized_clip",
                    display_name="sanitized_clip",
                    tooltip="Connect it to the text encode node of the positive prompt.",
                )
            ],
        )

    @classmethod
    def execute(cls, clip, sanitizer: LoadedSanitizer, strength: float, threshold: float) -> io.NodeOutput:
        sanitizer.check_clip(clip, "Sanitize CLIP")
        sanitized = clip.clone()
        sanitized.cond_stage_model = SanitizedTextModel(clip, sanitizer, strength, threshold)
        names = ", ".join(readable(name) for name in sanitizer.concepts)
        line = f"Erases {names} from whatever is encoded with this CLIP."
        return io.NodeOutput(sanitized, ui=ui({"kind": "status", "state": "ready", "text": line}))
