"""The training prompts' encodings, kept compactly. N prompts, R kept rows in all, D channels, P pooled channels."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .encoders.base import Encoding, TextEncoder
from .errors import SanitizerError
from .networks import summary

BATCH = 64
SORTED_BATCHES = 16
"""Prompts are encoded in order of length within so many batches, which saves padding."""
READ = 256
"""Prompts read from the set at once, where all of them are read."""
VALUES = 2**25
"""Values of a float32 tensor of rows, above which fewer prompts are encoded or read at once: several such tensors are
in use at a time, and a wide encoder's would take gigabytes."""
TYPICAL_ROWS = 256
"""Rows of a wide encoder's prompt, for the number of prompts to encode at once."""
PADDING_ROWS = 8
"""Padding rows kept of a prompt, evenly spaced, the last one among them; each stands for several."""
MEMORY = 3 * 2**29
"""Bytes of kept rows after which encoding stops; the set so far is used."""
DEAD = 1e-3
"""A channel whose standard deviation is below this share of the median one carries no prompt and is left alone."""
MOST_CONSTANT = 64
CONSTANT = 1e-3
"""A row position whose deviation over prompts is below this share of its norm is constant."""

Progress = Callable[[str, int, int, dict[str, float]], None]


@dataclass
class Normaliser:
    """Statistics of the encoder's rows, from the first prompts of the training set."""

    mean: Tensor
    std: Tensor
    pooled_mean: Tensor | None
    pooled_std: Tensor | None
    constant: Tensor
    """(F, D): leading rows that are the same for every prompt."""
    window: int | None
    """The number of rows, where it is the same for every prompt and all are visible."""


@dataclass
class Encodings:
    """Kept rows of N prompts, normalised, float16."""

    normaliser: Normaliser
    rows: Tensor
    """(R, D)."""
    weight: Tensor
    """(R,): how many rows of the encoder's output a kept row stands for; 0 for a constant row."""
    start: Tensor
    """(N + 1,): prompt i has the rows start[i] to start[i + 1]."""
    pooled: Tensor | None
    """(N, P)."""
    tokens: list[list[str]]
    """Token strings of all rows of each prompt, kept or not."""
    kept: list[list[int]]
    """Places of the kept rows among all rows of the prompt."""

    def __len__(self) -> int:
        return len(self.tokens)

    def alike(self, candidates: Tensor, size: int) -> list[int]:
        """Draw `size` of the candidate prompts that are about as long as each other, which saves padding; over many
        draws every candidate comes equally often, but for the shortest and longest few."""
        if len(candidates) > size:
            drawn = candidates[torch.randint(len(candidates), (6 * size,))]
            drawn = drawn[(self.start[drawn + 1] - self.start[drawn]).argsort()]
            first = int(torch.randint(5 * size + 1, ()))
            return drawn[first : first + size].tolist()
        return candidates[torch.randint(len(candidates), (size,))].tolist()

    def batch(self, index: Sequence[int], device: str | torch.device = "cpu") -> tuple[Tensor, Tensor, Tensor | None]:
        """(B, L, D) float32, (B, L) float32 weight and (B, P) float32 or None, padded with weight 0."""
        parts = [slice(int(self.start[i]), int(self.start[i + 1])) for i in index]
        x = torch.nn.utils.rnn.pad_sequence([self.rows[part] for part in parts], batch_first=True)
        weight = torch.nn.utils.rnn.pad_sequence([self.weight[part] for part in parts], batch_first=True)
        pooled = None if self.pooled is None else self.pooled[list(index)].to(device, torch.float32)
        return x.to(device, torch.float32), weight.to(device), pooled

    def batches(
        self, index: Sequence[int] | None = None, device: str | torch.device = "cpu"
    ) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        """The given prompts in their order, None for all, as :meth:`batch` gives them."""
        index = range(len(self)) if index is None else index
        size = _at_once(READ, int(self.start.diff().max()) * self.rows.shape[1])
        for first in range(0, len(index), size):
            yield self.batch(index[first : first + size], device)

    def summaries(self, index: Sequence[int] | None = None, device: str | torch.device = "cpu") -> Tensor:
        """(N, 2 D + P) of the given prompts, None for all: see :func:`networks.summary`."""
        return torch.cat([summary(*batch) for batch in self.batches(index, device)])


