"""Wrote golden_v1*.safetensors, once. Kept to show what is in them; a new format gets new files beside the old ones."""

from pathlib import Path

import torch
from safetensors.torch import save_file

from sanitizer.encoders import Fingerprint
from sanitizer.model.artifact import save
from sanitizer.model.config import ConceptSpec, SanitizerConfig
from sanitizer.model.sanitizer import EmbeddingSanitizer

if __name__ == "__main__":
    folder = Path(__file__).resolve().parent
    torch.manual_seed(0)
    config = SanitizerConfig(
        (ConceptSpec("golden"), ConceptSpec("youth", True, {"golden": 2.0})),
        width=6,
        window=16,
        constant_rows=1,
        score_width=8,
        erase_width=8,
        erase_blocks=1,
        rank=3,
    )
    info = {
        "encoder": Fingerprint("golden", 6, 0, "0" * 64).to_dict(),
        "training": {"examples": 0, "steps": 0, "seed": 0},
        "report": {},
        "licence": "CC0",
    }
    sanitizer = EmbeddingSanitizer(config, info).eval().requires_grad_(False)
    for parameter in sanitizer.parameters():
        parameter.copy_(torch.randn_like(parameter) * 0.5)
    sanitizer.constant.fill_(2.0)
    sanitizer.std.copy_(torch.tensor([1.0, 0.5, 2.0, 1.0, 0.0, 1.0]))
    sanitizer.erase_net.basis.copy_(torch.linalg.qr(torch.randn(6, 3)).Q.T)
    rows = torch.randn(2, 5, 6)
    rows[:, 0] = 2.0
    mask = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]], dtype=torch.bool)
    # The bias puts the operating point between the two prompts.
    logits = sanitizer.score(rows, mask).prompt[:, 0].logit()
    sanitizer.prompt_bias[0] -= logits.mean()
    if logits[0] < logits[1]:
        rows, mask = rows.flip(0), mask.flip(0)
    sanitizer.prompt_bias[1] = -50.0
    out = sanitizer.sanitize(rows, mask)
    save(sanitizer, folder / "golden_v1.safetensors")
    save_file(
        {
            "rows": rows.contiguous(),
            "mask": mask.to(torch.uint8).contiguous(),
            "sanitized": out.embeddings.contiguous(),
            "prompt_scores": out.scores.prompt,
        },
        folder / "golden_v1_output.safetensors",
    )
    print(out.flagged, out.scores.prompt)
