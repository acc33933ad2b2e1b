"""Re-encoding inside a CLIP's text model: the prompt's text back from its tokens, other words for those at fault, and
encoded again with the text model itself.

A text model sees tokens and weights only. The text that is put together from them counts only if it gives the very
same tokens and weights again; else the prompt is rewritten as without this.
"""

import re
from difflib import SequenceMatcher
from functools import cache
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary, proxy

import torch
from torch import Tensor

from ...sanitizer.encoders.base import Encoding
from ...sanitizer.model.sanitizer import EmbeddingSanitizer
from ...sanitizer.prompts.concepts import load_concepts
from ...sanitizer.prompts.templates import load_templates
from ...sanitizer.text.deobfuscate import Deobfuscated, Deobfuscator, deobfuscated
from ...sanitizer.text.replacements import Replacements
from ...sanitizer.text.rewrite import ReEncoded, ReEncoder
from .clip import ComfyTextEncoder
from .conditioning import Part, parts
from .handle import LoadedSanitizer
from .tokens import EMBEDDING, has_text, rebuild, row_tokens, spans, without_weights_of
from .ui import Progress

WEIGHT_TOLERANCE = 1e-4
"""Weights are products of numbers that a person wrote, and are written with six digits here."""
_WORD = re.compile(r"\S+")


class Prompt(NamedTuple):
    text: str
    weights: list[float]
    """Of each character."""


def prompt_of(clip, tokens: dict) -> Prompt | None:
    """The prompt that gives these tokens, None where none is found: embeddings, images, other texts for other text
    encoders, chunks that were put together by a node."""
    # CLIP's own tokenizers forget upper case; the others do not.
    for key in sorted(tokens, key=lambda name: name in ("l", "g", "h")):
        entries = [entry for chunk in tokens[key] for entry in chunk]
        if any(not isinstance(entry[0], int) for entry in entries):
            return None
        strings = row_tokens(clip, {key: tokens[key]}, len(entries))
        if EMBEDDING in strings or not has_text(strings):
            continue
        text, offsets = rebuild(strings)
        weights = [1.0] * len(text)
        for (start, end), entry in zip(offsets, entries, strict=True):
            weights[start:end] = [float(entry[1])] * (end - start)
        prompt = Prompt(text, _joined(text, weights))
        if _same(clip.tokenize(marked(*prompt)), tokens):
            return prompt
    return None


def _joined(text: str, weights: list[float]) -> list[float]:
    """White space between characters of one weight has it too."""
    weights = list(weights)
    for match in re.finditer(r"\s+", text):
        before, after = weights[max(0, match.start() - 1)], weights[min(match.end(), len(text) - 1)]
        weights[match.start() : match.end()] = [before if before == after else 1.0] * (match.end() - match.start())
    return weights


def _same(found: dict, tokens: dict) -> bool:
    if found.keys() != tokens.keys():
        return False
    for key, chunks in tokens.items():
        if [len(chunk) for chunk in found[key]] != [len(chunk) for chunk in chunks]:
            return False
        for chunk, other in zip(found[key], chunks, strict=True):
            for a, b in zip(chunk, other, strict=True):
                if not isinstance(a[0], int) or a[0] != b[0] or abs(a[1] - b[1]) > WEIGHT_TOLERANCE:
                    return False
    return True


def marked(text: str, weights: list[float]) -> str:
    """The text with `(…:1.3)` around what is weighted, and its own brackets escaped."""
    parts, at = [], 0
    while at < len(text):
        end = at + 1
        while end < len(text) and weights[end] == weights[at]:
            end += 1
        part = re.sub(r"[()]", r"\\\g<0>", text[at:end])
        parts.append(part if weights[at] == 1.0 else f"({part}:{weights[at]:.6g})")
        at = end
    return "".join(parts)


def carried(prompt: Prompt, text: str) -> list[float]:
    """Weights of the characters of another text: words that stayed keep theirs, new ones have none."""
    old, new = list(_WORD.finditer(prompt.text)), list(_WORD.finditer(text))
    weights = [1.0] * len(text)
    matcher = SequenceMatcher(None, [m[0].lower() for m in old], [m[0].lower() for m in new], autojunk=False)
    for i, j, count in matcher.get_matching_blocks():
        for a, b in zip(old[i : i + count], new[j : j + count], strict=True):
            weights[b.start() : b.end()] = prompt.weights[a.start() : a.end()]
    return _joined(text, weights)


