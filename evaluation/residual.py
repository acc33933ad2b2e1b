"""What is left of a concept: probes on prompt vectors. B prompts, L rows, D channels, P pooled, F = 2 D + P.

The prompt vector is what the sanitizer's own reports use: the mean row, the last visible row and the pooled vector,
each channel brought to unit variance over raw prompts. Every encoder's normalisation is measured here anew, from raw
prompts, and not taken from the sanitizer.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sanitizer.encoders import Encoding
from sanitizer.model.networks import summary
from sanitizer.model.sanitizer import CONSTANT_TOLERANCE, normalise
from sanitizer.training.dataset import Normalizer, measure
from sanitizer.training.probes import Probe

HIDDEN = 64
EPOCHS = 15
MLP_BATCH = 128
RATE, DECAY, DROPOUT = 2e-3, 0.05, 0.3


class PromptVectors:
    """Rows -> one vector a prompt, normalised by the statistics of raw prompts."""

    def __init__(self, normalizer: Normalizer) -> None:
        self.normalizer = normalizer

    @classmethod
    def measured(cls, encodings: Sequence[Encoding]) -> "PromptVectors":
        """From a few batches of raw prompts of all kinds."""
        return cls(measure(encodings))

    @property
    def width(self) -> int:
        """Channels of the mean row, which comes first in the vector."""
        return len(self.normalizer.mean)

    def __call__(self, rows: Tensor, mask: Tensor, pooled: Tensor | None) -> Tensor:
        """(B, L, D), (B, L) bool, (B, P) or None -> (B, F) float32 on the CPU. Constant rows carry no prompt."""
        n = self.normalizer
        rows = rows.detach().to("cpu", torch.float32)
        weight = mask.cpu().float() * ~self._constant(rows)
        vector = None
        if pooled is not None:
            vector = normalise(pooled.detach().to("cpu", torch.float32), n.pooled_mean, n.pooled_std)
        return summary(normalise(rows, n.mean, n.std), weight, vector)

    def _constant(self, rows: Tensor) -> Tensor:
        found = rows.norm(dim=-1) == 0
        for reference in self.normalizer.constant:
            found |= (rows - reference).norm(dim=-1) <= CONSTANT_TOLERANCE * reference.norm()
        return found


@dataclass(frozen=True)
class MlpProbe:
    """One hidden layer on standardised features. Called on (N, F) it gives logits (N,)."""

    net: nn.Sequential
    mean: Tensor
    scale: Tensor

    @classmethod
    def fit(cls, x: Tensor, y: Tensor, seed: int = 0) -> "MlpProbe":
        """x (N, F), y (N,) of 0 and 1, both classes given equal weight; AdamW, dropout. Leaves torch's state alone."""
        middle, scale = x.mean(0), 1 / x.std(0).clamp_min(1e-6)
        x = ((x - middle) * scale).clone()
        weight = torch.where(y > 0, len(y) / (2 * y.sum().clamp_min(1)), len(y) / (2 * (1 - y).sum().clamp_min(1)))
        with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad():
            torch.manual_seed(seed)
            net = nn.Sequential(nn.Linear(x.shape[1], HIDDEN), nn.GELU(), nn.Dropout(DROPOUT), nn.Linear(HIDDEN, 1))
            optimiser = torch.optim.AdamW(net.parameters(), lr=RATE, weight_decay=DECAY)
            for _ in range(EPOCHS):
                for index in torch.randperm(len(x)).split(MLP_BATCH):
                    logits = net(x[index]).squeeze(1)
                    loss = F.binary_cross_entropy_with_logits(logits, y[index], weight=weight[index])
                    optimiser.zero_grad()
                    loss.backward()
                    optimiser.step()
        return cls(net.eval().requires_grad_(False), middle, scale)

    def __call__(self, x: Tensor) -> Tensor:
        return self.net((x - self.mean) * self.scale).squeeze(1)


@dataclass(frozen=True)
class ConceptProbes:
    """A linear and an MLP probe for one concept, and the prompts that they were trained on."""

    linear: Probe
    mlp: MlpProbe
    reference: Tensor
    """(R, F) training vectors, among which nearest neighbours are looked for."""
    labels: Tensor
    """(R,) bool: unsafe."""

    @classmethod
    def fit(cls, unsafe: Tensor, safe: Tensor, benign: Tensor, seed: int = 0) -> "ConceptProbes":
        """unsafe and safe twins (N, F), benign (M, F): twins of the same scene keep the probes from learning topics."""
        x = torch.cat([unsafe, safe, benign]).float()
        y = torch.zeros(len(x))
        y[: len(unsafe)] = 1.0
        return cls(Probe.fit(x, y), MlpProbe.fit(x, y, seed), x, y > 0)

    def found(self, x: Tensor) -> dict[str, Tensor]:
        """(N, F) -> probe's name -> (N,) bool: it says that the concept is there."""
        x = x.float()
        return {"linear": self.linear(x) > 0, "mlp": self.mlp(x) > 0}
