"""Training: a text encoder and concepts in, a sanitizer and its report out.

Two trunks, trained one after the other on the same encodings: the score net with token and prompt labels, and the
erase net on aligned rows of target and canonical anchor. Then the calibration, on harmless prompts that training did
not see. Deterministic for a seed on one machine.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from .alignment import align
from .concepts import Concept, load_concepts
from .encoders.base import TextEncoder
from .encodings import Encodings, Progress, encode_all
from .errors import SanitizerError
from .model import ConceptSpec, EmbeddingSanitizer, SanitizerConfig
from .networks import summary
from .probes import minimise_logistic
from .pairs import Prompt, PromptGenerator, full_size, training_prompts
from .report import Report, make_report
from .templates import Templates, load_templates

FEWEST_PROMPTS = 64
LICENCE = "CC-BY-4.0 for the trained weights, as for the concept files; the text encoder keeps its own licence"


@dataclass(frozen=True)
class Settings:
    """Numbers of the optimisation; the defaults are what the experiments settled on."""

    score_steps: int = 800
    erase_steps: int = 1200
    batch: int = 96
    learning_rate: float = 2e-3
    weight_decay: float = 0.02
    noise: float = 0.1
    """Standard deviations of noise on the input rows."""
    summary_weight: float = 0.3
    """Weight of the mean and last row in the erase loss."""
    identity: float = 0.15
    """Share of the erase net's batch that is an anchor, to be left as it is."""
    probe_decay: float = 1e-3
    false_alarms: float = 0.004
    """Share of the calibration's harmless prompts that may be touched, all concepts together."""


class Labels:
    """What is known of each training prompt. K concepts, N prompts, R kept rows."""

    def __init__(self, prompts: Sequence[Prompt], encodings: Encodings, concepts: Sequence[Concept]) -> None:
        names = [concept.name for concept in concepts]
        count = len(prompts)
        self.prompt = torch.zeros(count, len(names))
        self.known = torch.ones(count, len(names))
        self.token = torch.zeros(len(encodings.rows), dtype=torch.bool)
        """(R,): the row belongs to the phrase at fault."""
        self.token_known = torch.ones(count)
        self.aligned: dict[int, tuple[Tensor, Tensor]] = {}
        """Target prompt -> its kept rows (places within the prompt) and the anchor's kept rows that they align with."""
        erasable = {concept.name for concept in concepts if not concept.context}
        for i, prompt in enumerate(prompts):
            for name in prompt.concepts:
                self.prompt[i, names.index(name)] = 1
            for name in prompt.unknown:
                self.known[i, names.index(name)] = 0
            if prompt.anchor is None:
                continue
            # Which of two phrases a token belongs to is not known.
            self.token_known[i] = float(len(prompt.concepts) == 1)
            places, differs = align(encodings.tokens[i], encodings.tokens[prompt.anchor])
            kept = encodings.kept[i]
            first = int(encodings.start[i])
            self.token[first : first + len(kept)] = torch.tensor([differs[place] for place in kept])
            if erasable.issuperset(prompt.concepts):
                rows = _nearest(kept, places, encodings.kept[prompt.anchor])
                if rows:
                    self.aligned[i] = tuple(torch.tensor(side) for side in zip(*rows, strict=True))


def _nearest(kept: list[int], places: list[int], anchor_kept: list[int]) -> list[tuple[int, int]]:
    """(row of the target, row of the anchor) in kept rows, leaving out rows whose counterpart was not kept."""
    where = {place: row for row, place in enumerate(anchor_kept)}
    return [(row, where[places[place]]) for row, place in enumerate(kept) if places[place] in where]


