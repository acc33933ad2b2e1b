"""ComfyUI's own composite text encoders with few layers and random weights, a family of models each.

Needs COMFYUI_PATH; there is no stand-in for these.
"""

import pytest
import torch

PROMPTS = ["a red boat", "", "a nude woman, oil painting", "tea " * 120, "a (red:1.3) boat"]


FAMILIES = (
    "sd15", "sd2", "sdxl", "sdxl_refiner", "sd3", "flux", "t5", "wan", "aura_flow", "stable_audio", "cosmos",
    "mochi", "ltxv", "cogvideo", "qwen_image", "hunyuan_image", "omnigen2", "z_image", "klein", "kandinsky5",
    "longcat", "ovis", "lumina2", "pixeldit", "ideogram4", "krea2", "mage_flow", "boogu", "joyimage",
    "hunyuan_video15", "flux2", "ernie",
)  # fmt: skip
REFUSED = ("anima",)


def test_no_family_is_left_out(helper):
    assert {*FAMILIES, *REFUSED} == set(helper("real_clips").MODELS)


@pytest.fixture(params=FAMILIES)
def kind(request, stock, helper):
    return request.param, helper("real_clips").make(request.param)


def test_batches_equal_single_prompts(kind, pack):
    _, clip = kind
    encoder = pack("nodes.adapter.clip").ComfyTextEncoder(clip)
    encoding = encoder.encode(PROMPTS)
    for index, prompt in enumerate(PROMPTS):
        with torch.inference_mode():
            [[cond, extras]] = clip.encode_from_tokens_scheduled(clip.tokenize(prompt))
        rows = cond.shape[1]
        # ComfyUI 0.3.64 itself gives NaN for a weighted word to OmniGen2; the nodes refuse that.
        close = {"atol": 1e-3, "rtol": 1e-3, "equal_nan": True}
        torch.testing.assert_close(encoding.embeddings[index, :rows], cond[0].float(), **close)
        assert not encoding.mask[index, rows:].any()
        if extras["pooled_output"] is None:
            assert encoding.pooled is None
        else:
            torch.testing.assert_close(encoding.pooled[index], extras["pooled_output"][0], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("kind", ["sd15", "sdxl", "sd3", "flux", "t5", "wan"], indirect=True)
def test_which_are_encoded_in_batches(kind, pack):
    name, clip = kind
    encoder = pack("nodes.adapter.clip").ComfyTextEncoder(clip)
    encoder.encode(["a boat", "a red boat"])
    # SD3 joins the rows of two encoders, so one prompt's rows are not together in a batch; T5 pads by itself.
    if name != "t5":
        assert encoder._batches is (name != "sd3")


def _joined(offsets):
    found = []
    for start, end in offsets:
        if found and found[-1][1] == start:
            start = found.pop()[0]
        found.append((start, end))
    return found


def test_words_stand_in_the_right_rows(kind, pack):
    name, clip = kind
    encoding = pack("nodes.adapter.clip").ComfyTextEncoder(clip).encode(["a red woman"])
    [tokens], [offsets] = encoding.tokens, encoding.offsets
    # A word of several tokens is one, as its pieces touch.
    words = ["a red woman"[start:end] for start, end in _joined(offset for offset in offsets if offset[1])]
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


@pytest.mark.parametrize("form", ["float8", "quantized"])
@pytest.mark.parametrize("name", ["sd15", "t5", "z_image"])
def test_weights_of_eight_bits(name, form, stock, helper, pack, loaded, run):
    """As fp8 and as quantized checkpoints have them: another encoder than that of whole weights, and sanitized."""
    make = helper("real_clips").make
    clip = make(name, form)
    encoder = pack("nodes.adapter.clip").ComfyTextEncoder
    fingerprint = encoder(clip).fingerprint
    assert fingerprint == encoder(make(name, form)).fingerprint
    assert fingerprint.weights != encoder(make(name)).fingerprint.weights
    encoding = encoder(clip).encode(PROMPTS)
    assert encoding.embeddings.isfinite().all()
    assert encoding.embeddings.dtype == torch.float32
    test_both_nodes_agree((name, clip), pack, loaded, run)


@pytest.mark.parametrize("kind", ["sd15", "sdxl"], indirect=True)
def test_gradients_reach_the_token_embeddings_outside_inference_mode(kind, pack):
    """So an attack can search for strings against ComfyUI's own CLIPs: along the gradient at a token's
    embedding, which the encoder takes as it takes textual inversion, the prompt comes nearer to its goal. Its layers
    add in place, which autograd allows in a context of its own alone."""
    _, clip = kind
    mutable = torch.autograd.graph.allow_mutation_on_saved_tensors
    with torch.inference_mode(False), torch.enable_grad(), mutable():
        tokens = clip.tokenize("a red boat")
        name, [rows] = next(iter(tokens.items()))
        [[goal, _]] = clip.encode_from_tokens_scheduled(clip.tokenize("a blue tree"))
        goal = goal.detach().clone()
        transformer = getattr(clip.cond_stage_model, f"clip_{name}").transformer
        place = 2
        own = transformer.get_input_embeddings().weight[rows[place][0]].detach().float().clone().requires_grad_()

        def distance(embedding):
            given = {**tokens, name: [[*rows[:place], (embedding, 1.0), *rows[place + 1 :]]]}
            return (clip.cond_stage_model.encode_token_weights(given)[0].float() - goal).square().sum()

        before = distance(own)
        [gradient] = torch.autograd.grad(before, own)
        assert gradient.isfinite().all() and gradient.norm() > 0
        after = distance((own - 1e-3 * gradient / gradient.norm() * own.norm()).detach())
    assert after < before


@pytest.mark.parametrize("kind", ["anima"], indirect=True)
def test_a_family_with_text_in_another_place_is_refused_by_name(kind, pack):
    _, clip = kind
    with pytest.raises(pack("sanitizer.errors").SanitizerError, match=r"t5xxl_ids.*Anima"):
        pack("nodes.adapter.clip").ComfyTextEncoder(clip).encode(["a red boat"])
