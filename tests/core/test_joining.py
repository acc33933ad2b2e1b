"""Encodings joined, scattered and interpolated."""

import pytest
import torch

from sanitizer.encoders import Encoding
from sanitizer.encoders.alignment import lerp
from sanitizer.encoders.base import encode_all


@pytest.fixture
def tiny(tiny_encoder):
    return tiny_encoder("masked", width=32)


def test_encode_keeps_the_order(tiny):
    texts = ["a rather long prompt about boats", "short", "two words"] * 30
    whole = encode_all(tiny, texts)
    for i in (0, 1, 44):
        alone = tiny.encode([texts[i]])
        assert whole.tokens[i][: len(alone.tokens[0])] == alone.tokens[0]
        torch.testing.assert_close(whole.embeddings[i][whole.mask[i]], alone.embeddings[0][alone.mask[0]])


def test_lerp_goes_from_one_encoding_to_the_other(tiny):
    before, after = encode_all(tiny, ["a crimson dress"]), encode_all(tiny, ["a long green summer dress"])
    start, half, end = (lerp(before, after, strength) for strength in (0.0, 0.5, 1.0))
    assert torch.equal(start.embeddings, before.embeddings) and torch.equal(start.mask, before.mask)
    assert torch.equal(end.embeddings, after.embeddings) and torch.equal(end.mask, after.mask)
    dress = before.tokens[0].index("dress")
    middle = (before.embeddings[0, dress] + after.embeddings[0, after.tokens[0].index("dress")]) / 2
    torch.testing.assert_close(half.embeddings[0, dress], middle)
    assert torch.equal(half.mask, before.mask) and half.tokens == before.tokens


@pytest.mark.parametrize("geometry", ["masked", "causal"])
def test_scatter_keeps_the_others_bit_for_bit(tiny_encoder, geometry):
    encoder = tiny_encoder(geometry, width=32, pooled_width=8)
    e = encoder.encode(["a fox", "two dogs in the garden", "red"])
    other = encoder.encode(["an old and rather long prompt about boats"])
    out = e.scatter([1], other)
    length = e.embeddings.shape[1]
    for b in (0, 2):
        assert torch.equal(out.embeddings[b, :length], e.embeddings[b]) and not out.embeddings[b, length:].any()
        assert torch.equal(out.mask[b, :length], e.mask[b]) and not out.mask[b, length:].any()
        assert torch.equal(out.pooled[b], e.pooled[b])
    again = out.select([1])
    seen = other.mask[0]
    assert torch.equal(again.embeddings[0, : len(seen)][seen], other.embeddings[0][seen])
    assert torch.equal(again.pooled, other.pooled)
    assert again.tokens[0][: len(seen)] == other.tokens[0]
    assert {len(own) for own in out.tokens} == {out.embeddings.shape[1]} == {len(own) for own in out.offsets}


def test_cat_pads_and_copies(tiny):
    """A single part, too: what was made under inference mode must be trainable."""
    with torch.inference_mode():
        short, long = tiny.encode(["a dress"]), tiny.encode(["an old and rather long prompt about boats"])
    e = Encoding.cat([short, long])
    length = short.embeddings.shape[1]
    assert torch.equal(e.embeddings[0, :length], short.embeddings[0]) and not e.embeddings[0, length:].any()
    assert torch.equal(e.embeddings[1], long.embeddings[0]) and e.mask.sum(1).tolist() == [length, len(long.tokens[0])]
    alone = Encoding.cat([short])
    assert torch.equal(alone.embeddings, short.embeddings) and not alone.embeddings.is_inference()