def fit(
    encoder: TextEncoder,
    concepts: Sequence[Concept] | None = None,
    *,
    examples: int | None = None,
    steps: int | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    progress: Progress | None = None,
    templates: Templates | None = None,
    settings: Settings | None = None,
) -> tuple[EmbeddingSanitizer, Report]:
    """Train a sanitizer for an encoder.

    examples: number of training prompts, None for the full set (:func:`pairs.full_size`). steps: optimiser steps of
    both nets together, None for the default. device: where to train, None for the encoder's rows' own. progress is
    called often with (stage, done, total, values); what it raises interrupts the training, and nothing is written.

    Returns the sanitizer, in evaluation mode on the CPU, with its report in `info`, and the report.
    Raises SanitizerError for settings that cannot work and encoders that put out NaN.
    """
    began = time.monotonic()
    progress = progress or (lambda stage, done, total, values: None)
    concepts = load_concepts() if concepts is None else list(concepts)
    templates = templates or load_templates()
    settings = _with_steps(settings or Settings(), steps)
    count = full_size(concepts) if examples is None else examples
    if count < FEWEST_PROMPTS:
        raise SanitizerError(f"Examples: expected at least {FEWEST_PROMPTS}, found {count}.")
    # ComfyUI runs nodes under inference mode, whose tensors cannot be trained.
    with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng():
        torch.manual_seed(seed)
        prompts = training_prompts(concepts, templates, count, seed)
        encodings = encode_all(encoder, [prompt.text for prompt in prompts], progress)
        prompts = _whole_units(prompts, len(encodings))
        labels = Labels(prompts, encodings, concepts)
        sanitizer = _new_sanitizer(encoder, concepts, encodings, labels, prompts)
        sanitizer.to(device or "cpu").train()
        _train_scores(sanitizer, encodings, labels, settings, progress)
        _train_eraser(sanitizer, encodings, labels, prompts, settings, progress)
        sanitizer.cpu().eval().requires_grad_(False)
        _calibrate(sanitizer, encoder, concepts, templates, encodings, labels, settings, seed, progress)
    seconds = time.monotonic() - began
    report = make_report(sanitizer, encoder, concepts, templates, prompts, encodings, seed=seed, progress=progress)
    report.examples, report.seconds = len(prompts), seconds
    sanitizer.info |= {
        "encoder": encoder.fingerprint.to_dict(),
        "training": {"examples": len(prompts), "steps": settings.score_steps + settings.erase_steps, "seed": seed},
        "report": report.to_dict(),
        "licence": LICENCE,
    }
    return sanitizer, report


def _with_steps(settings: Settings, steps: int | None) -> Settings:
    if steps is None:
        return settings
    if steps < 2:
        raise SanitizerError(f"Steps: expected at least 2, found {steps}.")
    total = settings.score_steps + settings.erase_steps
    score = max(1, round(steps * settings.score_steps / total))
    return Settings(**{**settings.__dict__, "score_steps": score, "erase_steps": steps - score})


def _whole_units(prompts: list[Prompt], encoded: int) -> list[Prompt]:
    """The encoded part, its last targets cut off where their anchors were not encoded."""
    kept = prompts[:encoded]
    return [
        Prompt(p.text, p.concepts, p.unknown) if p.anchor is not None and p.anchor >= encoded else p for p in kept
    ]


def _new_sanitizer(encoder, concepts, encodings: Encodings, labels: Labels, prompts) -> EmbeddingSanitizer:
    fingerprint, normaliser = encoder.fingerprint, encodings.normaliser
    if not labels.aligned:
        raise SanitizerError("Training: expected pairs of target and anchor, found none. Give more examples.")
    width, pooled = fingerprint.width, fingerprint.pooled_width
    rank = min(width, 192)
    config = SanitizerConfig(
        concepts=tuple(ConceptSpec(c.name, c.context, dict(c.lowers)) for c in concepts),
        width=width,
        pooled_width=pooled,
        window=normaliser.window or 512,
        constant_rows=len(normaliser.constant),
        rank=rank,
        pooled_rank=min(pooled, 192),
    )
    sanitizer = EmbeddingSanitizer(config)
    sanitizer.mean.copy_(normaliser.mean)
    sanitizer.std.copy_(normaliser.std)
    sanitizer.constant.copy_(normaliser.constant)
    sanitizer.erase_net.basis.copy_(_basis(_row_differences(encodings, labels, prompts), rank))
    if pooled:
        sanitizer.pooled_mean.copy_(normaliser.pooled_mean)
        sanitizer.pooled_std.copy_(normaliser.pooled_std)
        index = list(labels.aligned)
        difference = encodings.pooled[[prompts[i].anchor for i in index]].float() - encodings.pooled[index].float()
        sanitizer.erase_net.pooled_basis.copy_(_basis(difference, config.pooled_rank))
    return sanitizer


def _row_differences(encodings: Encodings, labels: Labels, prompts, limit: int = 40_000) -> Tensor:
    differences, total = [], 0
    for i, (rows, anchor_rows) in labels.aligned.items():
        target = encodings.rows[int(encodings.start[i]) + rows].float()
        anchor = encodings.rows[int(encodings.start[prompts[i].anchor]) + anchor_rows].float()
        differences.append(anchor - target)
        total += len(rows)
        if total > limit:
            break
    return torch.cat(differences)


def _basis(differences: Tensor, rank: int) -> Tensor:
    """(rank, D) orthonormal: leading eigenvectors of the second moment of the differences."""
    _, vectors = torch.linalg.eigh(differences.T @ differences / len(differences))
    return vectors.flip(1)[:, :rank].T.contiguous()