class _RunningClip:
    """What ComfyTextEncoder asks of a CLIP, on a text model that is just being run: its options, patches and hooks are
    in place, and stay."""

    def __init__(self, clip, model, prompt: Prompt | None = None) -> None:
        self.tokenizer, self.layer_idx, self.cond_stage_model = clip.tokenizer, clip.layer_idx, model
        self._clip, self._model, self._prompt = clip, model, prompt

    def clone(self) -> "_RunningClip":
        return self

    def tokenize(self, text: str) -> dict:
        """Weighted as the prompt is, in the words that stayed."""
        return self._clip.tokenize(marked(text, carried(self._prompt or Prompt("", []), text)))

    def encode_from_tokens(self, tokens: dict, **_options) -> dict[str, Any]:
        cond, extras = entry_of(self._model.encode_token_weights(tokens))
        return {"cond": cond, **extras}


class _RunningEncoder(ComfyTextEncoder):
    """`batches`: whether the model can take them, None where that is not known yet."""

    def __init__(self, clip, model, batches: bool | None, prompt: Prompt | None = None) -> None:
        super().__init__(_RunningClip(clip, model, prompt))
        # Another sanitizer that stands in between would see a batch as one long prompt.
        self._batches = False if hasattr(model, "unsanitized") else batches

    @property
    def batches(self) -> bool | None:
        return self._batches


@cache
def deobfuscator() -> Deobfuscator:
    """That of the pack's own concepts."""
    return Deobfuscator.from_concepts(load_concepts(), load_templates())


_REPLACEMENTS: WeakKeyDictionary[EmbeddingSanitizer, dict[tuple[str, ...], Replacements]] = WeakKeyDictionary()
"""A sanitizer serves one encoder, so the targets of its concepts are encoded once, for as long as it is there."""


def replacements_of(sanitizer: LoadedSanitizer) -> Replacements:
    """Of the chosen concepts; encodes nothing yet. Raises SanitizerError for a concept without pairs."""
    model = sanitizer.patcher.model
    own = _REPLACEMENTS.setdefault(model, {})
    if sanitizer.concepts not in own:
        # A proxy: what is kept for the sanitizer must not keep the sanitizer.
        weak: Any = proxy(model)
        own[sanitizer.concepts] = Replacements.known(None, weak, sanitizer.concepts)
    return own[sanitizer.concepts]


class Reading(NamedTuple):
    """A prompt whose text is known."""

    prompt: Prompt
    encoding: Encoding
    encoder: _RunningEncoder
    """The text model itself."""
    read: Deobfuscated
    """The prompt as a person reads it, words in disguise undone."""


class StandIn:
    """Stands in for a CLIP's text model; what it does not do itself is the model's own.

    The place of the text model, because a CLIP's own methods are lost when another node clones it.
    """

    def __init__(self, clip: Any) -> None:
        self.unsanitized = clip.cond_stage_model

    def __getattr__(self, name: str) -> Any:
        # A copy asks for names before it has any attribute.
        if name == "unsanitized":
            raise AttributeError(name)
        return getattr(self.unsanitized, name)


def entry_of(out: tuple) -> list:
    """What a text model puts out for tokens, as an entry of a conditioning."""
    return [out[0], {"pooled_output": out[1], **(out[2] if len(out) > 2 else {})}]


