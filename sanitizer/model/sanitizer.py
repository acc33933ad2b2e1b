"""The Embedding Sanitizer: token embeddings of a frozen text encoder in, sanitized ones out.

Method: "Safe Text-to-Image Generation: Simply Sanitize the Prompt Embedding", arXiv 2411.10329. A score net gives
every token and the prompt a harm score per concept; an erase net says what the encoder would have put out for the safe
anchor prompt; and the output is

    Ĥ = H + amount(strength) · gate(scores) · (Erase(H) − H)

with the gate exactly 0 for a prompt in which no chosen concept reaches the threshold.

Shapes in this file: B prompts, L token embeddings, D channels, P pooled channels, K concepts.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..encoders.base import Fingerprint
from ..errors import SanitizerError
from .config import MAX_STRENGTH, SanitizerConfig, check_number
from .gate import amount, gate, margins
from .header import Header
from .networks import GatedEraser, ScoreNet, SubspaceEraser
from .normalizer import Normalizer
from .provenance import Provenance, UsualSize, check_start


class Scores(NamedTuple):
    """Calibrated probabilities of harm; 0.5 is the operating point."""

    prompt: Tensor
    """(B, K) float32."""
    tokens: Tensor
    """(B, L, K) float32, 0 where masked."""


class Sanitized(NamedTuple):
    """What comes out; untouched prompts are in it bit for bit."""

    embeddings: Tensor
    """(B, L, D), dtype, device and shape of the input."""
    pooled: Tensor | None
    """(B, P) or None, likewise."""
    scores: Scores
    flagged: Tensor
    """(B,) bool: a chosen concept reached its threshold."""
    fired: Tensor
    """(B, K) bool: which ones."""
    changed: Tensor
    """(B, L) bool: token embeddings that were rewritten."""


class EmbeddingSanitizer(nn.Module):
    """Score net, erase net and gate for one text encoder.

    `operations` supplies Linear and LayerNorm, torch.nn by default. Computes in float32 whatever comes in.
    """

    mean: Tensor
    std: Tensor
    pooled_mean: Tensor | None
    pooled_std: Tensor | None
    constant: Tensor
    vote_mix: Tensor
    vote_bias: Tensor
    vote_slope: Tensor
    token_scale: Tensor
    token_bias: Tensor
    token_slope: Tensor
    provenance_directions: Tensor | None
    provenance_mean: Tensor | None
    provenance_variance: Tensor | None
    provenance_bounds: Tensor | None
    erase_net: GatedEraser | SubspaceEraser

    def __init__(self, config: SanitizerConfig, header: Header | None = None, operations=nn) -> None:
        super().__init__()
        self.config = config
        self.header = header
        count, width, pooled = len(config.concepts), config.width, config.pooled_width
        self.score_net = ScoreNet(config, operations)
        self.erase_net = (GatedEraser if config.gated else SubspaceEraser)(config, operations)
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(width))
        self.register_buffer("pooled_mean", torch.zeros(pooled) if pooled else None)
        self.register_buffer("pooled_std", torch.ones(pooled) if pooled else None)
        self.register_buffer("constant", torch.zeros(config.constant_embeddings, width))
        # A vote's logit = mix · (prompt head, strongest token, probe) + bias - slope · log(spans of the prompt), and a
        # token's = scale · token head + bias - slope · log(spans): of many spans one is high by chance.
        votes = len(config.vote_weights)
        self.register_buffer("vote_mix", torch.full((votes, 3, count), 1 / 3))
        self.register_buffer("vote_bias", torch.zeros(votes, count))
        self.register_buffer("vote_slope", torch.zeros(votes, count))
        self.register_buffer("token_scale", torch.ones(count))
        self.register_buffer("token_bias", torch.zeros(count))
        self.register_buffer("token_slope", torch.zeros(count))
        directions, sizes = config.directions, config.sizes
        self.register_buffer("provenance_directions", torch.zeros(directions, width) if directions else None)
        self.register_buffer("provenance_mean", torch.zeros(3, directions + sizes) if sizes else None)
        self.register_buffer("provenance_variance", torch.ones(2, directions + sizes) if sizes else None)
        self.register_buffer("provenance_bounds", torch.zeros(2, 1 + sizes) if sizes else None)

    @property
    def concepts(self) -> tuple[str, ...]:
        """Names of all K concepts, in the order of the scores."""
        return tuple(spec.name for spec in self.config.concepts)

    @property
    def erasable(self) -> tuple[str, ...]:
        """Names of the concepts that can be erased; the others only lower thresholds."""
        return tuple(spec.name for spec in self.config.concepts if not spec.context)

    @property
    def width(self) -> int:
        return self.config.width

    @property
    def pooled_width(self) -> int:
        return self.config.pooled_width

    @property
    def fingerprint(self) -> Fingerprint:
        """Of the encoder it was trained on. Raises SanitizerError for one that was not trained."""
        if self.header is None:
            raise SanitizerError("This sanitizer names no encoder. Train it again.")
        return self.header.encoder

    @property
    def normalizer(self) -> Normalizer:
        """The encoder's statistics, where this module is."""
        config = self.config
        return Normalizer(
            self.mean, self.std, self.pooled_mean, self.pooled_std, self.constant,
            clip=config.clip, tolerance=config.constant_tolerance,
        )  # fmt: skip

    @property
    def provenance(self) -> Provenance | None:
        """The statistics that tell the encoder's own embeddings, where this module is; None where there are none."""
        if self.provenance_mean is None or self.provenance_variance is None or self.provenance_bounds is None:
            return None
        none = self.mean.new_zeros(0, self.width)
        return Provenance(
            self.normalizer,
            none if self.provenance_directions is None else self.provenance_directions,
            self.provenance_mean,
            self.provenance_variance,
            self.provenance_bounds,
        )

    def set_statistics(self, normalizer: Normalizer, provenance: Provenance | None) -> None:
        """Take these statistics of the encoder, of the shapes that the configuration says."""
        for name in ("mean", "std", "constant", *(("pooled_mean", "pooled_std") if self.pooled_width else ())):
            getattr(self, name).copy_(getattr(normalizer, name))
        if provenance is not None:
            for name in ("mean", "variance", "bounds", *(("directions",) if len(provenance.directions) else ())):
                getattr(self, f"provenance_{name}").copy_(getattr(provenance, name))

    def take_networks(self, other: "EmbeddingSanitizer") -> None:
        """Copy the networks of another sanitizer. Raises SanitizerError for one of other concepts or sizes."""
        try:
            if other.config.concepts != self.config.concepts:
                raise ValueError(f"its concepts are {', '.join(other.concepts)}, expected {', '.join(self.concepts)}")
            self.score_net.load_state_dict(other.score_net.state_dict())
            self.erase_net.load_state_dict(other.erase_net.state_dict())
        except (ValueError, RuntimeError) as error:
            said = " ".join(str(error).split())
            raise SanitizerError(f"Sanitizer to start from: {said:.300}. Train without it.") from error

    def score(
        self,
        embeddings: Tensor,
        mask: Tensor | None = None,
        pooled: Tensor | None = None,
        *,
        trusted: bool = False,
    ) -> Scores:
        """Score every token and the prompt.

        embeddings (B, L, D) float32, float16 or bfloat16; mask (B, L) of bool, or of 0 and 1 in any dtype, or None for
        all visible; pooled (B, P), required if and only if the encoder has one. trusted: they come straight from the
        sanitizer's own encoder. Raises SanitizerError for other shapes, other dtypes, other masks, NaN or infinity in
        what comes in or goes out, and, unless they are trusted, for embeddings that are not the encoder's, see
        :mod:`.provenance`.
        """
        x, weight, vector = self._prepare(embeddings, mask, pooled, trusted)
        return self._scored(x, weight, vector, embeddings.shape[0], embeddings.shape[1])[0]

    def sanitize(
        self,
        embeddings: Tensor,
        mask: Tensor | None = None,
        pooled: Tensor | None = None,
        *,
        strength: float = 1.0,
        threshold: float | None = None,
        concepts: Iterable[str] | None = None,
        also: Tensor | None = None,
        trusted: bool = False,
    ) -> Sanitized:
        """Rewrite the prompts in which a chosen concept reaches the threshold; leave all others bit for bit.

        strength from 0 (nothing happens) over 1 (the erased embedding) to 2 (past it). threshold from 0 to 1, None for
        the calibrated one. concepts: names out of :attr:`erasable`, None for all. also: (B, K) prompt scores known from
        another reading of the same text; the higher score counts, for gate and flag and in what is returned. Other
        arguments as in :meth:`score`, `trusted` among them, and the same errors.
        """
        chosen = self.places(concepts)
        check_number("Strength", strength, 0, MAX_STRENGTH)
        if threshold is not None:
            check_number("Threshold", threshold, 0, 1)
        x, weight, vector = self._prepare(embeddings, mask, pooled, trusted)
        batch, length = embeddings.shape[:2]
        scores, tokens, usual = self._scored(x, weight, vector, batch, length)
        if also is not None:
            scores = scores._replace(prompt=torch.maximum(scores.prompt, self._known(also, scores.prompt)))
        opened, fired = gate(self.config, margins(self.config, scores.prompt, threshold), chosen)
        flagged = fired.any(dim=1)
        changed = torch.zeros(batch, length, dtype=torch.bool, device=embeddings.device)
        if strength == 0 or not flagged.any():
            return Sanitized(embeddings, pooled, scores, flagged, fired, changed)
        # Only flagged prompts are computed and written, so nothing else can change by a rounding error.
        index = flagged.nonzero().squeeze(1)
        windows = x.shape[0] // batch
        of_windows = (index[:, None] * windows + torch.arange(windows, device=index.device)).reshape(-1)
        # At their usual size, which is what the erase net knows, and the change brought back to what they have.
        x, vector = (x, vector) if usual is None else (usual.x, usual.pooled)
        v = None if vector is None else vector[of_windows]
        tokens = tokens.reshape(x.shape[0], x.shape[1], -1)[of_windows]
        change, pooled_change = self.erase_net(x[of_windows], weight[of_windows], v, torch.sigmoid(tokens))
        if usual is not None:
            change = change / usual.factor[of_windows, None, None]
            pooled_change = None if pooled_change is None else pooled_change / usual.pooled_factor[of_windows, None]
        change = change.reshape(len(index), -1, self.width)[:, :length] * self.std
        share = amount(self.config, strength) * opened[index]
        place = index.to(embeddings.device)
        target = embeddings.index_select(0, place)
        edited = (target.to(x.device, torch.float32) + share[:, None, None] * change).to(target)
        changed[place] = (weight.reshape(batch, -1)[index, :length] > 0).to(changed.device)
        out = embeddings.clone()
        out[place] = _finite("embeddings", torch.where(changed[place][..., None], edited, target))
        out_pooled = pooled
        if pooled is not None and pooled_change is not None:
            first = pooled_change.reshape(len(index), windows, -1)[:, 0] * self.pooled_std
            place = index.to(pooled.device)
            old = pooled.index_select(0, place)
            out_pooled = pooled.clone()
            edited = (old.to(x.device, torch.float32) + share[:, None] * first).to(old)
            out_pooled[place] = _finite("pooled vectors", edited)
        return Sanitized(out, out_pooled, scores, flagged, fired, changed)

    forward = sanitize

    def erased(self, x: Tensor, weight: Tensor, pooled: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """What the erase net adds to normalized windows x (B, L, D), weight (B, L), pooled (B, P), in full; its
        gradient flows, that of the scores it is told does not."""
        with torch.no_grad():
            tokens = self._evidence(x, weight, pooled, len(x)).tokens
        return self.erase_net(x, weight, pooled, torch.sigmoid(tokens))

    def places(self, concepts: Iterable[str] | None = None) -> list[int]:
        """Places of the named concepts among the K, of all that can be erased for None. Raises SanitizerError for no
        names and for unknown ones."""
        if concepts is None:
            concepts = self.erasable
        names = tuple(concepts) if isinstance(concepts, Iterable) and not isinstance(concepts, str) else ()
        if not names:
            raise SanitizerError(f"Concepts: expected names out of {', '.join(self.erasable)}, found {concepts!r}.")
        for name in names:
            if name not in self.erasable:
                raise SanitizerError(
                    f"Concept {name!r}: this sanitizer knows {', '.join(self.erasable)}. "
                    "Choose among them or train one that knows it."
                )
        return [self.concepts.index(name) for name in names]

    def _known(self, also: Tensor, prompt: Tensor) -> Tensor:
        """Scores from another reading, checked: NaN would win every comparison and fire none."""
        if not torch.is_tensor(also):
            raise SanitizerError(f"Scores of another reading: expected a tensor, found {type(also).__name__}.")
        finite = bool(torch.isfinite(also).all())
        if also.shape != prompt.shape or not finite:
            raise SanitizerError(
                f"Scores of another reading: expected {tuple(prompt.shape)} finite numbers, "
                f"found {tuple(also.shape)}{'' if finite else ' with NaN or infinity'}."
            )
        return also.to(prompt)

    def _prepare(
        self, embeddings: Tensor, mask: Tensor | None, pooled: Tensor | None, trusted: bool
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Check, normalize and split into windows: x (B·n, l, D), weight (B·n, l), pooled (B·n, P)."""
        self._check(embeddings, mask, pooled)
        normalizer, device = self.normalizer, self.mean.device
        raw = embeddings.to(device, torch.float32)
        x, weight = normalizer(raw), normalizer.weights(raw, mask)
        vector = None if pooled is None else normalizer.pooled(pooled.to(device, torch.float32))
        batch, length = weight.shape
        windows = max(1, math.ceil(length / self.config.window))
        if windows > 1:
            missing = windows * self.config.window - length
            x = nn.functional.pad(x, (0, 0, 0, missing)).reshape(batch * windows, self.config.window, -1)
            weight = nn.functional.pad(weight, (0, missing)).reshape(batch * windows, -1)
            vector = None if vector is None else vector.repeat_interleave(windows, dim=0)
        if self.config.verified and not trusted:
            check_start(raw, self.constant, length if self.config.directions else self.config.window, self.config)
            if (provenance := self.provenance) is not None:
                there = (embeddings[:, 0] if pooled is None else pooled).ne(0).any(dim=1)
                provenance.check(x, weight, vector, there.to(device))
        return x, weight, vector

    def _check(self, embeddings: Tensor, mask: Tensor | None, pooled: Tensor | None) -> None:
        floats = (torch.float32, torch.float16, torch.bfloat16)
        for name, value in (("Embedding", embeddings), ("Mask", mask), ("Pooled vector", pooled)):
            if not torch.is_tensor(value) and (value is not None or name == "Embedding"):
                raise SanitizerError(f"{name}: expected a tensor, found {type(value).__name__}.")
        if embeddings.ndim != 3 or embeddings.shape[2] != self.width or not all(embeddings.shape[:2]):
            raise SanitizerError(
                f"Embedding: expected (prompts, rows, {self.width}), found {tuple(embeddings.shape)}. "
                "This sanitizer was trained on another text encoder; train or load one for this encoder."
            )
        if mask is not None and mask.shape != embeddings.shape[:2]:
            raise SanitizerError(f"Mask: expected {tuple(embeddings.shape[:2])}, found {tuple(mask.shape)}.")
        if mask is not None and mask.dtype != torch.bool and not ((mask == 0) | (mask == 1)).all():
            raise SanitizerError(
                f"Mask: expected bool, or 0 for hidden and 1 for visible, found {mask.dtype} with other values. A mask "
                "that is added to attention, or that holds shares or NaN, says nothing sure of what the model sees."
            )
        if (pooled is not None) != bool(self.pooled_width):
            expected = f"one of {self.pooled_width} channels" if self.pooled_width else "none"
            found = "none" if pooled is None else f"one of {pooled.shape[-1]} channels"
            raise SanitizerError(f"Pooled vector: expected {expected}, found {found}. Use the sanitizer's own encoder.")
        if pooled is not None and pooled.shape != (embeddings.shape[0], self.pooled_width):
            raise SanitizerError(
                f"Pooled vector: expected {(embeddings.shape[0], self.pooled_width)}, found {tuple(pooled.shape)}."
            )
        for name, tensor in (("Embedding", embeddings), ("Pooled vector", pooled)):
            if tensor is None:
                continue
            if tensor.dtype not in floats:
                raise SanitizerError(f"{name}: expected float32, float16 or bfloat16, found {tensor.dtype}.")
            if not _is_finite(tensor):
                raise SanitizerError(f"{name}: found NaN or infinity, which cannot be sanitized. Check the encoder.")

    def _scored(
        self, x: Tensor, weight: Tensor, pooled: Tensor | None, batch: int, length: int
    ) -> tuple[Scores, Tensor, UsualSize | None]:
        """The scores, with the tokens' logits as the erase net is told them, and the windows at their usual size where
        some are not of it: the higher scores count."""
        (scores, tokens), provenance = self._scores(x, weight, pooled, batch, length), self.provenance
        usual = None if provenance is None else provenance.at_usual_size(x, weight, pooled, self.config.size_deviations)
        if usual is not None:
            again, tokens = self._scores(usual.x, weight, usual.pooled, batch, length)
            scores = Scores(*map(torch.maximum, scores, again))
        return scores, tokens, usual

    def _scores(
        self, x: Tensor, weight: Tensor, pooled: Tensor | None, batch: int, length: int
    ) -> tuple[Scores, Tensor]:
        """The scores, and the tokens' logits before calibration. The highest vote of any span is the prompt's score:
        harmless words around a phrase outvote nothing."""
        seen = self._evidence(x, weight, pooled, batch)
        votes = (seen.parts * self.vote_mix[:, :, None]).sum(dim=1) + self.vote_bias[:, None]
        many = seen.spans.clamp_min(1).float().log()[:, None]
        best = highest(votes.transpose(0, 1), seen.owner, batch) - self.vote_slope * many[:, None]
        token_logits = seen.tokens * self.token_scale + self.token_bias - self.token_slope * many[:, None]
        visible = weight.reshape(batch, -1)[:, :length, None] > 0
        token_logits = torch.where(visible, token_logits[:, :length], 0.0)
        # Of the logits, for the score of one that is minus infinity is 0.
        if not (_is_finite(votes) and _is_finite(best) and _is_finite(token_logits)):
            raise SanitizerError(
                "Scores: found NaN or infinity where the score net should give numbers. The sanitizer's file is "
                "damaged; train or fetch it again."
            )
        tokens = torch.where(visible, torch.sigmoid(token_logits), 0.0)
        return Scores(torch.sigmoid(best.amax(dim=1)), tokens), seen.tokens

    def evidence(self, embeddings: Tensor, mask: Tensor | None = None, pooled: Tensor | None = None) -> "Evidence":
        """What the score net says of every span of the encoder's own embeddings, before calibration. Arguments and
        errors as in :meth:`score`, trusted."""
        return self._evidence(*self._prepare(embeddings, mask, pooled, trusted=True), embeddings.shape[0])

    def _evidence(self, x: Tensor, weight: Tensor, pooled: Tensor | None, batch: int) -> "Evidence":
        rows, length = weight.shape
        windows = rows // batch
        row, place = spans(weight, self.config.score_span)
        inside = place < length
        place = place.clamp(max=length - 1)
        owner = row // windows
        part_weight = weight[row[:, None], place] * inside
        visible = (part_weight > 0).any(dim=1)
        counts = torch.zeros(batch, dtype=torch.long, device=x.device).index_add(0, owner, visible.long())
        # A window that only a longer prompt of the batch fills has no vote; of a prompt of nothing all have.
        kept = visible | (counts == 0)[owner]
        row, place, inside, owner, part_weight = (own[kept] for own in (row, place, inside, owner, part_weight))
        at = row[:, None]
        tokens, parts = self.score_net.parts(x[at, place], part_weight, None if pooled is None else pooled[row])
        # A token lies in up to two spans, and has the higher score of both.
        flat = highest(tokens[inside], (at * length + place)[inside], rows * length)
        return Evidence(parts, owner, counts, flat.reshape(batch, windows * length, -1))


class Evidence(NamedTuple):
    """S spans of B prompts, L token embeddings, K concepts; logits of the score net."""

    parts: Tensor
    """(3, S, K): of the prompt head, the strongest token and the linear probe."""
    owner: Tensor
    """(S,): the prompt that the span is of."""
    spans: Tensor
    """(B,): spans of each prompt that hold anything."""
    tokens: Tensor
    """(B, L, K)."""


def spans(weight: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Weights (R, L) of token embeddings, and how many are seen at once, 0 for all -> (S,) rows and (S, l) places of
    the spans, places beyond L among them. They overlap by half; each row has at least one, and none begins behind what
    the one before it has seen to the end."""
    rows, length = weight.shape
    if not size or length <= size:
        return torch.arange(rows, device=weight.device), torch.arange(length, device=weight.device).expand(rows, -1)
    step = size // 2
    places = torch.arange(length, device=weight.device)
    ends = torch.where(weight > 0, places + 1, 0).amax(dim=1)
    counts = ((ends + step - 1) // step - 1).clamp_min(1)
    row, number = (torch.arange(int(counts.max()), device=weight.device) < counts[:, None]).nonzero(as_tuple=True)
    return row, number[:, None] * step + torch.arange(size, device=weight.device)


def highest(values: Tensor, owner: Tensor, count: int) -> Tensor:
    """(S, …), (S,) -> (count, …): the highest value of each owner."""
    start = values.new_full((count, *values.shape[1:]), -math.inf)
    index = owner.reshape(-1, *[1] * (values.ndim - 1)).expand_as(values)
    return start.scatter_reduce(0, index, values, "amax")


def _is_finite(tensor: Tensor) -> bool:
    # A sum is much cheaper than a look at every value, and NaN and infinity survive it.
    return bool(torch.isfinite(tensor.sum(dtype=torch.float32))) or bool(torch.isfinite(tensor).all())


def _finite(what: str, values: Tensor) -> Tensor:
    """What goes out, in the dtype that goes out. Raises SanitizerError for NaN and infinity."""
    if not _is_finite(values):
        raise SanitizerError(
            f"Sanitized {what}: found NaN or infinity in {values.dtype}. The sanitizer's file is damaged, or the "
            "values do not fit the dtype: train or fetch it again, encode in float32 or bfloat16, or lower strength."
        )
    return values
