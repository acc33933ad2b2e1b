"""The small networks of the sanitizer. Shapes: B prompts, L rows, D channels, P pooled channels, K concepts, W width.

They see rows normalised channel by channel, and a weight per row: 0 for a row that is masked, 1 for a row that stands
for itself, n for a padding row that stands for n of its kind. Training keeps only a few padding rows, and with the
weights in the attention and in the mean it still computes what inference computes over all of them.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

HEADS = 4
INSIDE, OUTSIDE = 1.2, 0.35
"""Shares of the predicted change that the erase net writes inside and outside the concepts' own directions."""


class Block(nn.Module):
    """A pre-norm transformer block whose keys carry weights."""

    def __init__(self, width: int, operations) -> None:
        super().__init__()
        self.norm1 = operations.LayerNorm(width)
        self.qkv = operations.Linear(width, 3 * width)
        self.out = operations.Linear(width, width)
        self.norm2 = operations.LayerNorm(width)
        self.up = operations.Linear(width, 2 * width)
        self.down = operations.Linear(2 * width, width)

    def forward(self, x: Tensor, log_weight: Tensor) -> Tensor:
        """x (B, L, W), log_weight (B, L) -> (B, L, W)."""
        batch, length, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(batch, length, 3, HEADS, width // HEADS).permute(2, 0, 3, 1, 4)
        bias = log_weight[:, None, None, :].expand(batch, HEADS, length, length)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        x = x + self.out(attended.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Trunk(nn.Module):
    """Rows and pooled vector -> one feature per row and one for the prompt. Any number of rows, in any order."""

    def __init__(self, in_width: int, pooled_width: int, width: int, blocks: int, operations) -> None:
        super().__init__()
        self.rows = operations.Linear(in_width, width)
        self.pooled = operations.Linear(pooled_width, width) if pooled_width else None
        self.prompt = nn.Parameter(torch.zeros(width))
        self.blocks = nn.ModuleList(Block(width, operations) for _ in range(blocks))
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


def summary(x: Tensor, weight: Tensor, pooled: Tensor | None) -> Tensor:
    """Mean row, last visible row and pooled vector, joined: (B, 2 D + P). What a linear probe reads."""
    total = weight.sum(dim=1, keepdim=True).clamp_min(1e-6)
    mean = (x * weight[..., None]).sum(dim=1) / total
    places = torch.arange(x.shape[1], device=x.device)
    last = torch.where(weight > 0, places, 0).amax(dim=1) if x.shape[1] else places.new_zeros(x.shape[0])
    parts = [mean, x[torch.arange(x.shape[0], device=x.device), last]]
    return torch.cat(parts if pooled is None else [*parts, pooled], dim=-1)


class ScoreNet(nn.Module):
    """Harm of every row and of the prompt, as logits."""

    def __init__(self, in_width: int, pooled_width: int, width: int, concepts: int, operations) -> None:
        super().__init__()
        self.trunk = Trunk(in_width, pooled_width, width, 1, operations)
        self.token_head = operations.Linear(width, concepts)
        self.prompt_head = operations.Linear(2 * width, concepts)
        self.probe = operations.Linear(2 * in_width + pooled_width, concepts)

    def forward(self, x: Tensor, weight: Tensor, pooled: Tensor | None) -> tuple[Tensor, Tensor]:
        """Token logits (B, L, K) and prompt logits (B, K) of the network; :meth:`probe_logits` are apart."""
        rows, prompt = self.trunk(x, weight, pooled)
        total = weight.sum(dim=1, keepdim=True).clamp_min(1e-6)
        mean = (rows * weight[..., None]).sum(dim=1) / total
        return self.token_head(rows), self.prompt_head(torch.cat([prompt, mean], dim=-1))

    def parts(self, x: Tensor, weight: Tensor, pooled: Tensor | None) -> tuple[Tensor, Tensor]:
        """Token logits (B, L, K), and what the prompt score is mixed from (3, B, K): the net's prompt logit, its
        highest token logit and the probe's."""
        tokens, prompt = self(x, weight, pooled)
        highest = tokens.masked_fill(weight[..., None] == 0, -math.inf).amax(dim=1).clamp_min(-1e4)
        return tokens, torch.stack([prompt, highest, self.probe_logits(x, weight, pooled)])

    def probe_logits(self, x: Tensor, weight: Tensor, pooled: Tensor | None) -> Tensor:
        """Logits (B, K) of a plain logistic regression on :func:`summary`."""
        return self.probe(summary(x, weight, pooled))


class EraseNet(nn.Module):
    """What the encoder would have said of the safe anchor prompt.

    The rows are kept outside a subspace and written anew inside it: with an orthonormal basis U (R, D),
    f'(x) = x - (x Uᵀ) U + f(x) U. U spans the leading directions of the differences between target and anchor
    rows, so inside it nothing of the input passes unread, and outside it the content is untouched.

    Which of many safe anchors is meant cannot be known from the row, and what the net learns of it on training phrases
    carries over to new ones in part only. What all targets of a concept share does. So with an orthonormal basis V
    (C, D) of the directions that tell targets from anchors, Erase(x) = x + INSIDE · d Vᵀ V + OUTSIDE · d (I - Vᵀ V) of
    the difference d = f'(x) - x: past the anchor where the concept lies, and a part of the way elsewhere. Without V,
    as in files from before it, Erase = f'.
    """

    def __init__(
        self,
        in_width: int,
        pooled_width: int,
        width: int,
        blocks: int,
        ranks: tuple[int, int],
        pooled_ranks: tuple[int, int],
        operations,
    ) -> None:
        """ranks: R and C of the rows, pooled_ranks of the pooled vector; C may be 0."""
        super().__init__()
        self.trunk = Trunk(in_width, pooled_width, width, blocks, operations)
        self.head = operations.Linear(width, ranks[0])
        self.register_buffer("basis", torch.zeros(ranks[0], in_width))
        self.register_buffer("concept_basis", torch.zeros(ranks[1], in_width) if ranks[1] else None)
        self.pooled_head = operations.Linear(width, pooled_ranks[0]) if pooled_width else None
        self.register_buffer("pooled_basis", torch.zeros(pooled_ranks[0], pooled_width) if pooled_width else None)
        pooled_concepts = torch.zeros(pooled_ranks[1], pooled_width) if pooled_ranks[1] else None
        self.register_buffer("pooled_concept_basis", pooled_concepts)

    def forward(self, x: Tensor, weight: Tensor, pooled: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The correction Erase(x) - x to add: (B, L, D) and (B, P) or None, both in normalised units."""
        return self._written(
            x,
            weight,
            pooled,
            # Applied to the basis and not to every row, which would take three more passes over the rows.
            _weighed(self.basis, self.concept_basis),
            None if self.pooled_basis is None else _weighed(self.pooled_basis, self.pooled_concept_basis),
        )

    def predict(self, x: Tensor, weight: Tensor, pooled: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """f'(x) - x, shapes as in :meth:`forward`: what training fits to the anchors."""
        return self._written(x, weight, pooled, self.basis, self.pooled_basis)

    def _written(self, x, weight, pooled, basis, pooled_basis) -> tuple[Tensor, Tensor | None]:
        """What the heads say inside the subspaces less what the input has there, along the rows of the given bases."""
        rows, prompt = self.trunk(x, weight, pooled)
        change = (self.head(rows) - x @ self.basis.T) @ basis
        if self.pooled_head is None:
            return change, None
        return change, (self.pooled_head(prompt) - pooled @ self.pooled_basis.T) @ pooled_basis


def _weighed(basis: Tensor, concepts: Tensor | None) -> Tensor:
    """The basis (R, D) with its part inside the concepts' directions (C, D) and its part outside in their shares."""
    if concepts is None:
        return basis
    return OUTSIDE * basis + (INSIDE - OUTSIDE) * (basis @ concepts.T) @ concepts
