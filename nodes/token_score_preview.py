"""Token Score Preview: which word of a prompt is at fault, shown on the node."""

import json

import torch
from comfy_api.latest import io

from ..sanitizer.errors import SanitizerError
from ..sanitizer.model.config import THRESHOLD
from ..sanitizer.model.sanitizer import Sanitized
from ..sanitizer.render.colours import scale
from ..sanitizer.render.image import render_image
from ..sanitizer.text.words import words
from .adapter.conditioning import Part, entries, parts
from .adapter.handle import LoadedSanitizer, SanitizerSocket
from .adapter.keys import RECORD
from .adapter.tokens import has_text, rebuild, row_tokens, spans, without_weights
from .adapter.ui import CATEGORY, as_image, found_as, not_chosen, scored, ui

SHOWN = 8
"""Prompts of a conditioning with many entries that are shown; all of them are scored."""


class TokenScorePreview(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ESTokenScorePreview",
            display_name="Token Score Preview",
            category=CATEGORY,
            **found_as("nsfw score", "prompt heat map", "which word"),
            description="Colours the words of the prompt by their scores. Put it between the text encode node and the "
            "sampler; the conditioning passes through unchanged.",
            inputs=[
                SanitizerSocket.Input("sanitizer", tooltip="Its score net rates the words."),
                io.Conditioning.Input("conditioning", tooltip="The encoded prompt."),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="The CLIP that encoded the prompt. With 'text' it tells which word stands in which row.",
                ),
                io.String.Input(
                    "text",
                    optional=True,
                    force_input=True,
                    tooltip="The text that was encoded. Not needed behind Sanitize CLIP.",
                ),
            ],
            outputs=[
                io.Conditioning.Output("scored", display_name="scored", tooltip="The conditioning, unchanged."),
                io.Image.Output("heatmap", display_name="heatmap", tooltip="The coloured words as a picture."),
                io.String.Output("scores", display_name="scores", tooltip="Words, tokens and scores as JSON."),
                io.Float.Output(
                    "prompt_score", display_name="prompt_score", tooltip="Highest score of the prompt, 0 to 1."
                ),
                io.Boolean.Output(
                    "flagged", display_name="flagged", tooltip="True if a concept reaches its threshold. For switches."
                ),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, sanitizer: LoadedSanitizer, conditioning, clip=None, text: str | None = None) -> io.NodeOutput:
        if (clip is None) != (text is None):
            raise SanitizerError(
                f"Token Score Preview: {'clip' if clip is None else 'text'} is not connected. Connect both 'clip' and "
                "'text' to see words, or neither."
            )
        prompts = []
        for entry in entries(conditioning):
            for part in parts(entry):
                result = sanitizer.sanitize(part, 0.0, THRESHOLD)
                # Only of the prompt itself is the text known; a ControlNet's has one of its own.
                prompt = part.keys[0] == "cond"
                words = _words(entry, part, clip, text) if prompt else _numbered(part)
                prompts += [_Prompt(sanitizer, result, index, *words) for index in range(part.embeddings.shape[0])]
        score = max((prompt.score for prompt in prompts), default=0.0)
        flagged = any(prompt.flagged for prompt in prompts)
        shown = prompts[:SHOWN]
        message = {
            "kind": "words",
            "threshold": THRESHOLD,
            "scale": scale(),
            "prompts": [prompt.message() for prompt in shown],
            "more": len(prompts) - len(shown),
        }
        return io.NodeOutput(
            conditioning,
            _picture(shown),
            json.dumps([prompt.record() for prompt in prompts], ensure_ascii=False, indent=1, allow_nan=False),
            score,
            flagged,
            ui=ui(message, sanitizer=sanitizer),
        )


