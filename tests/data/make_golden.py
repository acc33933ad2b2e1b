"""Wrote golden_v4*.safetensors, once; those of earlier versions came from the same lines before these versions of the
format, with the subspace eraser and its bases, and up to version 2 without spans and provenance.

Kept to show what is in them; a new format gets new files beside the old ones.
"""

from pathlib import Path

import torch
from safetensors.torch import save_file

from sanitizer.encoders import Fingerprint
from sanitizer.model.artifact import save
from sanitizer.model.config import ConceptSpec, SanitizerConfig
from sanitizer.model.header import Header
from sanitizer.model.sanitizer import EmbeddingSanitizer

STRENGTH = 0.7
"""Below 1, where the curve acts; those of earlier versions were written at 1."""

if __name__ == "__main__":
    folder = Path(__file__).resolve().parent
    torch.manual_seed(0)
    config = SanitizerConfig(
        (ConceptSpec("golden"), ConceptSpec("youth", True, {"golden": 2.0})),
        width=6,
        window=16,
        constant_embeddings=1,
        heads=2,
        score_width=8,
        erase_width=8,
        erase_blocks=1,
        gated=True,
        strength_curve=0.4,
        gate_floor=0.3,
        gate_range=5.0,
        clip=1.5,
        constant_tolerance=0.05,
        score_span=4,
        verified=True,
        directions=2,
    )
    header = Header(Fingerprint("golden", 6, 0, "0" * 64), {"examples": 0, "steps": 0, "seed": 0}, {}, "CC0")
    sanitizer = EmbeddingSanitizer(config, header).eval().requires_grad_(False)
    for parameter in sanitizer.parameters():
        parameter.copy_(torch.randn_like(parameter) * 0.5)
    sanitizer.constant.fill_(2.0)
    sanitizer.std.copy_(torch.tensor([1.0, 0.5, 2.0, 1.0, 0.0, 1.0]))
    sanitizer.provenance_directions.copy_(torch.eye(2, 6))
    sanitizer.provenance_mean.copy_(torch.randn_like(sanitizer.provenance_mean) * 0.1)
    sanitizer.provenance_bounds.copy_(torch.tensor([[0.0, -50.0], [50.0, 50.0]]))
    sanitizer.vote_slope.fill_(0.2)
    embeddings = torch.randn(2, 5, 6)
    embeddings[:, 0] = 2.0
    mask = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]], dtype=torch.bool)
    sanitizer.vote_bias[1] = -50.0
    # The bias puts the operating point between the two prompts.
    logits = sanitizer.score(embeddings, mask).prompt[:, 0].logit()
    sanitizer.vote_bias[0, 0] -= logits.mean()
    if logits[0] < logits[1]:
        embeddings, mask = embeddings.flip(0), mask.flip(0)
    sanitizer.vote_bias[0, 1] = -50.0
    out = sanitizer.sanitize(embeddings, mask, strength=STRENGTH)
    save(sanitizer, folder / "golden_v4.safetensors")
    save_file(
        {
            "rows": embeddings.contiguous(),
            "mask": mask.to(torch.uint8).contiguous(),
            "sanitized": out.embeddings.contiguous(),
            "prompt_scores": out.scores.prompt,
        },
        folder / "golden_v4_output.safetensors",
    )
    print(out.flagged, out.scores.prompt)
