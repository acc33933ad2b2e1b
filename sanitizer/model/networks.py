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

    def __init__(self, config: SanitizerConfig, width: int, blocks: int, operations, extra: int = 0) -> None:
        """extra: channels that come with those of every embedding."""
        super().__init__()
        self.rows = operations.Linear(config.width + extra, width)
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


class GatedEraser(nn.Module):
    """What the encoder would have said of the safe prompt: of each channel of each embedding a share is kept and
    something is written, Erase(x) = keep · x + write, with keep from 0 to 1.

    It is told the scores of the tokens, so that it need not find out anew where the harm is. Every channel is written
    anew, for an image model reads what is left in any of them: see docs/pictures.md.
    """

    def __init__(self, config: SanitizerConfig, operations) -> None:
        super().__init__()
        width, pooled = config.erase_width, config.pooled_width
        self.trunk = Trunk(config, width, config.erase_blocks, operations, extra=len(config.concepts))
        self.keep, self.write = (operations.Linear(width, config.width) for _ in range(2))
        self.pooled_keep, self.pooled_write = (operations.Linear(width, pooled) if pooled else None for _ in range(2))

    def forward(self, x: Tensor, weight: Tensor, pooled: Tensor | None, scores: Tensor) -> tuple[Tensor, Tensor | None]:
        """The correction Erase(x) - x to add: (B, L, D) and (B, P) or None, both in normalized units. scores (B, L, K):
        of the tokens, from 0 to 1, before calibration."""
        tokens, prompt = self.trunk(torch.cat([x, scores], dim=-1), weight, pooled)
        change = self.write(tokens) - torch.sigmoid(-self.keep(tokens)) * x
        if self.pooled_keep is None or self.pooled_write is None or pooled is None:
            return change, None
        return change, self.pooled_write(prompt) - torch.sigmoid(-self.pooled_keep(prompt)) * pooled

    def start(self) -> None:
        """Begin training near to what changes nothing."""
        for keep, write in ((self.keep, self.write), (self.pooled_keep, self.pooled_write)):
            if keep is not None and write is not None:
                for part in (keep.weight, write.weight, write.bias):
                    nn.init.zeros_(part)
                nn.init.constant_(keep.bias, 3.0)


class SubspaceEraser(nn.Module):
    """The eraser of files up to format 3.

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

    def forward(self, x: Tensor, weight: Tensor, pooled: Tensor | None, scores: Tensor) -> tuple[Tensor, Tensor | None]:
        """As :meth:`GatedEraser.forward`, without regard to the scores."""
        tokens, prompt = self.trunk(x, weight, pooled)
        # The gains are applied to the basis and not to every embedding, which would take three more passes over them.
        change = (self.head(tokens) - x @ self.basis.T) @ self._weighed(self.basis, self.concept_basis)
        if self.pooled_head is None or self.pooled_basis is None or pooled is None:
            return change, None
        basis = self._weighed(self.pooled_basis, self.pooled_concept_basis)
        return change, (self.pooled_head(prompt) - pooled @ self.pooled_basis.T) @ basis

    def _weighed(self, basis: Tensor, concepts: Tensor | None) -> Tensor:
        """The basis (R, D) with its part inside the concepts' directions (C, D) and its part outside in their gains."""
        if concepts is None:
            return basis
        inside, outside = self.gains
        return outside * basis + (inside - outside) * (basis @ concepts.T) @ concepts