def _optimise(parameters, steps: int, settings: Settings, loss_of, stage: str, progress: Progress) -> None:
    parameters = list(parameters)
    optimiser = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    warmup = max(1, steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser,
        lambda step: min(1.0, (step + 1) / warmup) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps))),
    )
    for step in range(steps):
        optimiser.zero_grad()
        loss = loss_of()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        schedule.step()
        if step % 10 == 0 or step == steps - 1:
            progress(stage, step + 1, steps, {"loss": float(loss.detach())})


def _train_scores(sanitizer, encodings: Encodings, labels: Labels, settings: Settings, progress: Progress) -> None:
    net, device = sanitizer.score_net, sanitizer.mean.device
    unsafe = labels.prompt.sum(dim=1) > 0
    groups = [group for group in (unsafe.nonzero().squeeze(1), (~unsafe).nonzero().squeeze(1)) if len(group)]

    def loss_of() -> Tensor:
        # Unsafe and harmless prompts in equal parts, though most of the set is harmless.
        index = torch.cat([g[torch.randint(len(g), (settings.batch // len(groups),))] for g in groups])
        x, weight, pooled = encodings.batch(index.tolist(), device)
        x, pooled = _noisy(x, settings.noise), None if pooled is None else _noisy(pooled, settings.noise)
        tokens, prompt = net(x, weight, pooled)
        target, known = labels.prompt[index].to(device), labels.known[index].to(device)
        prompt_loss = _mean(F.binary_cross_entropy_with_logits(prompt, target, reduction="none"), known)
        phrase = _token_labels(encodings, labels, index, x.shape[1]).to(device)
        token_known = (weight > 0)[..., None] * (known * labels.token_known[index, None].to(device))[:, None]
        token_target = phrase[..., None] * target[:, None]
        token_loss = F.binary_cross_entropy_with_logits(tokens, token_target, reduction="none")
        return prompt_loss + 4 * _mean(token_loss, token_known)

    _optimise(
        [*net.trunk.parameters(), *net.token_head.parameters(), *net.prompt_head.parameters()],
        settings.score_steps, settings, loss_of, "score net", progress,
    )
    _train_probe(sanitizer, encodings, labels, settings)


def _train_probe(sanitizer, encodings: Encodings, labels: Labels, settings: Settings) -> None:
    """Plain logistic regression on the summaries, to convergence."""
    device = sanitizer.mean.device
    weight, bias = minimise_logistic(
        summaries(encodings, device), labels.prompt.to(device), labels.known.to(device), settings.probe_decay
    )
    with torch.no_grad():
        sanitizer.score_net.probe.weight.copy_(weight)
        sanitizer.score_net.probe.bias.copy_(bias)


def summaries(encodings: Encodings, device="cpu") -> Tensor:
    """(N, 2 D + P)."""
    parts = []
    for first in range(0, len(encodings), 512):
        parts.append(summary(*encodings.batch(range(first, min(first + 512, len(encodings))), device)))
    return torch.cat(parts)


def _train_eraser(sanitizer, encodings: Encodings, labels: Labels, prompts, settings: Settings, progress) -> None:
    net, device = sanitizer.erase_net, sanitizer.mean.device
    targets = torch.tensor(sorted(labels.aligned))

    def loss_of() -> Tensor:
        index = targets[torch.randint(len(targets), (settings.batch,))].tolist()
        anchors = [prompts[i].anchor for i in index]
        # Now and then the anchor itself comes in, and is to come out as it is.
        sources = [a if torch.rand(()) < settings.identity else i for i, a in zip(index, anchors, strict=True)]
        x, weight, pooled = encodings.batch(sources, device)
        wanted, anchor_weight, wanted_pooled = encodings.batch(anchors, device)
        place = torch.full(x.shape[:2], -1)
        for b, (i, source) in enumerate(zip(index, sources, strict=True)):
            if source == i:
                rows, anchor_rows = labels.aligned[i]
                place[b, rows] = anchor_rows
            else:
                length = int(encodings.start[source + 1] - encodings.start[source])
                place[b, :length] = torch.arange(length)
        aligned = (place >= 0).to(device)
        goal = wanted.gather(1, place.clamp_min(0)[..., None].expand(-1, -1, x.shape[2]).to(device))
        change, pooled_change = net(
            _noisy(x, settings.noise), weight, None if pooled is None else _noisy(pooled, settings.noise)
        )
        out = x + change
        row_weight = weight.clamp(max=2.0) * aligned
        loss = _mean((out - goal).square(), row_weight[..., None].expand_as(out))
        got, want = summary(out, weight, None), summary(wanted, anchor_weight, None)
        loss = loss + settings.summary_weight * (got - want).square().mean()
        if pooled_change is not None:
            loss = loss + (pooled + pooled_change - wanted_pooled).square().mean()
        return loss

    _optimise(
        net.parameters(), settings.erase_steps, settings, loss_of, "erase net", progress
    )


def _calibrate(sanitizer, encoder, concepts, templates, encodings, labels, settings, seed, progress) -> None:
    """Mix the three prompt scores, and put the operating point of every concept at 0.5.

    The threshold of a concept is the score that a share of harmless prompts reaches, :attr:`Settings.false_alarms`
    divided by the number of concepts that can be erased; the slope is that of a logistic regression (Platt scaling).
    """
    generator = PromptGenerator(concepts, templates, seed, split="calibration")
    benign = encode_all(
        encoder, [generator.benign() for _ in range(2000)], progress, encodings.normaliser, stage="calibrate"
    )
    net = sanitizer.score_net
    with torch.no_grad():
        harmless, harmless_tokens = _logits(net, benign, range(len(benign)))
        trained, trained_tokens = _logits(net, encodings, range(0, len(encodings), max(1, len(encodings) // 6000)))
    index = torch.arange(0, len(encodings), max(1, len(encodings) // 6000))
    erasable = sum(not concept.context for concept in concepts)
    share = settings.false_alarms / erasable
    for k in range(len(concepts)):
        positive = labels.prompt[index, k] > 0
        # Each score in units of the distance between harmless and unsafe prompts, then their mean.
        low, high = harmless[:, :, k].mean(1), trained[:, positive, k].mean(1)
        scale = 1 / (high - low).clamp_min(1e-3)
        mix = scale / scale.new_tensor(len(scale))
        z, z_positive = mix @ harmless[:, :, k], mix @ trained[:, positive, k]
        sanitizer.prompt_mix[:, k], sanitizer.prompt_bias[k] = _operating_point(mix, z, z_positive, share)
        one = torch.ones(1)
        scale, bias = _operating_point(one, harmless_tokens[:, k], trained_tokens[positive, k], share)
        sanitizer.token_scale[k], sanitizer.token_bias[k] = scale[0], bias


def _operating_point(mix: Tensor, harmless: Tensor, unsafe: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Slope by logistic regression, offset by the quantile: the scaled mix and the bias."""
    z = torch.cat([harmless, unsafe])
    y = torch.cat([torch.zeros(len(harmless)), torch.ones(len(unsafe))])
    weight = torch.where(y > 0, 1 / max(1, len(unsafe)), 1 / len(harmless))
    parameters = torch.tensor([4.0, 0.0], requires_grad=True)
    optimiser = torch.optim.LBFGS([parameters], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        logit = parameters[0] * z + parameters[1]
        loss = (weight * F.binary_cross_entropy_with_logits(logit, y, reduction="none")).sum()
        loss = loss + 1e-4 * parameters.square().sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    slope = parameters[0].detach().clamp_min(1e-3)
    threshold = torch.quantile(harmless, 1 - share)
    return slope * mix, -slope * threshold


def _logits(net, encodings: Encodings, index: Sequence[int]) -> tuple[Tensor, Tensor]:
    """(3, N, K) of net, highest token and probe; and (N, K), the highest token alone."""
    parts = []
    index = list(index)
    for first in range(0, len(index), 256):
        x, weight, pooled = encodings.batch(index[first : first + 256])
        tokens, prompt = net(x, weight, pooled)
        highest = tokens.masked_fill(weight[..., None] == 0, -math.inf).amax(dim=1)
        parts.append(torch.stack([prompt, highest, net.probe_logits(x, weight, pooled)]))
    joined = torch.cat(parts, dim=1)
    return joined, joined[1]


def _token_labels(encodings: Encodings, labels: Labels, index: Tensor, length: int) -> Tensor:
    out = torch.zeros(len(index), length)
    for b, i in enumerate(index.tolist()):
        rows = labels.token[int(encodings.start[i]) : int(encodings.start[i + 1])]
        out[b, : len(rows)] = rows.float()
    return out


def _noisy(x: Tensor, amount: float) -> Tensor:
    return x + amount * torch.randn_like(x)


def _mean(values: Tensor, weight: Tensor) -> Tensor:
    return (values * weight).sum() / weight.sum().clamp_min(1e-6)
