"""Training of the erase net on aligned rows of target and anchor. N prompts, D channels, P pooled channels."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .encodings import Encodings, Progress
from .labels import Labels
from .model import EmbeddingSanitizer
from .networks import summary
from .optimisation import Settings, noisy, optimise, weighted_mean
from .pairs import Prompt

SAMPLED_ROWS = 40_000
RIDGE = 0.05


class AlignedRows:
    """Pairs of target and anchor rows out of the training set."""

    def __init__(self, encodings: Encodings, labels: Labels, prompts: Sequence[Prompt]) -> None:
        self.encodings = encodings
        self.aligned = labels.aligned
        self.targets = sorted(labels.aligned)
        self.anchor = {i: prompts[i].anchor for i in self.targets}

    def sample(self) -> tuple[Tensor, Tensor]:
        """Rows of targets and the anchor rows that they align with: twice (about SAMPLED_ROWS, D)."""
        start, rows = self.encodings.start, self.encodings.rows
        target, anchor, total = [], [], 0
        for i in self.targets:
            own, others = self.aligned[i]
            target.append(rows[int(start[i]) + own].float())
            anchor.append(rows[int(start[self.anchor[i]]) + others].float())
            total += len(own)
            if total > SAMPLED_ROWS:
                break
        return torch.cat(target), torch.cat(anchor)

    def pooled(self) -> tuple[Tensor, Tensor]:
        """Pooled vectors of targets and anchors: twice (N, P)."""
        vectors = self.encodings.pooled
        return vectors[self.targets].float(), vectors[[self.anchor[i] for i in self.targets]].float()

    def batch(self, size: int, identity: float, device) -> tuple:
        """Draw pairs. With probability `identity` an anchor takes its target's place, to be left as it is.

        Returns the inputs (x, weight, pooled), the anchors (x, weight, pooled), the anchor row for each input row
        (B, L) and whether there is one (B, L).
        """
        index = [self.targets[k] for k in torch.randint(len(self.targets), (size,)).tolist()]
        anchors = [self.anchor[i] for i in index]
        sources = [a if torch.rand(()) < identity else i for i, a in zip(index, anchors, strict=True)]
        inputs = self.encodings.batch(sources, device)
        place = torch.full(inputs[0].shape[:2], -1)
        for b, (i, source) in enumerate(zip(index, sources, strict=True)):
            if source == i:
                own, others = self.aligned[i]
                place[b, own] = others
            else:
                length = int(self.encodings.start[source + 1] - self.encodings.start[source])
                place[b, :length] = torch.arange(length)
        return inputs, self.encodings.batch(anchors, device), place.clamp_min(0).to(device), (place >= 0).to(device)


def leading_directions(target: Tensor, anchor: Tensor, rank: int) -> Tensor:
    """(rank, D) orthonormal: leading eigenvectors of the second moment of anchor - target."""
    difference = anchor - target
    _, vectors = torch.linalg.eigh(difference.T @ difference / len(difference))
    return vectors.flip(1)[:, :rank].T.contiguous()


def fisher_direction(target: Tensor, anchor: Tensor) -> Tensor:
    """(D,) Fisher's linear discriminant, scaled so that the two means lie 2 apart on it."""
    centred = torch.cat([target - target.mean(0), anchor - anchor.mean(0)])
    covariance = centred.T @ centred / len(centred)
    covariance += RIDGE * covariance.diagonal().mean() * torch.eye(len(covariance))
    apart = target.mean(0) - anchor.mean(0)
    direction = torch.linalg.solve(covariance, apart)
    return 2 * direction / (direction @ apart)


def train_eraser(
    sanitizer: EmbeddingSanitizer,
    encodings: Encodings,
    labels: Labels,
    prompts: Sequence[Prompt],
    settings: Settings,
    progress: Progress,
) -> None:
    """Fit the subspace, then the net: squared error on aligned rows, on the summary and along the direction in which a
    linear probe tells target from anchor, where a small error is a large part of the concept."""
    net, device = sanitizer.erase_net, sanitizer.mean.device
    pairs = AlignedRows(encodings, labels, prompts)
    target, anchor = pairs.sample()
    net.basis.copy_(leading_directions(target, anchor, net.basis.shape[0]))
    direction = fisher_direction(target, anchor).to(device)
    if net.pooled_basis is not None:
        net.pooled_basis.copy_(leading_directions(*pairs.pooled(), net.pooled_basis.shape[0]))

    def loss_of() -> Tensor:
        inputs, anchors, place, aligned = pairs.batch(settings.batch, settings.identity, device)
        x, weight, pooled = inputs
        wanted, anchor_weight, wanted_pooled = anchors
        goal = wanted.gather(1, place[..., None].expand(-1, -1, x.shape[2]))
        vector = None if pooled is None else noisy(pooled, settings.noise)
        change, pooled_change = net(noisy(x, settings.noise), weight, vector)
        error = x + change - goal
        row_weight = weight.clamp(max=2.0) * aligned
        loss = weighted_mean(error.square(), row_weight[..., None].expand_as(error))
        loss = loss + settings.direction_weight * weighted_mean((error @ direction).square(), row_weight)
        got, want = summary(x + change, weight, None), summary(wanted, anchor_weight, None)
        loss = loss + settings.summary_weight * (got - want).square().mean()
        if pooled_change is not None:
            loss = loss + (pooled + pooled_change - wanted_pooled).square().mean()
        return loss

    optimise(net.parameters(), settings.erase_steps, settings, loss_of, "erase net", progress)
