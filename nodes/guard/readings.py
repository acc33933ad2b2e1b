"""What prompts say that their embeddings alone do not: heard where they are encoded, asked for where they are sampled.

A conditioning that was mixed (averaged, joined) is none that was heard, so everything counts that it may be mixed of.
Which texts these are, the prompt's graph tells: each node that encodes has a key for its texts.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..adapter.clip_rewrite import PromptReader, StandIn, entry_of
from ..adapter.conditioning import Part, parts
from ..adapter.handle import LoadedSanitizer
from ..adapter.recent import Recent
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
        self._heard: Recent[str, dict[str, _Heard]] = Recent(kept)

    def add(self, texts: str, sanitizer: LoadedSanitizer, part: Part, unsaid: Tensor | None) -> None:
        """texts: the key of the node that encodes; part: what its CLIP put out."""
        says = sanitizer.score(part).prompt.amax(dim=0, keepdim=True).cpu()
        if unsaid is not None:
            unsaid = unsaid.amax(dim=0, keepdim=True).cpu()
            says = torch.maximum(says, unsaid)
        self._used(texts)[part.digest] = _Heard(str(sanitizer.path), unsaid, says)

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
        heard = self._heard[texts] = self._heard.get(texts, {})
        return heard


READINGS = Readings()


class HeardTextModel(StandIn):
    """Puts out the very same as the text model, and tells what the prompts say."""

    def __init__(self, clip: Any, sanitizer: LoadedSanitizer, texts: str) -> None:
        """texts: as for :meth:`Readings.add`."""
        super().__init__(clip)
        self._sanitizer = sanitizer
        self._read = PromptReader(clip, sanitizer)
        self._texts = texts

    def encode_token_weights(self, token_weight_pairs: dict) -> tuple:
        """Raises SanitizerError for an encoding that no sanitizer covers, and ComfyUI's interrupt exception."""
        out = self.unsanitized.encode_token_weights(token_weight_pairs)
        with host().refusing():
            part = parts(entry_of(out))[0]
            _, unsaid = self._read.unsaid(token_weight_pairs, part)
            READINGS.add(self._texts, self._sanitizer, part, unsaid)
        return out