class _Prompt:
    """One prompt of the conditioning with its scores, as the three forms of output need it."""

    def __init__(self, sanitizer: LoadedSanitizer, result: Sanitized, index: int, text: str, tokens, offsets) -> None:
        names = sanitizer.names
        self.text, self.tokens, self.names, self.erasable = text, tokens, names, sanitizer.concepts
        self.token_scores = result.scores.tokens[index].cpu()
        self.prompt_scores = dict(zip(names, result.scores.prompt[index].tolist(), strict=True))
        self.flagged = bool(result.flagged[index])
        self.fired = [name for name, hit in zip(names, result.fired[index].tolist(), strict=True) if hit]
        missed = zip(names, sanitizer.missed(result)[index].tolist(), strict=True)
        self.others = {name: self.prompt_scores[name] for name, hit in missed if hit and name not in sanitizer.concepts}
        """Concepts that reach their thresholds and are not among the chosen ones, with their scores."""
        self.words = words(text, tokens, offsets, self.token_scores, names)
        # What fires is told by name, with its words; where nothing does, a word may still reach the threshold alone.
        told = self.fired or self.erasable
        self.framed = [[name for name in told if word.scores[name] >= THRESHOLD] for word in self.words]

    @property
    def score(self) -> float:
        """Highest prompt score of a concept that the sanitizer is to erase."""
        return max(self.prompt_scores[name] for name in self.erasable)

    def record(self) -> dict:
        """For the JSON output."""
        tokens = [
            {"row": row, "token": token, "scores": _rounded(dict(zip(self.names, scores, strict=True)))}
            for row, (token, scores) in enumerate(zip(self.tokens, self.token_scores.tolist(), strict=True))
            if token
        ]
        words = [{"text": w.text, "start": w.start, "end": w.end, "scores": _rounded(w.scores)} for w in self.words]
        return {
            "prompt": self.text,
            "flagged": self.flagged,
            "fired": self.fired,
            "prompt_scores": _rounded(self.prompt_scores),
            "words": words,
            "tokens": tokens,
        }

    def message(self) -> dict:
        """For the front end, which frames the words that `framed` names and decides nothing itself."""
        return {
            "flagged": self.flagged,
            "state": "found" if self.flagged or any(self.framed) or self.others else "harmless",
            "text": self.verdict(),
            "fired": self.fired,
            "erasable": list(self.erasable),
            "prompt_scores": _rounded(self.prompt_scores),
            "words": [
                {"text": word.text, "scores": _rounded(word.scores), "framed": framed}
                for word, framed in zip(self.words, self.framed, strict=True)
            ],
        }

    def verdict(self) -> str:
        """One or two sentences; "harmless" only where no word is framed and no other concept reaches the threshold."""
        said = []
        if self.flagged:
            said.append(f"Found {scored({name: self.prompt_scores[name] for name in self.fired})}.")
        elif any(self.framed):
            word = max(self.words, key=lambda word: word.score(self.erasable))
            said.append(
                f"Below the threshold as a whole (highest score {self.score:.2f}), but a word reaches "
                f"{word.score(self.erasable):.2f}."
            )
        if self.others:
            said.append(not_chosen(self.others))
        return " ".join(said) or f"Harmless, highest score {self.score:.2f}."


def _words(entry: list, part: Part, clip, text: str | None) -> tuple[str, list[str], list[tuple[int, int]]]:
    """Text, token of each row and its span in the text; where no words are known, the rows' numbers stand for them."""
    rows = part.embeddings.shape[1]
    if clip is not None and text is not None:
        if not text.strip():
            return "", [""] * rows, [(0, 0)] * rows
        tokens = row_tokens(clip, clip.tokenize(text), rows)
        if has_text(tokens):
            text = without_weights(text)
            return text, tokens, spans(text, tokens)
    sent = (entry[1].get(RECORD) or {}).get("tokens") or []
    if sent and len(sent) <= rows:
        # A node that joined rows on, such as Conditioning (Concat), left those of this prompt in front.
        tokens = sent + [""] * (rows - len(sent))
        return _rebuilt(tokens)
    return _numbered(part)


def _numbered(part: Part) -> tuple[str, list[str], list[tuple[int, int]]]:
    rows = part.embeddings.shape[1]
    seen = range(rows) if part.mask is None else part.mask.any(dim=0).nonzero().squeeze(1).tolist()
    tokens = [""] * rows
    for row in seen:
        tokens[row] = f"row{row}</w>"
    return _rebuilt(tokens)


def _rebuilt(tokens: list[str]) -> tuple[str, list[str], list[tuple[int, int]]]:
    text, offsets = rebuild(tokens)
    return text, tokens, offsets


def _rounded(scores: dict[str, float]) -> dict[str, float]:
    return {name: round(float(score), 4) for name, score in scores.items()}


def _picture(prompts: list[_Prompt]) -> torch.Tensor:
    """(1, H, W, 3) float32 in [0, 1], ComfyUI's IMAGE."""
    shown = [(prompt.words, prompt.fired, prompt.prompt_scores) for prompt in prompts]
    return as_image(render_image(shown, concepts=prompts[0].erasable if prompts else None))
