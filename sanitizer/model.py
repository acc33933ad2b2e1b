"""The Embedding Sanitizer: rows of a frozen text encoder in, sanitized rows out.

Method: "Safe Text-to-Image Generation: Simply Sanitize the Prompt Embedding", arXiv 2411.10329. A score net gives
every token and the prompt a harm score per concept; an erase net says what the encoder would have put out for the safe
anchor prompt; and the output is

    Ĥ = H + strength · gate(scores) · (Erase(H) − H)

with the gate exactly 0 for a prompt in which no chosen concept reaches the threshold.

Shapes in this file: B prompts, L rows, D channels, P pooled channels, K concepts.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .config import ConceptSpec, SanitizerConfig
from .encoders.base import Fingerprint
from .errors import SanitizerError
from .networks import EraseNet, ScoreNet

THRESHOLD = 0.5
"""The calibrated operating point of every concept: the calibration puts it at this score."""
GATE_FLOOR = 0.8
"""The gate at the threshold itself; a flagged prompt is never changed by less than this share of the strength."""
GATE_FULL = 2.0
"""Logits above the threshold at which the gate is fully open."""
MAX_STRENGTH = 2.0
CLIP = 12.0
"""Normalised channels are clipped here, standard deviations, before the networks read them."""
CONSTANT_TOLERANCE = 0.02
"""Share of its norm by which a row may differ from a constant one, as it does in half precision."""

__all__ = ["THRESHOLD", "ConceptSpec", "EmbeddingSanitizer", "Sanitized", "SanitizerConfig", "Scores", "normalise"]


class Scores(NamedTuple):
    """Calibrated probabilities of harm; 0.5 is the operating point."""

    prompt: Tensor
    """(B, K) float32."""
    tokens: Tensor
    """(B, L, K) float32, 0 for masked rows."""


class Sanitized(NamedTuple):
    rows: Tensor
    """(B, L, D), dtype, device and shape of the input."""
    pooled: Tensor | None
    """(B, P) or None, likewise."""
    scores: Scores
    flagged: Tensor
    """(B,) bool: a chosen concept reached its threshold."""
    fired: Tensor
    """(B, K) bool: which ones."""
    changed: Tensor
    """(B, L) bool: rows that were rewritten."""


class EmbeddingSanitizer(nn.Module):
    """Score net, erase net and gate for one text encoder.

    `operations` supplies Linear and LayerNorm, torch.nn by default. Computes in float32 whatever comes in.
    `info` holds the file's header: encoder fingerprint, training settings, report, licence.
    """

    def __init__(self, config: SanitizerConfig, info: dict | None = None, operations=nn) -> None:
        super().__init__()
        self.config = config
        self.info = info or {}
        count, width, pooled = len(config.concepts), config.width, config.pooled_width
        self.score_net = ScoreNet(width, pooled, config.score_width, count, operations)
        ranks = (config.rank, config.concept_rank), (config.pooled_rank, config.pooled_concept_rank)
        self.erase_net = EraseNet(width, pooled, config.erase_width, config.erase_blocks, *ranks, operations)
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(width))
        self.register_buffer("pooled_mean", torch.zeros(pooled) if pooled else None)
        self.register_buffer("pooled_std", torch.ones(pooled) if pooled else None)
        self.register_buffer("constant", torch.zeros(config.constant_rows, width))
        # Prompt logit = mix · (net, highest token, probe) + bias; token logit = scale · net + bias.
        self.register_buffer("prompt_mix", torch.full((3, count), 1 / 3))
        self.register_buffer("prompt_bias", torch.zeros(count))
        self.register_buffer("token_scale", torch.ones(count))
        self.register_buffer("token_bias", torch.zeros(count))

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
        """Of the encoder it was trained on. Raises SanitizerError where the file names none."""
        try:
            return Fingerprint.from_dict(self.info["encoder"])
        except KeyError as error:
            raise SanitizerError("This sanitizer names no encoder. Train it again.") from error

    def score(self, rows: Tensor, mask: Tensor | None = None, pooled: Tensor | None = None) -> Scores:
        """Score every token and the prompt.

        rows (B, L, D) float32, float16 or bfloat16; mask (B, L) bool or None for all visible; pooled (B, P), required
        if and only if the encoder has one. Raises SanitizerError for other shapes, other dtypes and NaN or infinity.
        """
        x, weight, vector = self._prepare(rows, mask, pooled)
        return self._scores(x, weight, vector, rows.shape[0], rows.shape[1])

    def sanitize(
        self,
        rows: Tensor,
        mask: Tensor | None = None,
        pooled: Tensor | None = None,
        *,
        strength: float = 1.0,
        threshold: float | None = None,
        concepts: Iterable[str] | None = None,
        also: Tensor | None = None,
    ) -> Sanitized:
        """Rewrite the prompts in which a chosen concept reaches the threshold; leave all others bit for bit.

        strength from 0 (nothing happens) over 1 (the erased embedding) to 2 (past it). threshold from 0 to 1, None for
        the calibrated one. concepts: names out of :attr:`erasable`, None for all. also: (B, K) prompt scores known from
        another reading of the same text; the higher score counts, for gate and flag and in what is returned. Other
        arguments as in :meth:`score`, and the same errors.
        """
        chosen = self._choose(concepts)
        if not 0 <= strength <= MAX_STRENGTH:
            raise SanitizerError(f"Strength: expected a number from 0 to {MAX_STRENGTH:g}, found {strength}.")
        if threshold is not None and not 0 <= threshold <= 1:
            raise SanitizerError(f"Threshold: expected a number from 0 to 1, found {threshold}.")
        x, weight, vector = self._prepare(rows, mask, pooled)
        batch, length = rows.shape[:2]
        scores = self._scores(x, weight, vector, batch, length)
        if also is not None:
            scores = scores._replace(prompt=torch.maximum(scores.prompt, self._known(also, scores.prompt)))
        gate, fired = self._gate(scores.prompt, chosen, THRESHOLD if threshold is None else threshold)
        flagged = fired.any(dim=1)
        unchanged = torch.zeros(batch, length, dtype=torch.bool, device=rows.device)
        if strength == 0 or not flagged.any():
            return Sanitized(rows, pooled, scores, flagged, fired, unchanged)
        # Only flagged prompts are computed and written, so nothing else can change by a rounding error.
        index = flagged.nonzero().squeeze(1)
        windows = x.shape[0] // batch
        of_windows = (index[:, None] * windows + torch.arange(windows, device=index.device)).reshape(-1)
        v = None if vector is None else vector[of_windows]
        change, pooled_change = self.erase_net(x[of_windows], weight[of_windows], v)
        change = change.reshape(len(index), -1, self.width)[:, :length] * self.std
        writable = weight.reshape(batch, -1)[index, :length] > 0
        amount = (strength * gate[index])[:, None, None]
        target = rows.index_select(0, index.to(rows.device))
        edited = (target.to(x.device, torch.float32) + amount * change).to(rows.device, rows.dtype)
        keep = ~writable.to(rows.device)
        out = rows.clone()
        out[index.to(rows.device)] = torch.where(keep[..., None], target, edited)
        unchanged[index.to(rows.device)] = ~keep
        out_pooled = pooled
        if pooled_change is not None:
            first = pooled_change.reshape(len(index), windows, -1)[:, 0] * self.pooled_std
            old = pooled.index_select(0, index.to(pooled.device)).to(x.device, torch.float32)
            out_pooled = pooled.clone()
            out_pooled[index.to(pooled.device)] = (old + amount[:, 0] * first).to(pooled.device, pooled.dtype)
        return Sanitized(out, out_pooled, scores, flagged, fired, unchanged)

    forward = sanitize

    def _known(self, also: Tensor, prompt: Tensor) -> Tensor:
        """Scores from another reading, checked: NaN would win every comparison and fire none."""
        finite = bool(torch.isfinite(also).all())
        if also.shape != prompt.shape or not finite:
            raise SanitizerError(
                f"Scores of another reading: expected {tuple(prompt.shape)} finite numbers, "
                f"found {tuple(also.shape)}{'' if finite else ' with NaN or infinity'}."
            )
        return also.to(prompt)

    def _choose(self, concepts: Iterable[str] | None) -> list[int]:
        names = self.erasable if concepts is None else tuple(concepts)
        if isinstance(concepts, str) or not names:
            raise SanitizerError(f"Concepts: expected names out of {', '.join(self.erasable)}, found {concepts!r}.")
        for name in names:
            if name not in self.erasable:
                raise SanitizerError(
                    f"Concept {name!r}: this sanitizer knows {', '.join(self.erasable)}. "
                    "Choose among them or train one that knows it."
                )
        return [self.concepts.index(name) for name in names]

    def _prepare(
        self, rows: Tensor, mask: Tensor | None, pooled: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Check, normalise and split into windows: x (B·n, l, D), weight (B·n, l), pooled (B·n, P)."""
        self._check(rows, mask, pooled)
        device = self.mean.device
        raw = rows.to(device, torch.float32)
        weight = torch.ones(raw.shape[:2], device=device) if mask is None else mask.to(device, torch.float32)
        x = self.normalise(raw)
        weight = weight * ~self.is_constant(raw)
        vector = None if pooled is None else self.normalise_pooled(pooled.to(device, torch.float32))
        batch, length = weight.shape
        windows = max(1, math.ceil(length / self.config.window))
        if windows > 1:
            missing = windows * self.config.window - length
            x = nn.functional.pad(x, (0, 0, 0, missing)).reshape(batch * windows, self.config.window, -1)
            weight = nn.functional.pad(weight, (0, missing)).reshape(batch * windows, -1)
            vector = None if vector is None else vector.repeat_interleave(windows, dim=0)
        return x, weight, vector

    def normalise(self, rows: Tensor) -> Tensor:
        """Channel by channel to unit variance, clipped; a dead channel (std 0) becomes 0."""
        return normalise(rows, self.mean, self.std)

    def normalise_pooled(self, pooled: Tensor) -> Tensor:
        return normalise(pooled, self.pooled_mean, self.pooled_std)

    def is_constant(self, rows: Tensor) -> Tensor:
        """(…, D) -> (…) bool: a row that is zero or one of the encoder's constant rows, which carry no prompt."""
        found = rows.norm(dim=-1) == 0
        for reference in self.constant:
            found |= (rows - reference).norm(dim=-1) <= CONSTANT_TOLERANCE * reference.norm()
        return found

    def _check(self, rows: Tensor, mask: Tensor | None, pooled: Tensor | None) -> None:
        floats = (torch.float32, torch.float16, torch.bfloat16)
        if rows.ndim != 3 or rows.shape[2] != self.width or not rows.shape[0] or not rows.shape[1]:
            raise SanitizerError(
                f"Embedding: expected (prompts, rows, {self.width}), found {tuple(rows.shape)}. "
                "This sanitizer was trained on another text encoder; train or load one for this encoder."
            )
        if mask is not None and mask.shape != rows.shape[:2]:
            raise SanitizerError(f"Mask: expected {tuple(rows.shape[:2])}, found {tuple(mask.shape)}.")
        if (pooled is not None) != bool(self.pooled_width):
            expected = f"one of {self.pooled_width} channels" if self.pooled_width else "none"
            found = "none" if pooled is None else f"one of {pooled.shape[-1]} channels"
            raise SanitizerError(f"Pooled vector: expected {expected}, found {found}. Use the sanitizer's own encoder.")
        if pooled is not None and pooled.shape != (rows.shape[0], self.pooled_width):
            raise SanitizerError(
                f"Pooled vector: expected {(rows.shape[0], self.pooled_width)}, found {tuple(pooled.shape)}."
            )
        for name, tensor in (("Embedding", rows), ("Pooled vector", pooled)):
            if tensor is None:
                continue
            if tensor.dtype not in floats:
                raise SanitizerError(f"{name}: expected float32, float16 or bfloat16, found {tensor.dtype}.")
            # A sum is much cheaper than a look at every value, and NaN and infinity survive it.
            if not torch.isfinite(tensor.sum(dtype=torch.float32)) and not torch.isfinite(tensor).all():
                raise SanitizerError(f"{name}: found NaN or infinity, which cannot be sanitized. Check the encoder.")

    def _scores(self, x: Tensor, weight: Tensor, pooled: Tensor | None, batch: int, length: int) -> Scores:
        tokens, parts = self.score_net.parts(x, weight, pooled)
        logits = (parts * self.prompt_mix[:, None]).sum(dim=0) + self.prompt_bias
        visible = weight.reshape(batch, -1)[:, :length, None] > 0
        token_scores = torch.sigmoid(tokens * self.token_scale + self.token_bias)
        token_scores = token_scores.reshape(batch, -1, token_scores.shape[-1])[:, :length]
        return Scores(
            torch.sigmoid(logits).reshape(batch, -1, logits.shape[-1]).amax(dim=1),
            torch.where(visible, token_scores, 0.0),
        )

    def _gate(self, prompt: Tensor, chosen: list[int], threshold: float) -> tuple[Tensor, Tensor]:
        """prompt (B, K) -> gate (B,) in [0, 1] and fired (B, K)."""
        limit = torch.full_like(prompt, threshold).logit(eps=1e-6)
        for k, spec in enumerate(self.config.concepts):
            if spec.context:
                present = prompt[:, k] >= THRESHOLD
                for name, logits in spec.lowers.items():
                    if name in self.concepts:
                        limit[:, self.concepts.index(name)] -= logits * present
        above = prompt.logit(eps=1e-6) - limit
        selected = torch.zeros(prompt.shape[1], dtype=torch.bool, device=prompt.device)
        selected[chosen] = True
        fired = (above >= 0) & selected
        gate = (GATE_FLOOR + (1 - GATE_FLOOR) * above / GATE_FULL).clamp(0, 1)
        return (gate * fired).amax(dim=1), fired


def normalise(values: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    scale = torch.where(std > 0, 1 / std.clamp_min(1e-12), 0.0)
    return ((values - mean) * scale).clamp(-CLIP, CLIP)
