"""Training of the erase net on aligned embeddings of target and anchor. N prompts, D channels, P pooled channels."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..encoders.base import Progress
from ..model.networks import GatedEraser
from ..model.normalizer import probe_features
from ..model.sanitizer import EmbeddingSanitizer
from ..prompts.generator import Prompt
from .config import TrainingConfig
from .dataset import EncodedDataset, Labels, alike
from .loop import noisy, optimise, weighted_mean

SAME = 1e-6
"""Mean variance of embeddings, as a share of what lies between the two sides' means, that is rounding and no spread."""


class AlignedPairs:
    """Pairs of target and anchor embeddings out of the training set."""

    def __init__(
        self, dataset: EncodedDataset, labels: Labels, prompts: Sequence[Prompt], config: TrainingConfig
    ) -> None:
        self.dataset, self.config = dataset, config
        self.aligned = labels.aligned
        self.targets = sorted(labels.aligned)
        self._targets = torch.tensor(self.targets)
        self.anchor = {i: a for i in self.targets if (a := prompts[i].anchor) is not None}

    def sample(self, among: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Embeddings of targets and those of the anchors that they align with: twice (limited, D)."""
        start, embeddings = self.dataset.start, self.dataset.embeddings
        limit = min(self.config.sampled_embeddings, self.config.sampled_values // embeddings.shape[1])
        target, anchor, total = [], [], 0
        for i in among:
            own, others = self.aligned[i]
            target.append(embeddings[int(start[i]) + own].float())
            anchor.append(embeddings[int(start[self.anchor[i]]) + others].float())
            total += len(own)
            if total > limit:
                break
        return torch.cat(target), torch.cat(anchor)

    def features(self, among: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Mean and last embeddings of targets and of their anchors: twice (N, 2 D)."""
        width = 2 * self.dataset.embeddings.shape[1]
        index = [self.anchor[i] for i in among]
        return self.dataset.features(among)[:, :width], self.dataset.features(index)[:, :width]

    def batch(self, size: int, identity: float, device) -> tuple:
        """Draw pairs. With probability `identity` an anchor takes its target's place, to be left as it is.

        Returns the inputs (x, weight, pooled), the anchors (x, weight, pooled), the anchor's place for each
        input embedding (B, L) and whether there is one (B, L).
        """
        index = alike(self.dataset.lengths, self._targets, size)
        anchors = [self.anchor[i] for i in index]
        sources = [a if torch.rand(()) < identity else i for i, a in zip(index, anchors, strict=True)]
        inputs = self.dataset.batch(sources, device)
        place = torch.full(inputs[0].shape[:2], -1)
        for b, (i, source) in enumerate(zip(index, sources, strict=True)):
            if source == i:
                own, others = self.aligned[i]
                place[b, own] = others
            else:
                length = int(self.dataset.start[source + 1] - self.dataset.start[source])
                place[b, :length] = torch.arange(length)
        return inputs, self.dataset.batch(anchors, device), place.clamp_min(0).to(device), (place >= 0).to(device)


def fisher_direction(target: Tensor, anchor: Tensor, ridge: float) -> Tensor:
    """(D,) Fisher's linear discriminant, scaled so that the two means lie 2 apart on it.

    Where each side is one embedding over and over, as with a single short pair, it is the difference of the means;
    where they do not differ either, it is zero.
    """
    centred = torch.cat([target - target.mean(0), anchor - anchor.mean(0)])
    covariance = centred.T @ centred / len(centred)
    variance = covariance.diagonal().mean()
    apart = target.mean(0) - anchor.mean(0)
    if variance > SAME * apart.square().mean():
        direction = torch.linalg.solve(covariance + ridge * variance * torch.eye(len(covariance)), apart)
    else:
        direction = apart
    length = direction @ apart
    return 2 * direction / length if length > 0 else torch.zeros_like(apart)


def telling_directions(pairs: AlignedPairs, labels: Labels) -> tuple[Tensor, Tensor]:
    """The directions in which linear probes tell the targets of each concept C from their anchors: of token embeddings
    (C, D) and of probe features (C, 2 D)."""
    of_tokens, of_features, ridge = [], [], pairs.config.ridge
    for k in range(labels.prompt.shape[1]):
        own = [i for i in pairs.targets if labels.prompt[i, k] > 0][: pairs.config.fisher_pairs]
        if own:
            of_tokens.append(fisher_direction(*pairs.sample(own), ridge))
            of_features.append(fisher_direction(*pairs.features(own), ridge))
    return torch.stack(of_tokens), torch.stack(of_features)


def train_eraser(
    sanitizer: EmbeddingSanitizer,
    dataset: EncodedDataset,
    labels: Labels,
    prompts: Sequence[Prompt],
    config: TrainingConfig,
    progress: Progress,
    begun: bool = False,
) -> None:
    """Squared error on aligned embeddings, on the probe features, and along the directions in which linear probes tell
    the targets of a concept from their anchors, where a small error is a large part of the concept. begun: the net was
    trained on a similar encoder."""
    net, device = sanitizer.erase_net, sanitizer.mean.device
    assert isinstance(net, GatedEraser)
    if not begun:
        net.start()
    pairs = AlignedPairs(dataset, labels, prompts, config)
    token_directions, feature_directions = (found.T.to(device) for found in telling_directions(pairs, labels))

    def loss_of() -> Tensor:
        inputs, anchors, place, aligned = pairs.batch(config.erase_batch, config.identity, device)
        x, weight, pooled = inputs
        wanted, anchor_weight, wanted_pooled = anchors
        goal = wanted.gather(1, place[..., None].expand(-1, -1, x.shape[2]))
        vector = None if pooled is None else noisy(pooled, config.noise)
        change, pooled_change = sanitizer.erased(noisy(x, config.noise), weight, vector)
        error = x + change - goal
        token_weight = weight.clamp(max=2.0) * aligned
        loss = weighted_mean(error.square(), token_weight[..., None].expand_as(error))
        missed = probe_features(x + change, weight, None) - probe_features(wanted, anchor_weight, None)
        loss = loss + config.feature_weight * missed.square().mean()
        along_tokens = weighted_mean((error @ token_directions).square().mean(dim=-1), token_weight)
        along_features = (missed @ feature_directions).square().mean()
        loss = loss + config.direction_weight * (along_tokens + along_features)
        if pooled is not None and pooled_change is not None:
            loss = loss + (pooled + pooled_change - wanted_pooled).square().mean()
        return loss

    optimise(net.parameters(), config.erase_steps, config, loss_of, "erase net", progress)
