"""Sanitize CLIP: everything that is encoded with it comes out sanitized."""

import logging
from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ..sanitizer.errors import SanitizerError
from ..sanitizer.model.config import readable
from .adapter.clip_rewrite import PromptReEncoder
from .adapter.conditioning import parts
from .adapter.handle import LoadedSanitizer, SanitizerSocket
from .adapter.identity import EncoderCheck, refuse_merging
from .adapter.keys import RECORD
from .adapter.tokens import has_text, row_tokens, without_weights_of
from .adapter.ui import CATEGORY, STRENGTH, THRESHOLD, ui

REWRITE, RE_ENCODE = "rewrite", "re-encode"
NO_TEXT = (
    "Sanitize CLIP: this prompt cannot be re-encoded, for its text cannot be told from its tokens (embeddings, images, "
    "different texts for several text encoders), or its padding is masked and not zero. It was sanitized as in mode "
    "rewrite."
)


class UnsanitizedPart(SanitizerError, AttributeError):
    """An encoder inside a sanitized CLIP was asked for. To `hasattr` it is as if it were not there."""


class SanitizedTextModel:
    """Stands in for a CLIP's text model and sanitizes what it puts out; everything else is the model's own.

    The place of the text model, because a CLIP's own methods are lost when another node clones it.
    """

    def __init__(self, clip, sanitizer: LoadedSanitizer, strength: float, threshold: float, mode: str) -> None:
        self.unsanitized = clip.cond_stage_model
        self._clip = clip
        self._sanitizer = sanitizer
        self._strength = strength
        self._threshold = threshold
        self._check = EncoderCheck(clip)
        self._re_encode = PromptReEncoder(clip, sanitizer) if mode == RE_ENCODE else None

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
        """(cond, pooled, extras) as the text model gives them, sanitized, with the tokens of the rows in extras.

        Raises SanitizerError where the text model is no longer the one that this was made for."""
        self._check()
        entry = self._entry(token_weight_pairs)
        done = self._re_encoded(token_weight_pairs, entry)
        if done is None:
            [(cond, extras)], summary = self._sanitizer.sanitize_all(
                [entry], self._strength, self._threshold, self._unweighted(token_weight_pairs)
            )
            tokens = row_tokens(self._clip, token_weight_pairs, cond.shape[1])
            if self._re_encode and summary.flagged:
                logging.warning(NO_TEXT)
        else:
            cond, extras, tokens = done
        pooled = extras.pop("pooled_output")
        if has_text(tokens):
            extras[RECORD] = {"tokens": tokens}
        return cond, pooled, extras

    def _entry(self, tokens: dict) -> list:
        """What the text model gives for the tokens, as an entry of a conditioning."""
        out = self.unsanitized.encode_token_weights(tokens)
        return [out[0], {"pooled_output": out[1], **(out[2] if len(out) > 2 else {})}]

    def _unweighted(self, tokens: dict) -> Tensor | None:
        """(B, K) prompt scores of the same prompt with all weights 1, None where they are. A weight below 1 makes an
        unsafe phrase fainter in the score, but does not take it out of the picture."""
        plain = without_weights_of(tokens)
        return None if plain is None else self._sanitizer.score(parts(self._entry(plain))[0]).prompt

    def _re_encoded(self, tokens: dict, entry: list) -> tuple[Tensor, dict, list[str]] | None:
        """None in mode rewrite, and where the prompt's text, or the place of all of it, is not known."""
        if self._re_encode is None:
            return None
        found = parts(entry)
        if [part.keys[0] for part in found] != ["cond"]:
            return None
        mask, trusted = entry[1].get("attention_mask"), found[0].mask
        if mask is not None and (trusted is None or not torch.equal(trusted, mask.to(trusted.device) != 0)):
            return None  # it masks padding that is not zero: none can be made for another text
        done = self._re_encode(tokens, found[0], self._strength, self._threshold)
        if done is None:
            return None
        part, strings = done
        cond, extras = part.embeddings, entry[1].copy()
        if mask is not None and part.embeddings is not entry[0] and part.mask is not None:
            extras["attention_mask"] = part.mask.to(mask.device, mask.dtype)
        if part.embeddings is not entry[0] and part.pooled is not None:
            extras["pooled_output"] = part.pooled
        return cond, extras, strings


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
                io.Combo.Input(
                    "mode",
                    options=[REWRITE, RE_ENCODE],
                    default=REWRITE,
                    optional=True,
                    tooltip="'rewrite' writes the embedding anew and is fast. 're-encode' replaces the words at fault "
                    "by safe ones, encodes the prompt again and erases what remains: it comes nearer to the safe "
                    "prompt and reads words in disguise, such as n4k3d, but takes several times as long.",
                ),
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
    def execute(
        cls, clip, sanitizer: LoadedSanitizer, strength: float, threshold: float, mode: str = REWRITE
    ) -> io.NodeOutput:
        sanitizer.check_clip(clip, "Sanitize CLIP")
        sanitized = clip.clone()
        refuse_merging(sanitized.patcher)
        sanitized.cond_stage_model = SanitizedTextModel(clip, sanitizer, strength, threshold, mode)
        names = ", ".join(readable(name) for name in sanitizer.concepts)
        how = ", by re-encoding" if mode == RE_ENCODE else ""
        line = f"Erases {names} from whatever is encoded with this CLIP{how}."
        return io.NodeOutput(sanitized, ui=ui({"kind": "status", "state": "ready", "text": line}, sanitizer=sanitizer))
