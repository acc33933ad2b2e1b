"""Training of the score net: token and prompt labels, and a plain logistic regression beside them."""

import torch
from torch import Tensor
from torch.nn import functional as F

from .encodings import Encodings, Progress
from .labels import Labels, token_labels
from .model import EmbeddingSanitizer
from .optimisation import Settings, noisy, optimise, weighted_mean
from .probes import minimise_logistic


def train_scores(
    sanitizer: EmbeddingSanitizer, encodings: Encodings, labels: Labels, settings: Settings, progress: Progress
) -> None:
    """Binary cross-entropy of token and prompt logits, where the labels are known."""
    net, device = sanitizer.score_net, sanitizer.mean.device
    unsafe = labels.prompt.sum(dim=1) > 0
    groups = [group for group in (unsafe.nonzero().squeeze(1), (~unsafe).nonzero().squeeze(1)) if len(group)]

    def loss_of() -> Tensor:
        # Unsafe and harmless prompts in equal parts, whatever their parts of the set.
        index = torch.tensor([i for g in groups for i in encodings.alike(g, settings.batch // len(groups))])
        x, weight, pooled = encodings.batch(index.tolist(), device)
        # Left out of all rows of a prompt alike: of one row the others would still tell.
        kept = F.dropout(torch.ones(len(x), 1, x.shape[2], device=x.device), settings.dropout)
        x = noisy(x, settings.noise) * kept
        pooled = None if pooled is None else F.dropout(noisy(pooled, settings.noise), settings.dropout)
        tokens, prompt = net(x, weight, pooled)
        target, known = labels.prompt[index].to(device), labels.known[index].to(device)
        prompt_loss = weighted_mean(F.binary_cross_entropy_with_logits(prompt, target, reduction="none"), known)
        phrase = token_labels(encodings, labels, index, x.shape[1]).to(device)
        token_known = (weight > 0)[..., None] * (known * labels.token_known[index, None].to(device))[:, None]
        token_target = phrase[..., None] * target[:, None]
        token_loss = F.binary_cross_entropy_with_logits(tokens, token_target, reduction="none")
        return prompt_loss + settings.token_weight * weighted_mean(token_loss, token_known)

    optimise(
        [*net.trunk.parameters(), *net.token_head.parameters(), *net.prompt_head.parameters()],
        settings.score_steps,
        settings,
        loss_of,
        "score net",
        progress,
    )
    train_probe(sanitizer, encodings, labels, settings)


def train_probe(sanitizer: EmbeddingSanitizer, encodings: Encodings, labels: Labels, settings: Settings) -> None:
    """Plain logistic regression on the summaries, to convergence."""
    device = sanitizer.mean.device
    weight, bias = minimise_logistic(
        encodings.summaries(device=device), labels.prompt.to(device), labels.known.to(device), settings.probe_decay
    )
    with torch.no_grad():
        sanitizer.score_net.probe.weight.copy_(weight)
        sanitizer.score_net.probe.bias.copy_(bias)