def kept_rows(tokens: Sequence[str], mask: Sequence[bool]) -> tuple[list[int], list[float]]:
    """Choose the rows to keep of one prompt, and their weights.

    All text rows and the first row of each run without text (start, end token); of the rest of such a run, which is
    padding, every n-th counted from its end. The places are the same for prompts of any length, so that target and
    anchor align.
    """
    places: list[int] = []
    weights: list[float] = []
    at = 0
    visible = [i for i, seen in enumerate(mask) if seen]
    length = (visible[-1] + 1) if visible else 0
    # Of the visible rows: beside a longer prompt in the batch a prompt has more rows, which are masked.
    step = max(1, math.ceil(length / PADDING_ROWS))
    while at < length:
        end = at
        while end < length and bool(tokens[end]) == bool(tokens[at]):
            end += 1
        if tokens[at]:
            run, weight = [i for i in range(at, end) if mask[i]], 1.0
            weights += [weight] * len(run)
        else:
            rest = [i for i in range(at + 1, end) if mask[i]]
            chosen = [i for i in rest if (length - 1 - i) % step == 0] or rest[-1:]
            run = ([at] if mask[at] else []) + chosen
            weights += (
                ([1.0] if mask[at] else []) + [len(rest) / len(chosen)] * len(chosen) if chosen else [1.0] * len(run)
            )
        places += run
        at = end
    return places, weights


def batch_size(width: int) -> int:
    """Prompts to encode at once with an encoder of so many channels."""
    return _at_once(BATCH, TYPICAL_ROWS * width)


