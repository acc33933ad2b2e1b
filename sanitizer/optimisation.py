"""Settings and the loop that both nets are trained with."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from .encodings import Progress


@dataclass(frozen=True)
class Settings:
    """Numbers of the optimisation; the defaults are what the experiments settled on."""

    score_steps: int
    erase_steps: int
    batch: int = 96
    erase_batch: int = 48
    learning_rate: float = 2e-3
    weight_decay: float = 0.02
    noise: float = 0.1
    """Standard deviations of noise on the input rows."""
    dropout: float = 0.2
    """Share of the score net's input channels that are left out at random, prompt by prompt."""
    token_weight: float = 4.0
    """Weight of the token loss beside the prompt loss."""
    summary_weight: float = 0.3
    """Weight of the mean and last row in the erase loss."""
    direction_weight: float = 0.15
    """Weight of the error along the directions that tell targets from anchors."""
    identity: float = 0.15
    """Share of the erase net's batch that is an anchor, to be left as it is."""
    probe_decay: float = 1e-3
    token_false_alarms: float = 0.01
    """Share of harmless prompts with a word at or above 0.5, per concept: words are shown, prompts decide."""
    false_alarms: float = 0.012
    """Share of the calibration's harmless prompts that may be touched, all concepts together. A quarter of them are
    about the concepts' own topics, chosen to be hard: of captions and everyday prompts it is below 0.5 %."""

    @classmethod
    def for_examples(cls, count: int, steps: int | None = None) -> "Settings":
        """Steps that suit a number of training prompts, or `steps` in all, shared between the nets in that ratio."""
        score, erase = 1000 + count // 10, 900 + count // 35
        if steps is not None:
            score, erase = _share(steps, score, erase)
        return cls(score_steps=score, erase_steps=erase)


def _share(steps: int, score: int, erase: int) -> tuple[int, int]:
    first = max(1, round(steps * score / (score + erase)))
    return first, max(1, steps - first)


def optimise(
    parameters: Iterable[torch.nn.Parameter],
    steps: int,
    settings: Settings,
    loss_of: Callable[[], Tensor],
    stage: str,
    progress: Progress,
) -> None:
    """AdamW with warm-up and cosine decay over `steps` calls of `loss_of`; progress hears of every tenth."""
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


def noisy(x: Tensor, amount: float) -> Tensor:
    """x plus normal noise of the given standard deviation."""
    return x + amount * torch.randn_like(x)


def weighted_mean(values: Tensor, weight: Tensor) -> Tensor:
    return (values * weight).sum() / weight.sum().clamp_min(1e-6)
