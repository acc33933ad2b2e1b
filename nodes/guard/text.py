"""Texts as such, where no embedding of the connected model is at hand or none is wanted yet."""

import threading
from collections.abc import Iterable
from typing import Any

import torch

from ...sanitizer.errors import SanitizerError
from ...sanitizer.guard.setting import Setting
from ...sanitizer.model import artifact
from ...sanitizer.model.config import THRESHOLD
from ...sanitizer.text.deobfuscate import deobfuscated
from ...sanitizer.text.words import words
from ..adapter.clip import ComfyTextEncoder
from ..adapter.clip_rewrite import deobfuscator
from ..adapter.ui import listed
from .host import Found

ENCODER = "minilm"
"""The small text encoder that is at hand whatever model is loaded; it comes as a Python package."""
PASS, SANITIZE, REFUSE = "pass", "sanitize", "refuse"


class TextScorer:
    """Scores texts by an encoder of its own, on the CPU. Safe to be used by several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loaded: tuple | None = None

    @torch.inference_mode()
    def score(self, text: str, setting: Setting) -> dict[str, Any]:
        """What the guard would do with that prompt: `action`, `concepts` that were found with their scores, `words`
        at fault as spans of characters. Raises SanitizerError where the encoder is not installed."""
        with self._lock:
            encoder, sanitizer = self._ready()
            encoding = encoder.encode([text])
            reading = deobfuscated(encoder, sanitizer, deobfuscator(), [text], encoding)
            known = [name for name in setting.concepts or sanitizer.erasable if name in sanitizer.erasable]
            fired: list[str] = []
            for rule, names in setting.by_rule(known):
                out = sanitizer.sanitize(
                    encoding.embeddings, encoding.mask, encoding.pooled, strength=0.0, threshold=rule.threshold,
                    concepts=names, also=reading.scores, trusted=True,
                )  # fmt: skip
                fired += [name for name, hit in zip(sanitizer.concepts, out.fired[0].tolist(), strict=True) if hit]
            scores = sanitizer.score(encoding.embeddings, encoding.mask, encoding.pooled)
            prompt = scores.prompt if reading.scores is None else torch.maximum(scores.prompt, reading.scores)
        found = dict(zip(sanitizer.concepts, prompt[0].tolist(), strict=True))
        present = [name for name, score in found.items() if score >= THRESHOLD]
        refused = setting.refused(fired, present)
        told = words(text, encoding.tokens[0], encoding.offsets[0], scores.tokens[0], sanitizer.concepts)
        return {
            "action": REFUSE if refused else SANITIZE if fired else PASS,
            "concepts": {name: round(found[name], 3) for name in dict.fromkeys((*fired, *refused))},
            "words": [[word.start, word.end] for word in told if fired and word.score(fired) >= THRESHOLD],
        }

    def refusal(self, text: str, setting: Setting) -> str:
        """Why a text may not be sent to another host, where nothing can be rewritten; "" where it may."""
        found = self.score(text, setting)["concepts"] if text.strip() else {}
        return f"Guard: this host does not send texts with {listed(found, ' and ')} to another one." if found else ""

    def _ready(self) -> tuple:
        if self._loaded is None:
            try:
                encoder, sanitizer, _ = artifact.load_pair(ENCODER)
            except SanitizerError as error:
                raise SanitizerError(
                    f"Guard: texts cannot be scored. {error} Install it for ComfyUI's own Python."
                ) from error
            self._loaded = encoder, sanitizer
        return self._loaded


SCORER = TextScorer()


@torch.inference_mode()
def words_at_fault(found: Iterable[Found], texts: Iterable[str]) -> tuple[str, ...]:
    """The words of these texts that reach the threshold in one of the CLIPs, each once; one in disguise as it reads."""
    texts, hit = tuple(texts), {}
    for sanitizer, clip in found:
        encoder = ComfyTextEncoder(clip)
        for text in texts:
            encoding = encoder.encode([text])
            reading = deobfuscated(encoder, sanitizer.model, deobfuscator(), [text], encoding)
            scores = sanitizer.model.score(encoding.embeddings, encoding.mask, encoding.pooled)
            own = words(text, encoding.tokens[0], encoding.offsets[0], scores.tokens[0], sanitizer.names)
            own += reading.words.get(0, [])
            hit |= dict.fromkeys(word.text for word in own if word.score(sanitizer.concepts) >= THRESHOLD)
    return tuple(hit)
