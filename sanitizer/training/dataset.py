"""The training prompts encoded, kept compactly, and what is known of each.

N prompts, R kept token embeddings in all, D channels, P pooled channels, K concepts.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..encoders.alignment import align
from ..encoders.base import Encoding, Progress, TextEncoder
from ..errors import SanitizerError
from ..model.normalizer import Normalizer, probe_features
from ..model.sanitizer import spans
from ..prompts.concepts import Concept
from ..prompts.generator import Prompt
from .config import TrainingConfig
from .encodings import EncodingStore, Stretch

READ = 256
"""Prompts read from the set at once, where all of them are read."""
VALUES = 2**25
"""Values of a float32 tensor of embeddings, above which fewer prompts are encoded or read at once: several such tensors
are in use at a time, and a wide encoder's would take gigabytes. It changes no result."""
FULL, LATE = 0.75, 0.15
"""Shares of a window, for the backs of splices: that harmless text fills, and that stands before a phrase, at least."""
TYPICAL_LENGTH = 256
"""Embeddings of a wide encoder's prompt, for the number of prompts to encode at once."""


@dataclass
class EncodedDataset:
    """Kept embeddings of N prompts, normalized, float16."""

    normalizer: Normalizer
    embeddings: Tensor
    """(R, D)."""
    weight: Tensor
    """(R,): how many of the encoder's embeddings a kept one stands for; 0 for a constant one."""
    start: Tensor
    """(N + 1,): prompt i has the embeddings start[i] to start[i + 1]."""
    pooled: Tensor | None
    """(N, P)."""
    tokens: list[list[str]]
    """Token strings of all places of each prompt, kept or not."""
    kept: list[list[int]]
    """The kept places of each prompt."""

    def __len__(self) -> int:
        return len(self.tokens)

    @classmethod
    def encode(
        cls,
        encoder: TextEncoder,
        prompts: Sequence[str],
        config: TrainingConfig,
        progress: Progress,
        normalizer: Normalizer | None = None,
        stage: str = "encode",
        folder: Path | None = None,
    ) -> "EncodedDataset":
        """Encode the prompts in batches and keep what training needs of them.

        Stops early, on a batch's edge, once `config.memory` bytes are kept. A given normalizer is used as it is, else
        the first prompts are measured. What is done is kept in the folder, if one is given, and what is there is not
        encoded again. Raises SanitizerError for an encoder that puts out other shapes than it said, NaN or infinity.
        """
        embeddings, weights, pooled, tokens, kept, used = [], [], [], [], [], 0
        size = batch_size(encoder.fingerprint.width, config.encode_batch)
        span = size * config.sorted_batches
        normalizer = normalizer or measure_encoder(encoder, prompts, config)
        store = folder and EncodingStore(folder, encoder.fingerprint, normalizer, config.padding_kept)
        for first in range(0, len(prompts), span):
            part = prompts[first : first + span]
            found = store.load(part) if store else None
            if found is None:
                found = _encode(
                    encoder, part, size, normalizer, config.padding_kept,
                    lambda done, first=first: progress(stage, first + done, len(prompts), {}),
                )  # fmt: skip
                if store and not store.save(part, found):
                    store = None
            else:
                progress(stage, first + len(part), len(prompts), {})
            embeddings.append(found.embeddings)
            used += found.embeddings.numel() * found.embeddings.element_size()
            weights.append(found.weight)
            pooled.append(found.pooled)
            tokens += found.tokens
            kept += found.kept
            if used > config.memory:
                break
        return cls(
            normalizer=normalizer,
            embeddings=_joined(embeddings),
            weight=torch.cat(weights),
            start=torch.tensor([0, *(len(own) for own in kept)]).cumsum(0),
            pooled=None if pooled[0] is None else torch.cat(pooled),
            tokens=tokens,
            kept=kept,
        )

    @property
    def lengths(self) -> Tensor:
        """(N,): kept embeddings of each prompt."""
        return self.start.diff()

    def batch(self, index: Sequence[int], device: str | torch.device = "cpu") -> tuple[Tensor, Tensor, Tensor | None]:
        """(B, L, D) float32, (B, L) float32 weight and (B, P) float32 or None, padded with weight 0."""
        at = torch.tensor(list(index), dtype=torch.long)
        return self.stretches(at, self.start[at], self.start[at + 1], device)

    def stretches(
        self, prompts: Tensor, first: Tensor, last: Tensor, device: str | torch.device = "cpu"
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """As :meth:`batch`, the kept embeddings from first (B,) up to last (B,) of these prompts (B,)."""
        parts = [slice(a, b) for a, b in zip(first.tolist(), last.tolist(), strict=True)]
        return self.parts(prompts, parts, device)

    def parts(
        self, prompts: Tensor, parts: Sequence[slice | Tensor], device: str | torch.device = "cpu"
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """As :meth:`batch`, these of the R kept embeddings for each of the prompts (B,)."""
        x = pad_sequence([self.embeddings[part] for part in parts], batch_first=True)
        weight = pad_sequence([self.weight[part] for part in parts], batch_first=True)
        pooled = None if self.pooled is None else self.pooled[prompts].to(device, torch.float32)
        return x.to(device, torch.float32), weight.to(device), pooled

    def batches(
        self, index: Sequence[int] | None = None, device: str | torch.device = "cpu"
    ) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        """The given prompts in their order, None for all, as :meth:`batch` gives them."""
        index = range(len(self)) if index is None else index
        size = _at_once(READ, int(self.lengths.max()) * self.embeddings.shape[1])
        for first in range(0, len(index), size):
            yield self.batch(index[first : first + size], device)

    def features(self, index: Sequence[int] | None = None, device: str | torch.device = "cpu") -> Tensor:
        """(N, 2 D + P) of the given prompts, None for all: see :func:`.normalizer.probe_features`."""
        return torch.cat([probe_features(*batch) for batch in self.batches(index, device)])


class Labels:
    """What is known of each training prompt. K concepts, N prompts, R kept embeddings."""

    def __init__(self, prompts: Sequence[Prompt], dataset: EncodedDataset, concepts: Sequence[Concept]) -> None:
        names = [concept.name for concept in concepts]
        count = len(prompts)
        self.prompt = torch.zeros(count, len(names))
        self.known = torch.ones(count, len(names))
        self.start = dataset.start
        self.token = torch.zeros(len(dataset.embeddings), dtype=torch.bool)
        """(R,): the embedding belongs to the phrase at fault."""
        self.token_known = torch.ones(count)
        self.aligned: dict[int, tuple[Tensor, Tensor]] = {}
        """Target prompt -> its kept embeddings (by their order in it), and the anchor's that they align with."""
        erasable = {concept.name for concept in concepts if not concept.context}
        window = dataset.normalizer.window
        for i, prompt in enumerate(prompts):
            for name in prompt.concepts:
                self.prompt[i, names.index(name)] = 1
            for name in prompt.unknown:
                self.known[i, names.index(name)] = 0
            if prompt.anchor is None:
                # Of a harmful prompt without an anchor it is not known which words are at fault: all are, or none.
                self.token_known[i] = float(not prompt.concepts)
                continue
            # Which of two phrases a token belongs to is not known.
            self.token_known[i] = float(len(prompt.concepts) == 1)
            places, differs = align(dataset.tokens[i], dataset.tokens[prompt.anchor])
            kept = dataset.kept[i]
            first = int(dataset.start[i])
            self.token[first : first + len(kept)] = torch.tensor([differs[place] for place in kept])
            others = dataset.kept[prompt.anchor]
            fits = window is None or max(kept[-1:] + others[-1:], default=0) < window
            # The erase net sees one window at once, so of longer prompts it learns nothing.
            if fits and erasable.issuperset(prompt.concepts):
                pairs = _nearest(kept, places, others)
                if pairs:
                    target, anchor = zip(*pairs, strict=True)
                    self.aligned[i] = torch.tensor(target), torch.tensor(anchor)


class Drawn(NamedTuple):
    """B spans as the score net learns from them. L token embeddings, D channels, P pooled channels, K concepts."""

    x: Tensor
    """(B, L, D) float32."""
    weight: Tensor
    """(B, L) float32, 0 where there is nothing."""
    pooled: Tensor | None
    """(B, P) float32 or None."""
    phrase: Tensor
    """(B, L): 1 where a token belongs to a phrase at fault."""
    labels: Tensor
    """(B, K)."""
    known: Tensor
    """(B, K): 0 where the label says nothing."""
    token_known: Tensor
    """(B,): 0 where it is not known to which of the labels the phrase belongs."""


class Spans:
    """The stretches of the training prompts that the score net sees at once, as in
    :func:`..model.sanitizer.spans`, and what is known of each. S spans, K concepts."""

    def __init__(self, dataset: EncodedDataset, labels: Labels, size: int) -> None:
        """size: of a span, in places of the encoder's output; 0: all of a window."""
        prompts, first, last, harmful, known = [], [], [], [], []
        window = dataset.normalizer.window or math.inf
        for i in range(len(dataset)):
            start, kept = int(dataset.start[i]), dataset.kept[i]
            phrase = labels.token[start : start + len(kept)].nonzero().squeeze(1).tolist()
            cuts = self._cuts(kept, window, size)
            for a, b in cuts:
                part = bisect_left(phrase, b) - bisect_left(phrase, a)
                # Embeddings behind the phrase may have read it, as all do in a causal encoder.
                behind = bool(phrase) and phrase[0] < a and kept[phrase[0]] // window == kept[a] // window
                # Where no phrase is at fault, all of the prompt is.
                most = len(cuts) == 1 or 2 * part >= len(phrase)
                # Of these, of one with a smaller part of the phrase, and of any in a prompt whose pooled vector tells
                # of it, nothing is known. Which of two phrases a part has is not known, either. Taken as harmful,
                # padding behind the phrase cost half of what is found (`minilm-causal`).
                apart = part == 0 and not behind and dataset.pooled is None and bool(labels.token_known[i])
                prompts.append(i)
                first.append(start + a)
                last.append(start + b)
                harmful.append(most)
                known.append(most or apart)
        self.prompts, self.first, self.last = torch.tensor(prompts), torch.tensor(first), torch.tensor(last)
        unsafe = labels.prompt[self.prompts]
        self.labels = unsafe * torch.tensor(harmful)[:, None]
        """(S, K)."""
        doubtful = (unsafe.sum(dim=1) > 0) & ~torch.tensor(known)
        self.known = labels.known[self.prompts] * ~doubtful[:, None]
        """(S, K)."""
        self.token_known = labels.token_known[self.prompts]
        self._dataset, self._labels = dataset, labels
        self._splices = _Splices(dataset, labels, self) if dataset.normalizer.causal and not size else None

    @staticmethod
    def _cuts(kept: list[int], window: float, size: int) -> list[tuple[int, int]]:
        """(first, end) of each span among the kept places."""
        cuts, at = [], 0
        while at < len(kept):
            start = int(kept[at] // window * window) if window < math.inf else 0
            end = bisect_left(kept, start + window)
            for low, high in _span_places(kept[end - 1] + 1 - start, size):
                a, b = bisect_left(kept, start + low), bisect_left(kept, start + high)
                if a < b:
                    cuts.append((a, b))
            at = end
        return list(dict.fromkeys(cuts)) or [(0, 0)]

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def lengths(self) -> Tensor:
        """(S,): kept embeddings of each."""
        return self.last - self.first

    def batch(self, index: Tensor, device: str | torch.device = "cpu") -> tuple[Tensor, Tensor, Tensor | None]:
        """As :meth:`EncodedDataset.batch`."""
        return self._dataset.stretches(self.prompts[index], self.first[index], self.last[index], device)

    def draw(self, index: Tensor, config: TrainingConfig, device: str | torch.device = "cpu") -> Drawn:
        """These spans (B,), a share `config.spliced` of them spliced, see :class:`_Splices`."""
        drawn = [self._drawn(i, config) for i in index.tolist()]
        parts, others = [own for own, _ in drawn], torch.tensor([other for _, other in drawn])
        x, weight, pooled = self._dataset.parts(self.prompts[index], parts, device)
        if pooled is not None:
            # What the pooled vector of two halves would be is not known: the mean, which is zero.
            pooled = pooled * (others == index)[:, None].to(device)
        phrase = pad_sequence([self._labels.token[own] for own in parts], batch_first=True)
        labels, other_labels = self.labels[index], self.labels[others]
        # Of phrases of different concepts it is not known which one a token belongs to.
        agree = (labels == other_labels).all(dim=1) | (labels == 0).all(dim=1) | (other_labels == 0).all(dim=1)
        labels = torch.maximum(labels, other_labels)
        known = torch.maximum(torch.minimum(self.known[index], self.known[others]), labels)
        token_known = torch.minimum(self.token_known[index], self.token_known[others]) * agree
        return Drawn(
            x,
            weight,
            pooled,
            phrase.to(device, torch.float32),
            labels.to(device),
            known.to(device),
            token_known.to(device),
        )

    def _drawn(self, i: int, config: TrainingConfig) -> tuple[slice | Tensor, int]:
        """Places among the R kept embeddings, and the span whose label counts as well: itself, if it is whole."""
        if self._splices is not None and float(torch.rand(())) < config.spliced:
            spliced = self._splices.splice(i, config)
            if spliced is not None:
                return spliced
        return slice(int(self.first[i]), int(self.last[i])), i


class _Splices:
    """Windows of a causal encoder, each made of the front of one and the back of another.

    What stands in front does not know of what follows it, so its embeddings are those of any longer prompt; those
    behind have read another front, as they had in one of the training prompts. So the score net sees every phrase among
    many more harmless words than are encoded.
    """

    def __init__(self, dataset: EncodedDataset, labels: Labels, spans: Spans) -> None:
        assert dataset.normalizer.window is not None
        self.window = dataset.normalizer.window
        # Not the spans themselves: a circle would keep the dataset in memory until the collector comes round.
        self.first, self.last = spans.first, spans.last
        self.text = torch.tensor(
            [bool(own[p]) for own, kept in zip(dataset.tokens, dataset.kept, strict=True) for p in kept]
        )
        self.place = torch.tensor([place % self.window for kept in dataset.kept for place in kept])
        count = len(spans)
        self.length = torch.zeros(count)
        """(S,): places of text."""
        self.begin, self.end = torch.full((count,), self.window), torch.full((count,), -1)
        """(S,): first and last place of the phrase; the window and -1 without one."""
        for i, (a, b) in enumerate(zip(spans.first.tolist(), spans.last.tolist(), strict=True)):
            self.length[i] = self.text[a:b].sum()
            phrase = self.place[a:b][labels.token[a:b] & self.text[a:b]]
            if len(phrase):
                self.begin[i], self.end[i] = phrase[0], phrase[-1]
        self.unsafe = spans.labels.sum(dim=1) > 0
        self.fit = spans.known.sum(dim=1) > 0
        """(S,): something is known of it."""
        harmless = ~self.unsafe & self.fit & (self.length >= FULL * self.window)
        begins_late = (self.begin < self.window) & (self.begin >= LATE * self.window)
        late = self.unsafe & self.fit & (spans.token_known > 0) & begins_late
        self.backs = [group.nonzero().squeeze(1) for group in (harmless, late)]

    def splice(self, front: int, config: TrainingConfig) -> tuple[Tensor, int] | None:
        """The places among the R kept embeddings, and the span that the back is of; None where these two do not go
        together: a phrase must stand whole in its half, and what has read it must be left out."""
        backs = self.backs[float(torch.rand(())) < config.spliced_unsafe]
        if not len(backs) or not self.fit[front] or not self.length[front]:
            return None
        back = int(backs[torch.randint(len(backs), ())])
        own, other = (torch.arange(int(self.first[i]), int(self.last[i])) for i in (front, back))
        words = own[self.text[own]]
        padded = len(words) < len(own)
        cut = int(self.place[words[-1]] if padded else torch.randint(self.window, ()))
        if (self.unsafe[front] and not 0 <= self.end[front] <= cut) or self.begin[back] <= cut:
            return None
        return torch.cat([words[self.place[words] <= cut], other[self.place[other] > cut]]), back


@cache
def _span_places(length: int, size: int) -> list[tuple[int, int]]:
    _, places = spans(torch.ones(1, length), size)
    return [(int(own[0]), int(own[-1]) + 1) for own in places]


def alike(lengths: Tensor, candidates: Tensor, size: int) -> list[int]:
    """Draw `size` of the candidates that are about as long as each other, which saves padding; over many draws every
    candidate comes equally often, but for the shortest and longest few."""
    if len(candidates) > size:
        drawn = candidates[torch.randint(len(candidates), (6 * size,))]
        drawn = drawn[lengths[drawn].argsort()]
        first = int(torch.randint(5 * size + 1, ()))
        return drawn[first : first + size].tolist()
    return candidates[torch.randint(len(candidates), (size,))].tolist()


def _nearest(kept: list[int], places: list[int], anchor_kept: list[int]) -> list[tuple[int, int]]:
    """(of the target, of the anchor) among the kept embeddings, leaving out those whose counterpart was not kept."""
    where = {place: order for order, place in enumerate(anchor_kept)}
    return [(order, where[places[place]]) for order, place in enumerate(kept) if places[place] in where]


def kept_places(
    tokens: Sequence[str], mask: Sequence[bool], padding: int = TrainingConfig.padding_kept
) -> tuple[list[int], list[float]]:
    """The places of one prompt to keep, and their weights.

    All text and the first place of each run without text (start, end token); of the rest of such a run, which is
    padding, every n-th counted from its end, about `padding` of them. They are the same for prompts of any length, so
    that target and anchor align.
    """
    places: list[int] = []
    weights: list[float] = []
    at = 0
    visible = [i for i, seen in enumerate(mask) if seen]
    length = (visible[-1] + 1) if visible else 0
    # Of the visible ones: beside a longer prompt in the batch a prompt has more, which are masked.
    step = max(1, math.ceil(length / padding))
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


def batch_size(width: int, most: int = TrainingConfig.encode_batch) -> int:
    """Prompts to encode at once with an encoder of so many channels."""
    return _at_once(most, TYPICAL_LENGTH * width)


def _at_once(most: int, values: int) -> int:
    """How many prompts of so many values each stay within VALUES, `most` at most and one at least."""
    return max(1, min(most, VALUES // max(1, values)))


def _joined(pieces: list[Tensor]) -> Tensor:
    """The pieces as one tensor, each freed as soon as it is copied: both at once would take twice the memory."""
    out = torch.empty(sum(len(piece) for piece in pieces), *pieces[0].shape[1:], dtype=pieces[0].dtype)
    at = 0
    while pieces:
        piece = pieces.pop(0)
        out[at : at + len(piece)] = piece
        at += len(piece)
    return out


def measure_encoder(encoder: TextEncoder, prompts: Sequence[str], config: TrainingConfig) -> Normalizer:
    """:func:`measure` on some of the first prompts: statistics want variety, so they come from all over a stretch."""
    size, most = batch_size(encoder.fingerprint.width, config.encode_batch), 2 * config.encode_batch
    first = prompts[: size * config.sorted_batches]
    sample = first[:: max(1, len(first) // most)][:most]
    return measure([encoder.encode(sample[at : at + size]) for at in range(0, len(sample), size)], config)


def measure(encodings: Sequence[Encoding], config: TrainingConfig | None = None) -> Normalizer:
    """Mean and deviation of each channel, and the constant leading embeddings."""
    config = config or TrainingConfig()
    # Each by itself: in a batch the padding of a longer prompt would stand for its own length.
    lengths = [int(mask.sum()) for e in encodings for mask in e.mask]
    # Where most prompts have one length and the others a multiple of it, it is that of a window of fixed size.
    window = min(lengths)
    fixed = 2 * lengths.count(window) > len(lengths) and all(length % window == 0 for length in lengths)
    shortest = min(window, config.most_constant)
    leading = torch.cat([e.embeddings[:, :shortest].float().cpu() for e in encodings])
    count = 0
    while count < shortest - 1:
        place = leading[:, count]
        if place.std(dim=0, correction=0).norm() > config.constant * place.norm(dim=-1).mean():
            break
        count += 1
    parts, weights = [], []
    for e in encodings:
        for b in range(len(e.tokens)):
            places, weight = kept_places(e.tokens[b], e.mask[b].tolist(), config.padding_kept)
            chosen = [(p, w) for p, w in zip(places, weight, strict=True) if p >= count]
            parts.append(e.embeddings[b, [p for p, _ in chosen]].float().cpu())
            weights += [min(w, 2.0) for _, w in chosen]
    x, w = torch.cat(parts), torch.tensor(weights)[:, None]
    mean = (x * w).sum(0) / w.sum()
    std = (((x - mean) ** 2 * w).sum(0) / w.sum()).sqrt()
    vectors = [e.pooled.float().cpu() for e in encodings if e.pooled is not None]
    pooled = torch.cat(vectors) if vectors else None

    def without_dead(found: Tensor) -> Tensor:
        return torch.where(found > config.dead * found.median(), found, 0.0)

    return Normalizer(
        mean=mean,
        std=without_dead(std),
        pooled_mean=None if pooled is None else pooled.mean(0),
        pooled_std=None if pooled is None else without_dead(pooled.std(0)),
        constant=leading[0, :count].clone(),
        window=window if fixed else None,
    )


def _encode(
    encoder: TextEncoder,
    prompts: Sequence[str],
    size: int,
    normalizer: Normalizer,
    padding: int,
    done: Callable[[int], None],
) -> Stretch:
    """Encoded by `size` in order of length; done is called with the number of prompts that are."""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    found: dict[int, tuple] = {}
    for at in range(0, len(order), size):
        index = order[at : at + size]
        encoding = encoder.encode([prompts[i] for i in index])
        _check_encoding(encoder, encoding, len(index))
        found.update(zip(index, _keep(encoding, normalizer, padding), strict=True))
        done(len(found))
    embeddings, weights, vectors, tokens, kept = zip(*(found[i] for i in range(len(prompts))), strict=True)
    pooled = None if vectors[0] is None else torch.stack(vectors)
    # One large piece: the allocator gives large pieces back when they are joined.
    return Stretch(torch.cat(embeddings), torch.cat(weights), pooled, list(tokens), list(kept))


def _keep(encoding: Encoding, normalizer: Normalizer, padding: int):
    """Per prompt of the batch: kept embeddings (float16, normalized), weights, pooled vector, tokens, places."""
    constant, window = len(normalizer.constant), normalizer.window or math.inf
    for b, tokens in enumerate(encoding.tokens):
        places, weights = kept_places(tokens, encoding.mask[b].tolist(), padding)
        chosen = [(p, w) for p, w in zip(places, weights, strict=True) if p % window >= constant]
        places = [int(p) for p, _ in chosen]
        embeddings = normalizer(encoding.embeddings[b, places].cpu().float())
        vector = None if encoding.pooled is None else normalizer.pooled(encoding.pooled[b].cpu().float()).half()
        yield embeddings.half(), torch.tensor([w for _, w in chosen]), vector, tokens, places


def _check_encoding(encoder: TextEncoder, encoding: Encoding, count: int) -> None:
    shape = tuple(encoding.embeddings.shape)
    if len(shape) != 3 or shape[0] != count or shape[2] != encoder.fingerprint.width:
        raise SanitizerError(
            f"Encoder {encoder.name}: expected rows of shape ({count}, rows, {encoder.fingerprint.width}), "
            f"found {shape}."
        )
    if not torch.isfinite(encoding.embeddings).all():
        raise SanitizerError(
            f"Encoder {encoder.name}: it puts out NaN or infinity. Load it in another precision, such as float32."
        )
