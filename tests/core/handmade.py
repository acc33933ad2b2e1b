"""A sanitizer whose weights are set by hand, in no time: a word fires it, and only that word's rows score.

What the command line does with a sanitizer does not depend on how it was trained. The fixture `handmade` gives the
function.
"""

import torch

from sanitizer.model.config import ConceptSpec, SanitizerConfig
from sanitizer.model.header import Header
from sanitizer.model.sanitizer import EmbeddingSanitizer

WORD = "crimson"


@torch.no_grad()
def handmade(encoder, concept: str = "redness") -> EmbeddingSanitizer:
    """A sanitizer for the encoder, with the concept and the context concept `youth`, which never fires."""
    fingerprint = encoder.fingerprint
    width, pooled = fingerprint.width, fingerprint.pooled_width
    names = (ConceptSpec(concept), ConceptSpec("youth", context=True, lowers={concept: 1.0}))
    config = SanitizerConfig(concepts=names, width=width, pooled_width=pooled, gated=True)
    torch.manual_seed(0)
    sanitizer = EmbeddingSanitizer(config)
    # Rows of the word against rows of other words, in the same sentences.
    frames = ["a photo of a {} dress", "{} light", "an old {} door in the garden"]
    encoding = encoder.encode([frame.format(WORD) for frame in frames])
    hit = torch.tensor([[token.strip("▁Ġ").lower().startswith("crims") for token in own] for own in encoding.tokens])
    text = torch.tensor([[bool(token) for token in own] for own in encoding.tokens])
    high, low = encoding.embeddings[hit].float(), encoding.embeddings[text & ~hit].float()
    direction = torch.nn.functional.normalize(high.mean(0) - low.mean(0), dim=0)
    edge = ((high @ direction).min() + (low @ direction).max()) / 2
    net = sanitizer.score_net
    for block in net.trunk.blocks:
        for layer in (block.out, block.down):
            layer.weight.zero_()
            layer.bias.zero_()
    net.trunk.rows.weight.zero_()
    net.trunk.rows.bias.zero_()
    # Channel 0 says on which side of the edge a row lies; the layer norm behind it makes that about ±10.
    net.trunk.rows.weight[0], net.trunk.rows.bias[0] = direction, -edge
    net.token_head.weight.zero_()
    net.token_head.bias.copy_(torch.tensor([0.0, -9.0]))
    net.token_head.weight[0, 0] = 0.5
    # The prompt's score is its highest token's.
    sanitizer.vote_mix.copy_(torch.tensor([0.0, 1.0, 0.0])[:, None])
    # Figures that nobody measured: the commands warn of a sanitizer without any.
    report = {"concepts": [{"name": concept, "phrases": 50, "auroc": 0.99, "flagged": 0.9}]}
    sanitizer.header = Header(fingerprint, {"examples": 3, "steps": 0, "seed": 0}, report, "CC0-1.0")
    return sanitizer.eval().requires_grad_(False)
