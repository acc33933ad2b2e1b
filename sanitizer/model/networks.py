"""The small networks of the sanitizer.

Shapes: B prompts, L token embeddings, D channels, P pooled channels, K concepts, W width.

They see token embeddings normalized channel by channel, and a weight for each: 0 for one that is masked, 1 for one that
stands for itself, n for a padding embedding that stands for n of its kind. Training keeps only a few of the padding,
and with the weights in the attention and in the mean it still computes what inference computes over all of it.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .config import SanitizerConfig
from .normalizer import probe_features


class Block(nn.Module):
    """A pre-norm transformer block whose keys carry weights."""

    def __init__(self, width: int, heads: int, operations) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = operations.LayerNorm(width)
        self.qkv = operations.Linear(width, 3 * width)
        self.out = operations.Linear(width, width)
        self.norm2 = operations.LayerNorm(width)
        self.up = operations.Linear(width, 2 * width)
        self.down = operations.Linear(2 * width, width)

    def forward(self, x: Tensor, log_weight: Tensor) -> Tensor:
        """x (B, L, W), log_weight (B, L) -> (B, L, W)."""
        batch, length, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        bias = log_weight[:, None, None, :].expand(batch, self.heads, length, length)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        x = x + self.out(attended.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Trunk(nn.Module):
    """Token embeddings and pooled vector -> one feature for each embedding and one for the prompt. Any number of
    embeddings, in any order."""

    def __init__(self, config: SanitizerConfig, width: int, blocks: int, operations) -> None:
        super().__init__()
        self.rows = operations.Linear(config.width, width)
        self.pooled = operations.Linear(config.pooled_width, width) if config.pooled_width else None
        self.prompt = nn.Parameter(torch.zeros(width))
        self.blocks = nn.ModuleList(Block(width, config.heads, operations) for _ in range(blocks))
        self.norm = operations.LayerNorm(width)

    def forward(self, x: Tensor, weight: Tensor, pooled: Tensor | None) -> tuple[Tensor, Tensor]:
        """x (B, L, D), weight (B, L), pooled (B, P) or None -> features (B, L, W) and (B, W)."""
        first = self.prompt.expand(x.shape[0], 1, -1)
        if self.pooled is not None:
            first = first + self.pooled(pooled)[:, None]
        h = torch.cat([first, self.rows(x)], dim=1)
        # The prompt's own place is always visible, so that no softmax is empty.
        log_weight = F.pad(weight.log(), (1, 0), value=0.0)
        for block in self.blocks:
            h = block(h, log_weight)
        h = self.norm(h)
        return h[:, 1:], h[:, 0]


class ScoreNet(nn.Module):
    """Harm of every token and of the prompt, as logits."""

    def __init__(self, config: SanitizerConfig, operations) -> None:
        super().__init__()
        width, count = config.score_width, len(config.concepts)
        self.trunk = Trunk(config, width, 1, operations)
        self.token_head = operations.Linear(width, count)
        self.prompt_head = operations.Linear(2 * width, count)
        self.probe = operations.Linear(2 * config.width + config.pooled_width, count)

    def forward(self, x: Tensor, weight: Tensor, pooled: Tensor | None) -> tuple[Tensor, Tensor]:
        """Token logits (B, L, K) and prompt logits (B, K) of the network; :meth:`probe_logits` are apart."""
        tokens, prompt = self.trunk(x, weight, pooled)
        total = weight.sum(dim=1, keepdim=True).clamp_min(1e-6)
        mean = (tokens * weight[..., None]).sum(dim=1) / total
        return self.token_head(tokens), self.prompt_head(torch.cat([prompt, mean], dim=-1))

    def parts(self, x: Tensor, weight: Tensor, pooled: Tensor | None) -> tuple[Tensor, Tensor]:
        """Token logits (B, L, K), and the ensemble of the prompt score (3, B, K): the logit of the prompt head, of the
        strongest token and of the linear probe."""
        tokens, prompt = self(x, weight, pooled)
        highest = tokens.masked_fill(weight[..., None] == 0, -math.inf).amax(dim=1).clamp_min(-1e4)
        return tokens, torch.stack([prompt, highest, self.probe_logits(x, weight, pooled)])

    def probe_logits(self, x: Tensor, weight: Tensor, pooled: Tensor | None) -> Tensor:
        """Logits (B, K) of a plain logistic regression on :func:`.normalizer.probe_features`."""
        return self.probe(probe_features(x, weight, pooled))


class EraseNet(nn.Module):
    """What the encoder would have said of the safe prompt.

    The embeddings are kept outside a subspace and written anew inside it: with an orthonormal basis U (R, D),
    f'(x) = x - (x Uᵀ) U + f(x) U. U spans the leading directions of the differences between target and anchor
    embeddings, so inside it nothing of the input passes unread, and outside it the content is untouched.

    Which of many safe anchors is meant cannot be known from the embedding, and what the net learns of it on training
    phrases carries over to new ones in part only. What all targets of a concept share does. So with an orthonormal
    basis V (C, D) of the directions that tell targets from anchors, and the gains g and r of the configuration
    (`concept_gain`, `residual_gain`), Erase(x) = x + g · d Vᵀ V + r · d (I - Vᵀ V) of the difference d = f'(x) - x:
    past the anchor where the concept lies, and a part of the way elsewhere. Without V, as in files from before it,
    Erase = f'.
    """

    basis: Tensor
    concept_basis: Tensor | None
    pooled_basis: Tensor | None
    pooled_concept_basis: Tensor | None

    def __init__(self, config: SanitizerConfig, operations) -> None:
        super().__init__()
        width, pooled = config.erase_width, config.pooled_width
        self.gains = config.concept_gain, config.residual_gain
        self.trunk = Trunk(config, width, config.erase_blocks, operations)
        self.head = operations.Linear(width, config.rank)
        self.register_buffer("basis", torch.zeros(config.rank, config.width))
        concepts = torch.zeros(config.concept_rank, config.width) if config.concept_rank else None
        self.register_buffer("concept_basis", concepts)
        self.pooled_head = operations.Linear(width, config.pooled_rank) if pooled else None
        self.register_buffer("pooled_basis", torch.zeros(config.pooled_rank, pooled) if pooled else None)
        concepts = torch.zeros(config.pooled_concept_rank, pooled) if config.pooled_concept_rank else None
        self.register_buffer("pooled_concept_basis", concepts)

    def forward(self, x: Tensor, weight: Tensor, pooled: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The correction Erase(x) - x to add: (B, L, D) and (B, P) or None, both in normalized units."""
        return self._written(
            x,
            weight,
            pooled,
            # Applied to the basis and not to every embedding, which would take three more passes over them.
            self._weighed(self.basis, self.concept_basis),
            None if self.pooled_basis is None else self._weighed(self.pooled_basis, self.pooled_concept_basis),
        )

    def predict(self, x: Tensor, weight: Tensor, pooled: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """f'(x) - x, shapes as in :meth:`forward`: what training fits to the anchors."""
        return self._written(x, weight, pooled, self.basis, self.pooled_basis)

    def _written(self, x, weight, pooled, basis, pooled_basis) -> tuple[Tensor, Tensor | None]:
        """What the heads say inside the subspaces, less what the input has there, along the given bases."""
        tokens, prompt = self.trunk(x, weight, pooled)
        change = (self.head(tokens) - x @ self.basis.T) @ basis
        if self.pooled_head is None or self.pooled_basis is None or pooled is None:
            return change, None
        return change, (self.pooled_head(prompt) - pooled @ self.pooled_basis.T) @ pooled_basis

    def _weighed(self, basis: Tensor, concepts: Tensor | None) -> Tensor:
        """The basis (R, D) with its part inside the concepts' directions (C, D) and its part outside in their gains."""
        if concepts is None:
            return basis
        inside, outside = self.gains
        return outside * basis + (inside - outside) * (basis @ concepts.T) @ concepts
