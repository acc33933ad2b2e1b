"""ComfyUI's CLIP object as a TextEncoder: the rows of the text encode node, in batches."""

import pytest
import torch

PROMPTS = ["a red boat", "a nude woman on a boat", "", "x" * 400, "two cups of tea, " * 30]


@pytest.fixture(scope="module")
def encoder(pack, clip):
    return pack("nodes.adapter.clip").ComfyTextEncoder(clip)


def test_batch_equals_one_by_one(encoder, clip):
    encoding = encoder.encode(PROMPTS)
    for index, prompt in enumerate(PROMPTS):
        with torch.inference_mode():
            alone = clip.encode_from_tokens(clip.tokenize(prompt))
        rows = alone.shape[1]
        torch.testing.assert_close(encoding.embeddings[index, :rows], alone[0], atol=1e-4, rtol=1e-4)
        assert encoding.mask[index].sum() == rows
        assert not encoding.embeddings[index, rows:].any()


def test_equals_the_embedded_encoder_itself(encoder, pack):
    own = pack("sanitizer.encoders").load_encoder("minilm-causal").encode(PROMPTS)
    encoding = encoder.encode(PROMPTS)
    torch.testing.assert_close(encoding.embeddings, own.embeddings.cpu(), atol=1e-4, rtol=1e-4)
    assert encoding.tokens == own.tokens
    assert encoding.offsets[1] == own.offsets[1]


def test_tensors_can_be_trained_on(encoder):
    with torch.inference_mode(False), torch.enable_grad():
        rows = encoder.encode(["a boat"]).embeddings
        weight = torch.ones(rows.shape[-1], requires_grad=True)
        (rows @ weight).sum().backward()
    assert weight.grad is not None


def test_sanitizer_in_front_is_left_out(run, pack, clip, loaded, encoder):
    sanitizer = loaded(width=384, pooled=0, fingerprint=encoder.fingerprint)
    node = pack("nodes.sanitize_clip").SanitizeCLIP
    sanitized = run(node, clip=clip, sanitizer=sanitizer, strength=1.0, threshold=0.5).args[0]
    inner = pack("nodes.adapter.clip").ComfyTextEncoder(sanitized)
    assert inner.fingerprint == encoder.fingerprint
    assert torch.equal(inner.encode(["a boat"]).embeddings, encoder.encode(["a boat"]).embeddings)


class _OutOfMemory(RuntimeError):
    def __init__(self):
        super().__init__("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: not enough memory")


def test_being_out_of_memory_once_does_not_turn_batches_off(pack, clip, monkeypatch):
    encoder = pack("nodes.adapter.clip").ComfyTextEncoder(clip)
    encode, failures = encoder._encode_batch, [_OutOfMemory()]

    def fails_once(tokens):
        if failures:
            raise failures.pop()
        return encode(tokens)

    monkeypatch.setattr(encoder, "_encode_batch", fails_once)
    first = encoder.encode(PROMPTS[:3])
    assert encoder._batches is None, "not decided by that"
    second = encoder.encode(PROMPTS[:3])
    assert encoder._batches is True
    torch.testing.assert_close(first.embeddings, second.embeddings, atol=1e-4, rtol=1e-4)


def test_another_error_does(pack, clip, monkeypatch):
    encoder = pack("nodes.adapter.clip").ComfyTextEncoder(clip)

    def fails(_tokens):
        raise RuntimeError("sizes do not match")

    monkeypatch.setattr(encoder, "_encode_batch", fails)
    encoder.encode(PROMPTS[:3])
    assert encoder._batches is False


def test_a_batch_that_does_not_fit_is_made_smaller(pack, clip, monkeypatch):
    encoder = pack("nodes.adapter.clip").ComfyTextEncoder(clip)
    expected = encoder.encode(PROMPTS[:3] * 3)
    encode, sizes = encoder._encode_batch, []

    def small(tokens):
        sizes.append(len(tokens))
        if len(tokens) > 2:
            raise _OutOfMemory
        return encode(tokens)

    monkeypatch.setattr(encoder, "_encode_batch", small)
    found = encoder.encode(PROMPTS[:3] * 3)
    assert max(sizes) > 2 and sizes[-1] <= 2
    torch.testing.assert_close(found.embeddings, expected.embeddings, atol=1e-4, rtol=1e-4)


class _Packed(torch.Tensor):
    """As ComfyUI-GGUF's weights: bytes, of a class that has no method of its own to give numbers."""


def test_weights_that_the_state_dict_does_not_hold(pack, helper, monkeypatch):
    """As those of ComfyUI-GGUF, which gives tensors without values, and one more for the room that it needs."""
    module = pack("nodes.adapter.clip")
    clip = helper("minilm_clip").make_clip(pack("sanitizer.encoders").load_encoder("minilm-causal"))
    layer = next(m for m in clip.cond_stage_model.modules() if isinstance(m, torch.nn.Linear))

    def fake(destination, prefix, keep_vars):
        for name in ("weight", "bias"):
            destination[prefix + name] = torch.zeros_like(getattr(layer, name), device="meta")
        destination[f"{prefix}temp.weight"] = torch.empty(3, device="meta")

    def weights():
        return module.ComfyTextEncoder(clip).fingerprint.weights

    known = weights()
    monkeypatch.setattr(layer, "_save_to_state_dict", fake)
    assert weights() == known
    layer.bias = torch.nn.Parameter(layer.bias.detach() + 1)
    assert weights() != known
    encoder = module.ComfyTextEncoder(clip)
    layer.weight = torch.nn.Parameter(layer.weight.detach().to("meta"))
    with pytest.raises(pack("sanitizer.errors").SanitizerError, match="is not loaded"):
        list(encoder._weights())
    packed = torch.arange(9, dtype=torch.uint8).as_subclass(_Packed)
    assert torch.equal(module._half(packed), torch.arange(9, dtype=torch.float16))
    assert type(module._half(packed)) is torch.Tensor
