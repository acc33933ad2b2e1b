"""Linear probes and the curves behind detection figures: pure functions of tensors."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Probe:
    """Logistic regression on standardised features. Called on (N, F) it gives logits (N,)."""

    weight: Tensor
    bias: Tensor
    mean: Tensor
    scale: Tensor

    @classmethod
    def fit(cls, x: Tensor, y: Tensor, decay: float = 1e-2) -> "Probe":
        """x (N, F), y (N,) of 0 and 1, both classes given equal weight; L-BFGS to convergence."""
        mean, scale = x.mean(0), 1 / x.std(0).clamp_min(1e-6)
        weight, bias = minimise_logistic((x - mean) * scale, y[:, None], decay=decay)
        return cls(weight[0], bias, mean, scale)

    def __call__(self, x: Tensor) -> Tensor:
        return (x - self.mean) * self.scale @ self.weight + self.bias


def minimise_logistic(x: Tensor, y: Tensor, known: Tensor | None = None, decay: float = 1e-3) -> tuple[Tensor, Tensor]:
    """K independent logistic regressions: x (N, F), y (N, K), known (N, K) or None -> weight (K, F), bias (K,).

    Both classes of a concept weigh the same, but no example more than eight times another.
    """
    known = torch.ones_like(y) if known is None else known
    balance = known * torch.where(y > 0, ((1 - y).sum(0) / y.sum(0).clamp_min(1)).clamp(1.0, 8.0), 1.0)
    with torch.inference_mode(False), torch.enable_grad():
        x, y, balance = x.clone(), y.clone(), balance.clone()
        weight = torch.zeros(y.shape[1], x.shape[1], device=x.device, requires_grad=True)
        bias = torch.zeros(y.shape[1], device=x.device, requires_grad=True)
        optimiser = torch.optim.LBFGS([weight, bias], max_iter=150, history_size=10, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            optimiser.zero_grad()
            losses = F.binary_cross_entropy_with_logits(x @ weight.T + bias, y, reduction="none")
            loss = ((losses * balance).sum(0) / balance.sum(0).clamp_min(1)).sum()
            loss = loss + decay * weight.square().sum()
            loss.backward()
            return loss

        optimiser.step(closure)
    return weight.detach(), bias.detach()


def area_under_curve(positive: Tensor, negative: Tensor) -> float:
    """AUROC, ties counted half: the chance that a positive scores above a negative."""
    ordered, positive = negative.sort().values, positive.contiguous()
    below = torch.searchsorted(ordered, positive, right=False)
    upto = torch.searchsorted(ordered, positive, right=True)
    return float((below + upto).double().mean() / (2 * len(negative)))


def true_positive_rate(positive: Tensor, negative: Tensor, false_positive_rate: float) -> float:
    """Share of positives above the score that a share `false_positive_rate` of the negatives exceeds."""
    allowed = int(false_positive_rate * len(negative))
    threshold = negative.sort(descending=True).values[allowed]
    return float((positive > threshold).double().mean())