def _at_once(most: int, values: int) -> int:
    """How many prompts of so many values each stay within VALUES, `most` at most and one at least."""
    return max(1, min(most, VALUES // max(1, values)))


def encode_all(
    encoder: TextEncoder,
    prompts: Sequence[str],
    progress: Progress,
    normaliser: Normaliser | None = None,
    memory: int = MEMORY,
    stage: str = "encode",
) -> Encodings:
    """Encode the prompts in batches and keep what training needs of them.

    Stops early, on a batch's edge, once `memory` bytes are kept. A given normaliser is used as it is.
    """
    rows, weights, pooled, tokens, kept, used = [], [], [], [], [], 0
    size = batch_size(encoder.fingerprint.width)
    span = size * SORTED_BATCHES
    for first in range(0, len(prompts), span):
        part = list(range(first, min(first + span, len(prompts))))
        order = sorted(part, key=lambda i: len(prompts[i]))
        found: dict[int, tuple] = {}
        for at in range(0, len(order), size):
            index = order[at : at + size]
            encoding = encoder.encode([prompts[i] for i in index])
            _check_encoding(encoder, encoding, len(index))
            if normaliser is None:
                # Statistics want variety: an extra batch from all over the first span.
                sample = part[:: max(1, len(part) // (2 * BATCH))][: 2 * BATCH]
                normaliser = measure(
                    [encoder.encode([prompts[i] for i in sample[s : s + size]]) for s in range(0, len(sample), size)]
                )
            for i, item in zip(index, _keep(encoding, normaliser), strict=True):
                found[i] = item
            progress(stage, min(first + at + len(index), len(prompts)), len(prompts), {})
        # One large piece a span: the allocator gives large pieces back when they are joined.
        rows.append(torch.cat([found[i][0] for i in part]))
        used += rows[-1].numel() * rows[-1].element_size()
        for i in part:
            _, weight, vector, token, places = found[i]
            weights.append(weight)
            pooled.append(vector)
            tokens.append(token)
            kept.append(places)
        if used > memory:
            break
    start = torch.tensor([0, *(len(weight) for weight in weights)]).cumsum(0)
    return Encodings(
        normaliser=normaliser,
        rows=_joined(rows),
        weight=torch.cat(weights),
        start=start,
        pooled=None if pooled[0] is None else torch.stack(pooled),
        tokens=tokens,
        kept=kept,
    )


def _joined(pieces: list[Tensor]) -> Tensor:
    """The pieces as one tensor, each freed as soon as it is copied: both at once would take twice the memory."""
    out = torch.empty(sum(len(piece) for piece in pieces), *pieces[0].shape[1:], dtype=pieces[0].dtype)
    at = 0
    while pieces:
        piece = pieces.pop(0)
        out[at : at + len(piece)] = piece
        at += len(piece)
    return out


def measure(encodings: Sequence[Encoding]) -> Normaliser:
    """Mean and deviation of each channel, and the constant leading rows."""
    lengths = {e.rows.shape[1] for e in encodings}
    visible = all(bool(e.mask.all()) for e in encodings)
    fixed = len(lengths) == 1 and visible
    shortest = min([*lengths, MOST_CONSTANT])
    leading = torch.cat([e.rows[:, :shortest].float().cpu() for e in encodings])
    count = 0
    while count < shortest - 1:
        place = leading[:, count]
        if place.std(dim=0, correction=0).norm() > CONSTANT * place.norm(dim=-1).mean():
            break
        count += 1
    parts, weights = [], []
    for e in encodings:
        for b in range(e.rows.shape[0]):
            places, weight = kept_rows(e.tokens[b], e.mask[b].tolist())
            chosen = [(p, w) for p, w in zip(places, weight, strict=True) if p >= count]
            parts.append(e.rows[b, [p for p, _ in chosen]].float().cpu())
            weights += [min(w, 2.0) for _, w in chosen]
    x, w = torch.cat(parts), torch.tensor(weights)[:, None]
    mean = (x * w).sum(0) / w.sum()
    std = (((x - mean) ** 2 * w).sum(0) / w.sum()).sqrt()
    pooled = None if encodings[0].pooled is None else torch.cat([e.pooled.float().cpu() for e in encodings])
    return Normaliser(
        mean=mean,
        std=_without_dead(std),
        pooled_mean=None if pooled is None else pooled.mean(0),
        pooled_std=None if pooled is None else _without_dead(pooled.std(0)),
        constant=leading[0, :count].clone(),
        window=lengths.pop() if fixed else None,
    )


def _without_dead(std: Tensor) -> Tensor:
    return torch.where(std > DEAD * std.median(), std, 0.0)


def _keep(encoding: Encoding, normaliser: Normaliser):
    """Per prompt of the batch: kept rows (float16, normalised), weights, pooled vector, tokens, places."""
    from .model import normalise

    constant = len(normaliser.constant)
    for b, tokens in enumerate(encoding.tokens):
        places, weights = kept_rows(tokens, encoding.mask[b].tolist())
        chosen = [(p, w) for p, w in zip(places, weights, strict=True) if p >= constant]
        places = [p for p, _ in chosen]
        rows = normalise(encoding.rows[b, places].cpu().float(), normaliser.mean, normaliser.std)
        vector = None
        if encoding.pooled is not None:
            vector = normalise(encoding.pooled[b].cpu().float(), normaliser.pooled_mean, normaliser.pooled_std).half()
        yield rows.half(), torch.tensor([w for _, w in chosen]), vector, tokens, places


def _check_encoding(encoder: TextEncoder, encoding: Encoding, count: int) -> None:
    shape = tuple(encoding.rows.shape)
    if len(shape) != 3 or shape[0] != count or shape[2] != encoder.fingerprint.width:
        raise SanitizerError(
            f"Encoder {encoder.name}: expected rows of shape ({count}, rows, {encoder.fingerprint.width}), "
            f"found {shape}."
        )
    if not torch.isfinite(encoding.rows).all():
        raise SanitizerError(
            f"Encoder {encoder.name}: it puts out NaN or infinity. Load it in another precision, such as float32."
        )
