"""Sanitize CLIP: everything that is encoded with it comes out sanitized."""

import logging
from collections import deque
from typing import Any, NamedTuple

import torch
from comfy_api.latest import io

from ..sanitizer.errors import SanitizerError
from ..sanitizer.model.sanitizer import Sanitized
from .adapter.clip_rewrite import PromptReader, PromptReEncoder, Reading, StandIn, entry_of
from .adapter.conditioning import parts
from .adapter.handle import LoadedSanitizer, SanitizerSocket
from .adapter.identity import EncoderCheck, refuse_merging
from .adapter.keys import RECORD
from .adapter.tokens import has_text, row_tokens
from .adapter.ui import CATEGORY, STRENGTH, THRESHOLD, found_as, listed, send, status_line, ui

REWRITE, RE_ENCODE = "rewrite", "re-encode"
KEPT = 8
"""Prompts that the node tells of, the last ones."""
SHOWN = 60
"""Characters of a prompt with which the node names it."""
NO_TEXT = (
    "Rewritten instead of re-encoded: its text cannot be told from its tokens (embeddings, images, different texts for "
    "several text encoders), or its padding is masked and not zero."
)


class UnsanitizedPart(SanitizerError, AttributeError):
    """An encoder inside a sanitized CLIP was asked for. To `hasattr` it is as if it were not there."""


class SanitizedTextModel(StandIn):
    """Sanitizes what the text model puts out."""

    def __init__(
        self, clip, sanitizer: LoadedSanitizer, strength: float, threshold: float, mode: str, node_id: str | None
    ) -> None:
        super().__init__(clip)
        self._clip = clip
        self._sanitizer = sanitizer
        self._strength = strength
        self._threshold = threshold
        self._node_id = node_id
        self._said: deque[dict] = deque(maxlen=KEPT)
        self._check = EncoderCheck(clip)
        self._read = PromptReader(clip, sanitizer)
        self._re_encode = PromptReEncoder(clip, sanitizer, self._read) if mode == RE_ENCODE else None

    def __getattr__(self, name: str) -> Any:
        value = super().__getattr__(name)
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
        entry = entry_of(self.unsanitized.encode_token_weights(token_weight_pairs))
        done = self._re_encoded(token_weight_pairs, entry) or self._rewritten(token_weight_pairs, entry)
        cond, extras = done.entry
        pooled = extras.pop("pooled_output")
        if has_text(done.tokens):
            extras[RECORD] = {"tokens": done.tokens}
        self._say(done)
        return cond, pooled, extras

    def _rewritten(self, tokens: dict, entry: list) -> "_Done":
        known, also = self._read.unsaid(tokens, parts(entry)[0])
        [written], summary = self._sanitizer.sanitize_all([entry], self._strength, self._threshold, also)
        line = status_line(summary, self._sanitizer, self._strength, self._threshold)
        if self._re_encode and summary.flagged:
            logging.warning("Sanitize CLIP: %s", NO_TEXT)
            line["text"] += f" {NO_TEXT}"
        named = _named(known, bool(summary.flagged))
        return _Done(written, row_tokens(self._clip, tokens, written[0].shape[1]), line, named)

    def _re_encoded(self, tokens: dict, entry: list) -> "_Done | None":
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
        part, out = done.part, done.result
        extras = entry[1].copy()
        changed = part.embeddings is not entry[0]
        if changed and mask is not None and part.mask is not None:
            extras["attention_mask"] = part.mask.to(mask.device, mask.dtype)
        if changed and part.pooled is not None:
            extras["pooled_output"] = part.pooled
        written = [part.embeddings, extras]
        rows = torch.full(part.embeddings.shape[:2], changed)
        result = Sanitized(part.embeddings, part.pooled, out.scores, out.flagged, out.fired, rows)
        summary = self._sanitizer.summary(result, self._threshold)
        if changed:
            self._sanitizer.remember(written, found, self._strength, self._threshold, summary)
        did = f"re-encoded as “{_short(out.prompts[0])}”" + (", and erased what remained," if bool(out.left[0]) else "")
        line = status_line(summary, self._sanitizer, self._strength, self._threshold, did)
        return _Done(written, done.tokens, line, _named(done.known, bool(out.flagged[0])))

    def _say(self, done: "_Done") -> None:
        """Shows on the node, beside what was said of the prompts before, what was done with this one."""
        self._said.append(done.line | {"text": f"{done.named}: {done.line['text']}"})
        send(self._node_id, *self._said, sanitizer=self._sanitizer)


class _Done(NamedTuple):
    """A prompt that was encoded."""

    entry: list
    tokens: list[str]
    line: dict
    named: str
    """What the node calls it."""


def _named(known: Reading | None, flagged: bool) -> str:
    """A prompt by its text, where that is known, and by what it was read as, where it is in disguise and flagged."""
    if known is None:
        return "A prompt"
    read = known.read.texts.get(0) if flagged else None
    return f"“{_short(known.prompt.text)}”" + (f", read as “{_short(read)}”" if read is not None else "")


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"


class SanitizeCLIP(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ESSanitizeCLIP",
            display_name="Sanitize CLIP",
            category=CATEGORY,
            **found_as("nsfw filter", "safe clip", "safe prompt", "safety checker"),
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
                    "prompt, but takes several times as long.",
                ),
            ],
            outputs=[
                io.Clip.Output(
                    "sanitized_clip",
                    display_name="sanitized_clip",
                    tooltip="Connect it to the text encode node of the positive prompt.",
                )
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls, clip, sanitizer: LoadedSanitizer, strength: float, threshold: float, mode: str = REWRITE
    ) -> io.NodeOutput:
        sanitizer.check_clip(clip, "Sanitize CLIP")
        sanitized = clip.clone()
        refuse_merging(sanitized.patcher)
        sanitized.cond_stage_model = SanitizedTextModel(
            clip, sanitizer, strength, threshold, mode, cls.hidden.unique_id
        )
        how = ", by re-encoding" if mode == RE_ENCODE else ""
        line = f"Erases {listed(sanitizer.concepts)} from whatever is encoded with this CLIP{how}."
        return io.NodeOutput(sanitized, ui=ui({"kind": "status", "state": "ready", "text": line}, sanitizer=sanitizer))