class PromptReader:
    """Reads what a text model encodes. Raises ComfyUI's interrupt exception."""

    def __init__(self, clip, sanitizer: LoadedSanitizer) -> None:
        self._clip, self._model, self._sanitizer = clip, clip.cond_stage_model, sanitizer
        self.batches: bool | None = None
        """Whether the text model takes them, None where that is not known yet."""

    def encoder(self, prompt: Prompt | None = None) -> "_RunningEncoder":
        """The text model; prompt: with the weights of this one on the words that stayed."""
        return _RunningEncoder(self._clip, self._model, self.batches, prompt)

    def __call__(self, tokens: dict, part: Part, weighted: bool) -> Reading | None:
        """part: what the text model gave for `tokens`; weighted: whether the reading is encoded with the prompt's
        weights or with all weights 1. None where the text cannot be told from the tokens."""
        prompt = prompt_of(self._clip, tokens) if part.embeddings.shape[0] == 1 else None
        if prompt is None:
            return None
        embeddings, found = part.embeddings, row_tokens(self._clip, tokens, part.embeddings.shape[1])
        mask = embeddings.new_ones(embeddings.shape[:2]).bool() if part.mask is None else part.mask
        encoding = Encoding(embeddings, mask, part.pooled, [found], [spans(prompt.text, found)])
        encoder = self.encoder(prompt if weighted else None)
        read = deobfuscated(encoder, self._sanitizer.model, deobfuscator(), [prompt.text], encoding)
        self.batches = encoder.batches
        return Reading(prompt, encoding, encoder, read)

    def unsaid(self, tokens: dict, part: Part) -> tuple[Reading | None, Tensor | None]:
        """The prompt as :meth:`__call__` reads it; and (B, K) prompt scores of what its embeddings hide: words in
        disguise, and phrases that a weight below 1 makes fainter in the score, but does not take out of the picture.
        No scores where it has neither disguise nor weights."""
        known, plain, scores = self(tokens, part, weighted=False), without_weights_of(tokens), []
        if known is not None and known.read.scores is not None:
            scores.append(known.read.scores)
        if plain is not None:
            scores.append(self._sanitizer.score(parts(entry_of(self._model.encode_token_weights(plain)))[0]).prompt)
        return known, torch.stack(scores).amax(dim=0) if scores else None


class PromptReEncoder:
    """Re-encodes what a text model encodes. Raises SanitizerError for a concept whose pairs are not known."""

    def __init__(self, clip, sanitizer: LoadedSanitizer, reader: PromptReader) -> None:
        self._clip, self._sanitizer, self._reader = clip, sanitizer, reader
        self._replacements = replacements_of(sanitizer)

    def __call__(self, tokens: dict, part: Part, strength: float, threshold: float) -> "Done | None":
        """A prompt, sanitized; the very part for a harmless one. part: what the text model gave for `tokens`.

        None where the text cannot be told from the tokens. Raises what the sanitizer raises, and ComfyUI's interrupt
        exception.
        """
        known = self._reader(tokens, part, weighted=True)
        if known is None:
            return None
        prompt, encoding, encoder, reading = known
        [found] = encoding.tokens
        model, replacements = self._sanitizer.model, self._replacements
        plain = self._reader.encoder()
        replacements.encoder = plain
        replacements.progress = Progress(None)
        try:
            out = ReEncoder(encoder, model, replacements).sanitize(
                [prompt.text], encoding,
                strength=strength, threshold=threshold, concepts=self._sanitizer.concepts, reading=reading,
            )  # fmt: skip
            if any(weight != 1.0 for weight in prompt.weights):
                out = self._unweighted(plain, out, strength, threshold)
        finally:
            self._reader.batches = plain.batches if encoder.batches is None else encoder.batches
            # What is kept for other nodes must not keep this CLIP.
            replacements.encoder, replacements.progress = None, _quiet
        if out.embeddings is part.embeddings:
            return Done(part, found, out, known)
        if strength >= 1:
            found = row_tokens(self._clip, encoder.clip.tokenize(out.prompts[0]), out.embeddings.shape[1])
        if part.mask is not None:
            return Done(Part(part.keys, out.embeddings, out.mask, out.pooled), found, out, known)
        # Nothing says which embeddings count, so there must be no others.
        length = int(out.mask[0].nonzero().max()) + 1
        cut = Part(part.keys, out.embeddings[:, :length], None, out.pooled)
        return Done(cut, found[:length], out, known)

    def _unweighted(self, plain: ComfyTextEncoder, out: ReEncoded, strength: float, threshold: float) -> ReEncoded:
        """What is still unsafe with all weights 1, such as `(…:0.3)`, is erased."""
        e = plain.encode(out.prompts)
        model = self._sanitizer.model
        done = model.sanitize(
            out.embeddings, out.mask, out.pooled, strength=strength, threshold=threshold,
            concepts=self._sanitizer.concepts, also=model.score(e.embeddings, e.mask, e.pooled).prompt,
        )  # fmt: skip
        return out._replace(embeddings=done.embeddings, pooled=done.pooled)


class Done(NamedTuple):
    """What re-encoding made of a prompt."""

    part: Part
    tokens: list[str]
    result: ReEncoded
    known: Reading


def _quiet(*_) -> None:
    pass
