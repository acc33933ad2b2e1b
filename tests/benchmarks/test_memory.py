"""`python -m benchmarks memory`: a stand-in encoder that keeps the encoders' rules, and the figure that it prints."""

import pytest
import torch

from benchmarks import memory
from benchmarks.cli import main


def test_the_word_table_keeps_the_rules_of_encoders():
    encoder = memory.WordTable(16, 12)
    prompts = ["a red bus", "", "many words " * 20]
    e = encoder.encode(prompts)
    assert e.embeddings.shape == (3, 12, 16)
    assert e.embeddings.dtype == torch.float32
    assert all(len(tokens) == len(spans) == 12 for tokens, spans in zip(e.tokens, e.offsets, strict=True))
    assert [prompts[0][a:b] for a, b in e.offsets[0][1:4]] == ["a", "red", "bus"]
    assert torch.equal(encoder.encode(prompts[:1]).embeddings, e.embeddings[:1])
    assert not torch.allclose(e.embeddings[0, 5], e.embeddings[1, 5]), "padding depends on the prompt"


@pytest.mark.slow
def test_it_trains_and_prints_the_peak(capsys):
    pytest.importorskip("resource", reason="Linux and macOS say how much memory a process took")
    assert main(["memory", "--width", "32", "--rows", "24", "--examples", "300"]) == 0
    words = capsys.readouterr().out.split()
    assert "32 channels, 24 token embeddings" in " ".join(words)
    peak = float(words[words.index("GB") - 1])
    # Tens of MB at the very least for torch itself, and no more than this machine can have.
    assert 0.05 < peak < 1000
