"""The loop that both nets are trained with."""

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from ..encoders.base import Progress
from .config import TrainingConfig


def optimise(
    parameters: Iterable[torch.nn.Parameter],
    steps: int,
    config: TrainingConfig,
    loss_of: Callable[[], Tensor],
    stage: str,
    progress: Progress,
) -> None:
    """AdamW with warm-up and cosine decay over `steps` calls of `loss_of`; progress hears of every tenth."""
    parameters = list(parameters)
    optimiser = torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=config.weight_decay)
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


def noisy(x: Tensor, amount: float) -> Tensor:
    """x plus normal noise of the given standard deviation."""
    return x + amount * torch.randn_like(x)


def weighted_mean(values: Tensor, weight: Tensor) -> Tensor:
    return (values * weight).sum() / weight.sum().clamp_min(1e-6)
