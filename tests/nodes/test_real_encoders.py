"""ComfyUI's own composite text encoders with few layers and random weights: SDXL, SD3, Flux, T5 alone (Chroma), Wan.

Needs COMFYUI_PATH; there is no stand-in for these.
"""

import pytest
import torch

PROMPTS = ["a red boat", "", "a nude woman, oil painting", "tea " * 120, "a (red:1.3) boat"]
CLIP_CONFIG = {"num_hidden_layers": 3, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}
T5_CONFIG = {"num_layers": 1, "d_model": 32, "d_ff": 64, "d_kv": 8, "num_heads": 4}
OPTIONS = {
    "clip_l_model_config": CLIP_CONFIG,
    "clip_g_model_config": CLIP_CONFIG,
    "t5xxl_model_config": T5_CONFIG,
    "umt5xxl_model_config": T5_CONFIG,
}


def make(kind):
    import comfy.sd
    import comfy.text_encoders.flux as flux
    import comfy.text_encoders.pixart_t5 as pixart
    import comfy.text_encoders.sd3_clip as sd3
    import comfy.text_encoders.wan as wan
    from comfy import sd1_clip, sdxl_clip

    class WanPieces(sd3.T5XXLTokenizer):
        """Wan's own vocabulary comes with its checkpoint; its 512 rows do not depend on it."""

        def __init__(self, embedding_directory=None, tokenizer_data={}):  # noqa: B006 - as in ComfyUI
            super().__init__(embedding_directory, tokenizer_data, min_length=512)
            self.embedding_key = "umt5xxl"

    class WanTokenizer(sd1_clip.SD1Tokenizer):
        def __init__(self, embedding_directory=None, **_options):
            super().__init__(embedding_directory, clip_name="umt5xxl", tokenizer=WanPieces)

    models = {
        "sd15": (sd1_clip.SD1ClipModel, sd1_clip.SD1Tokenizer),
        "sdxl": (sdxl_clip.SDXLClipModel, sdxl_clip.SDXLTokenizer),
        "sd3": (sd3.SD3ClipModel, sd3.SD3Tokenizer),
        "flux": (flux.FluxClipModel, flux.FluxTokenizer),
        "t5": (pixart.PixArtT5XXL, pixart.PixArtTokenizer),
        "wan": (wan.WanT5Model, WanTokenizer),
    }

    class Target:
        params: dict = {}  # noqa: RUF012
        clip, tokenizer = models[kind]

    # SD3 pads its CLIP rows to T5's 4096 channels.
    width = {"t5xxl_model_config": T5_CONFIG | {"d_model": 4096}} if kind == "sd3" else {}
    clip = comfy.sd.CLIP(Target, embedding_directory=None, model_options=OPTIONS | width)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in clip.cond_stage_model.parameters():
            matrix = parameter.ndim > 1
            parameter.copy_(torch.randn(parameter.shape) * (0.05 if matrix else 0.01) + (0 if matrix else 1))
    return clip


@pytest.fixture(params=["sd15", "sdxl", "sd3", "flux", "t5", "wan"])
def kind(request, comfy_modules, pack):
    if not comfy_modules.real:
        pytest.skip("COMFYUI_PATH is not set")
    return request.param, make(request.param)


def test_batches_equal_single_prompts(kind, pack):
    _, clip = kind
    encoder = pack("nodes.adapter.clip").ComfyTextEncoder(clip)
    encoding = encoder.encode(PROMPTS)
    for index, prompt in enumerate(PROMPTS):
        with torch.inference_mode():
            [[cond, extras]] = clip.encode_from_tokens_scheduled(clip.tokenize(prompt))
        rows = cond.shape[1]
        torch.testing.assert_close(encoding.embeddings[index, :rows], cond[0].float(), atol=1e-3, rtol=1e-3)
        assert not encoding.mask[index, rows:].any()
        if extras["pooled_output"] is None:
            assert encoding.pooled is None
        else:
            torch.testing.assert_close(encoding.pooled[index], extras["pooled_output"][0], atol=1e-3, rtol=1e-3)


def test_which_are_encoded_in_batches(kind, pack):
    name, clip = kind
    encoder = pack("nodes.adapter.clip").ComfyTextEncoder(clip)
    encoder.encode(["a boat", "a red boat"])
    # SD3 joins the rows of two encoders, so one prompt's rows are not together in a batch; T5 pads by itself.
    if name != "t5":
        assert encoder._batches is (name != "sd3")


def test_words_stand_in_the_right_rows(kind, pack):
    name, clip = kind
    encoding = pack("nodes.adapter.clip").ComfyTextEncoder(clip).encode(["a red woman"])
    [tokens], [offsets] = encoding.tokens, encoding.offsets
    words = ["a red woman"[start:end] for start, end in offsets if end]
    # SD3 has the prompt twice, from CLIP and from T5.
    assert words == ["a", "red", "woman"] * (2 if name == "sd3" else 1)
    assert offsets[next(row for row, token in enumerate(tokens) if "red" in token)] == (2, 5)


@pytest.mark.parametrize("kind", ["wan"], indirect=True)
def test_rows_that_hold_no_text_stay_zero(kind, pack, loaded, run):
    _, clip = kind
    fingerprint = pack("nodes.adapter.clip").ComfyTextEncoder(clip).fingerprint
    sanitizer = loaded(width=fingerprint.width, pooled=0, fingerprint=fingerprint)
    with torch.inference_mode():
        given = clip.encode_from_tokens_scheduled(clip.tokenize("a red boat"))
    node = pack("nodes.sanitize_conditioning").SanitizeConditioning
    [[cond, _]] = run(node, conditioning=given, sanitizer=sanitizer, strength=1.0, threshold=0.5).args[0]
    assert cond.shape[1] == 512
    text = given[0][0].abs().sum(dim=-1) > 0
    assert 0 < int(text.sum()) < 512
    assert torch.equal((cond != given[0][0]).any(dim=-1), text)


def test_both_nodes_agree(kind, pack, loaded, run):
    _, clip = kind
    fingerprint = pack("nodes.adapter.clip").ComfyTextEncoder(clip).fingerprint
    sanitizer = loaded(width=fingerprint.width, pooled=fingerprint.pooled_width, fingerprint=fingerprint)
    inputs = {"sanitizer": sanitizer, "strength": 1.0, "threshold": 0.5}
    sanitized = run(pack("nodes.sanitize_clip").SanitizeCLIP, clip=clip, **inputs).args[0]
    with torch.inference_mode():
        plain = clip.encode_from_tokens_scheduled(clip.tokenize(PROMPTS[3]))
        through = sanitized.clone().encode_from_tokens_scheduled(clip.tokenize(PROMPTS[3]))
    node = pack("nodes.sanitize_conditioning").SanitizeConditioning
    [[cond, extras]] = run(node, conditioning=plain, **inputs).args[0]
    assert not torch.equal(cond, plain[0][0])
    assert torch.equal(through[0][0], cond)
    if extras["pooled_output"] is not None:
        assert torch.equal(through[0][1]["pooled_output"], extras["pooled_output"])
