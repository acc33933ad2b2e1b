"""Training of the erase net on aligned rows of target and anchor. N prompts, D channels, P pooled channels."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from .encodings import Encodings, Progress
from .labels import Labels
from .model import EmbeddingSanitizer
from .networks import EraseNet, summary
from .optimisation import Settings, noisy, optimise, weighted_mean
from .pairs import Prompt

SAMPLED_ROWS = 40_000
SAMPLED_VALUES = 2**25
"""Limits of the rows that the directions are computed from; the second is for wide encoders' memory."""
RIDGE = 0.05
FISHER_PAIRS = 1500


class AlignedRows:
    """Pairs of target and anchor rows out of the training set."""

    def __init__(self, encodings: Encodings, labels: Labels, prompts: Sequence[Prompt]) -> None:
        self.encodings = encodings
        self.aligned = labels.aligned
        self.targets = sorted(labels.aligned)
        self._targets = torch.tensor(self.targets)
        self.anchor = {i: prompts[i].anchor for i in self.targets}

    def sample(self, among: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Rows of targets and the anchor rows that they align with: twice (limited, D)."""
        start, rows = self.encodings.start, self.encodings.rows
        limit = min(SAMPLED_ROWS, SAMPLED_VALUES // rows.shape[1])
        target, anchor, total = [], [], 0
        for i in among:
            own, others = self.aligned[i]
            target.append(rows[int(start[i]) + own].float())
            anchor.append(rows[int(start[self.anchor[i]]) + others].float())
            total += len(own)
            if total > limit:
                break
        return torch.cat(target), torch.cat(anchor)

    def summaries(self, among: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Mean and last rows of targets and of their anchors: twice (N, 2 D)."""
        width = 2 * self.encodings.rows.shape[1]
        index = [self.anchor[i] for i in among]
        return self.encodings.summaries(among)[:, :width], self.encodings.summaries(index)[:, :width]

    def pooled(self, among: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Pooled vectors of targets and of their anchors: twice (N, P)."""
        vectors = self.encodings.pooled
        return vectors[list(among)].float(), vectors[[self.anchor[i] for i in among]].float()

    def batch(self, size: int, identity: float, device) -> tuple:
        """Draw pairs. With probability `identity` an anchor takes its target's place, to be left as it is.

        Returns the inputs (x, weight, pooled), the anchors (x, weight, pooled), the anchor row for each input row
        (B, L) and whether there is one (B, L).
        """
        index = self.encodings.alike(self._targets, size)
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


def span(directions: Sequence[Tensor], rank: int) -> Tensor:
    """(rank, D) orthonormal: the leading directions of a few (D,), each counted alike; zeros where they are fewer."""
    found = torch.linalg.svd(F.normalize(torch.stack(list(directions)), dim=1), full_matrices=False).Vh[:rank]
    return F.pad(found, (0, 0, 0, rank - len(found)))


def fit_subspaces(net: EraseNet, pairs: AlignedRows, labels: Labels) -> tuple[Tensor, Tensor]:
    """Set the bases of the net. Returns the directions in which linear probes tell the targets of each concept C from
    their anchors: of rows (C, D) and of summaries (C, 2 D)."""
    net.basis.copy_(leading_directions(*pairs.sample(pairs.targets), net.basis.shape[0]))
    if net.pooled_basis is not None:
        net.pooled_basis.copy_(leading_directions(*pairs.pooled(pairs.targets), net.pooled_basis.shape[0]))
    width = net.basis.shape[1]
    of_rows, of_summaries, shared, of_pooled = [], [], [], []
    for k in range(labels.prompt.shape[1]):
        own = [i for i in pairs.targets if labels.prompt[i, k] > 0][:FISHER_PAIRS]
        if not own:
            continue
        rows, summaries = pairs.sample(own), pairs.summaries(own)
        of_rows.append(fisher_direction(*rows))
        of_summaries.append(fisher_direction(*summaries))
        apart = (summaries[0] - summaries[1]).mean(0)
        shared += [of_rows[-1], (rows[0] - rows[1]).mean(0)]
        shared += [of_summaries[-1][:width], of_summaries[-1][width:], apart[:width], apart[width:]]
        if net.pooled_basis is not None:
            target, anchor = pairs.pooled(own)
            of_pooled += [fisher_direction(target, anchor), (target - anchor).mean(0)]
    if net.concept_basis is not None:
        net.concept_basis.copy_(span(shared, net.concept_basis.shape[0]))
    if net.pooled_concept_basis is not None:
        net.pooled_concept_basis.copy_(span(of_pooled, net.pooled_concept_basis.shape[0]))
    return torch.stack(of_rows), torch.stack(of_summaries)


def train_eraser(
    sanitizer: EmbeddingSanitizer,
    encodings: Encodings,
    labels: Labels,
    prompts: Sequence[Prompt],
    settings: Settings,
    progress: Progress,
) -> None:
    """Fit the subspaces, then the net: squared error on aligned rows, on the summary, and along the directions in which
    linear probes tell the targets of a concept from their anchors, where a small error is a large part of the concept.
    """
    net, device = sanitizer.erase_net, sanitizer.mean.device
    pairs = AlignedRows(encodings, labels, prompts)
    row_directions, summary_directions = (found.T.to(device) for found in fit_subspaces(net, pairs, labels))

    def loss_of() -> Tensor:
        inputs, anchors, place, aligned = pairs.batch(settings.erase_batch, settings.identity, device)
        x, weight, pooled = inputs
        wanted, anchor_weight, wanted_pooled = anchors
        goal = wanted.gather(1, place[..., None].expand(-1, -1, x.shape[2]))
        vector = None if pooled is None else noisy(pooled, settings.noise)
        change, pooled_change = net.predict(noisy(x, settings.noise), weight, vector)
        error = x + change - goal
        row_weight = weight.clamp(max=2.0) * aligned
        loss = weighted_mean(error.square(), row_weight[..., None].expand_as(error))
        missed = summary(x + change, weight, None) - summary(wanted, anchor_weight, None)
        loss = loss + settings.summary_weight * missed.square().mean()
        along_rows = weighted_mean((error @ row_directions).square().mean(dim=-1), row_weight)
        along_summaries = (missed @ summary_directions).square().mean()
        loss = loss + settings.direction_weight * (along_rows + along_summaries)
        if pooled_change is not None:
            loss = loss + (pooled + pooled_change - wanted_pooled).square().mean()
        return loss

    optimise(net.parameters(), settings.erase_steps, settings, loss_of, "erase net", progress)
