"""What prompts read as, encoded and scored beside what is written. B prompts, K concepts."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from .encoders.base import Encoding, TextEncoder
from .heatmap import Word, words
from .joining import encode
from .model import EmbeddingSanitizer
from .readings import Reader


class SecondReading(NamedTuple):
    texts: dict[int, str]
    """Place -> reading, of the prompts that read differently from what is written."""
    scores: Tensor | None
    """(B, K) prompt scores of the readings, 0 for a prompt without one; None where no prompt has one."""
    words: dict[int, list[Word]]
    """Place -> the reading's words with their scores."""


NOTHING = SecondReading({}, None, {})


def second_reading(
    encoder: TextEncoder,
    sanitizer: EmbeddingSanitizer,
    reader: Reader | None,
    prompts: Sequence[str],
    encoding: Encoding,
) -> SecondReading:
    """Read the prompts; encode and score what reads differently. encoding: of the prompts. reader None: nothing."""
    texts = {} if reader is None else reader.readings(prompts, encoding.tokens, encoding.offsets)
    if not texts:
        return NOTHING
    places = list(texts)
    e = encode(encoder, [texts[b] for b in places])
    found = sanitizer.score(e.rows, e.mask, e.pooled)
    scores = found.prompt.new_zeros(len(prompts), found.prompt.shape[1])
    scores[places] = found.prompt
    read = {
        b: words(texts[b], e.tokens[i], e.offsets[i], found.tokens[i], sanitizer.concepts) for i, b in enumerate(places)
    }
    return SecondReading(texts, scores, read)
