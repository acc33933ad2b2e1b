"""What prompts say that their embeddings alone do not: heard where they are encoded, asked for where they are sampled.

A conditioning that was mixed (averaged, joined) is none that was heard, so everything counts that it may be mixed of.
Which texts these are, the prompt's graph tells: each node that encodes has a key for its texts.
"""

from collections import OrderedDict
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..adapter.clip_rewrite import PromptReader, entry_of
from ..adapter.conditioning import Part, parts
from ..adapter.handle import LoadedSanitizer
from ..adapter.written import WRITTEN
from .host import host

KEPT = 10_000
"""Encoding nodes with their texts, of some kilobytes each; those go first that were used the longest ago. Were ComfyUI
to keep a conditioning for longer, it would be judged by its embeddings alone."""


class _Heard(NamedTuple):
    path: str
    """The sanitizer's file."""
    unsaid: Tensor | None
    """(1, K) scores that the embeddings hide, see PromptReader.unsaid."""
    says: Tensor
    """(1, K) highest scores of all, those of the embeddings among them."""


class Readings:
    def __init__(self, kept: int = KEPT) -> None:
        self._kept = kept
        self._heard: OrderedDict[str, dict[str, _Heard]] = OrderedDict()

    def add(self, texts: str, sanitizer: LoadedSanitizer, part: Part, unsaid: Tensor | None) -> None:
        """texts: the key of the node that encodes; part: what its CLIP put out."""
        says = sanitizer.score(part).prompt.amax(dim=0, keepdim=True).cpu()
        if unsaid is not None:
            unsaid = unsaid.amax(dim=0, keepdim=True).cpu()
            says = torch.maximum(says, unsaid)
        self._used(texts)[part.digest] = _Heard(str(sanitizer.path), unsaid, says)
        while len(self._heard) > self._kept:
            self._heard.popitem(last=False)

    def of(self, texts: Iterable[str], sanitizer: LoadedSanitizer, part: Part) -> Tensor | None:
        """(B, K) scores that count beside those of a part's embeddings, None where nothing does. texts: the keys of the
        nodes that it can come from."""
        known = [heard for key in texts if key in self._heard for heard in self._used(key).items()]
        known = [(name, heard) for name, heard in known if heard.path == str(sanitizer.path)]
        origin = WRITTEN.origin(part)
        counted = [heard.unsaid for name, heard in known if name == origin]
        if not counted and bool(part.embeddings.any()):
            counted = [heard.says for _, heard in known]
        found = [scores for scores in counted if scores is not None]
        return torch.cat(found).amax(dim=0).expand(part.embeddings.shape[0], -1) if found else None

    def _used(self, texts: str) -> dict[str, _Heard]:
        heard = self._heard.setdefault(texts, {})
        self._heard.move_to_end(texts)
        return heard


READINGS = Readings()


class HeardTextModel:
    """Stands in for a CLIP's text model: puts out the very same, and tells what the prompts say."""

    def __init__(self, clip: Any, sanitizer: LoadedSanitizer, texts: str) -> None:
        """texts: as for :meth:`Readings.add`."""
        self.unsanitized = clip.cond_stage_model
        self._sanitizer = sanitizer
        self._read = PromptReader(clip, sanitizer)
        self._texts = texts

    def __getattr__(self, name: str) -> Any:
        # A copy asks for names before it has any attribute.
        if name == "unsanitized":
            raise AttributeError(name)
        return getattr(self.unsanitized, name)

    def encode_token_weights(self, token_weight_pairs: dict) -> tuple:
        """Raises SanitizerError for an encoding that no sanitizer covers, and ComfyUI's interrupt exception."""
        cond, extras = entry_of(self.unsanitized, token_weight_pairs)
        with host().refusing():
            part = parts([cond, extras])[0]
            _, unsaid = self._read.unsaid(token_weight_pairs, part)
            READINGS.add(self._texts, self._sanitizer, part, unsaid)
        pooled = extras.pop("pooled_output")
        return cond, pooled, extras
