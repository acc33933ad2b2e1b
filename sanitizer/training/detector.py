"""Training of the score net: token and prompt labels, and a plain logistic regression beside them."""

import torch
from torch import Tensor
from torch.nn import functional as F

from ..encoders.base import Progress
from ..model.normalizer import probe_features
from ..model.sanitizer import EmbeddingSanitizer
from .config import TrainingConfig
from .dataset import READ, Spans, alike
from .loop import noisy, optimise, weighted_mean
from .probes import minimise_logistic


def train_detector(sanitizer: EmbeddingSanitizer, spans: Spans, config: TrainingConfig, progress: Progress) -> None:
    """Binary cross-entropy of token and prompt logits, where the labels are known."""
    net, device = sanitizer.score_net, sanitizer.mean.device
    unsafe, lengths = spans.labels.sum(dim=1) > 0, spans.lengths
    groups = [group for group in (unsafe.nonzero().squeeze(1), (~unsafe).nonzero().squeeze(1)) if len(group)]

    def loss_of() -> Tensor:
        # Unsafe and harmless spans in equal parts, whatever their parts of the set.
        index = torch.tensor([i for g in groups for i in alike(lengths, g, config.batch // len(groups))])
        own = spans.draw(index, config, device)
        # Left out of all tokens of a prompt alike: of one the others would still tell.
        kept = F.dropout(torch.ones(len(own.x), 1, own.x.shape[2], device=own.x.device), config.dropout)
        x = noisy(own.x, config.noise) * kept
        pooled = None if own.pooled is None else F.dropout(noisy(own.pooled, config.noise), config.dropout)
        tokens, prompt = net(x, own.weight, pooled)
        prompt_loss = weighted_mean(F.binary_cross_entropy_with_logits(prompt, own.labels, reduction="none"), own.known)
        token_known = (own.weight > 0)[..., None] * (own.known * own.token_known[:, None])[:, None]
        token_target = own.phrase[..., None] * own.labels[:, None]
        token_loss = F.binary_cross_entropy_with_logits(tokens, token_target, reduction="none")
        return prompt_loss + config.token_weight * weighted_mean(token_loss, token_known)

    optimise(
        [*net.trunk.parameters(), *net.token_head.parameters(), *net.prompt_head.parameters()],
        config.score_steps,
        config,
        loss_of,
        "score net",
        progress,
    )
    train_probe(sanitizer, spans, config)


def train_probe(sanitizer: EmbeddingSanitizer, spans: Spans, config: TrainingConfig) -> None:
    """Plain logistic regression on the probe features, to convergence."""
    device = sanitizer.mean.device
    features = torch.cat(
        [probe_features(*spans.batch(index, device)) for index in torch.arange(len(spans)).split(READ)]
    )
    weight, bias = minimise_logistic(features, spans.labels.to(device), spans.known.to(device), config.probe_decay)
    with torch.no_grad():
        sanitizer.score_net.probe.weight.copy_(weight)
        sanitizer.score_net.probe.bias.copy_(bias)
