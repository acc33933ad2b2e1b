"""Mode re-encode on ComfyUI's own composite text encoders and their tokenizers. Needs COMFYUI_PATH."""

from dataclasses import replace

import pytest
import torch

PROMPTS = [
    "a red boat",
    "A Red Boat at (Dawn:1.3), oil painting; don't crop it!",
    r"a (boat:0.8) \(1900\) by the (((sea)))",
    "tea and a book on a table, " * 30,
    "café déjà vu, 3 cups, 50mm f/1.8",
    "(masterpiece, best quality:1.2), a boat",
]


@pytest.fixture(params=["sd15", "sdxl", "sd3", "flux", "t5"], scope="module")
def kind(request, stock, helper):
    return request.param, helper("real_clips").make(request.param)


@pytest.mark.parametrize("text", PROMPTS)
def test_the_text_comes_back(kind, pack, text):
    name, clip = kind
    texts = pack("nodes.adapter.clip_rewrite")
    tokens = clip.tokenize(text)
    found = texts.prompt_of(clip, tokens)
    assert found is not None
    assert texts._same(clip.tokenize(texts.marked(*found)), tokens)
    if name in ("sd3", "flux", "t5") and text == PROMPTS[1]:
        assert "Red Boat at Dawn" in found.text, "T5 keeps upper case, and so must the text"


def test_a_flagged_prompt_is_encoded_again(kind, pack, loaded, run):
    name, clip = kind
    fingerprint = pack("nodes.adapter.clip").ComfyTextEncoder(clip).fingerprint
    sanitizer = loaded(width=fingerprint.width, pooled=fingerprint.pooled_width, fingerprint=fingerprint)
    model = sanitizer.patcher.model
    pairs = {"nudity": [("red", "green", "plain")], "violence": [("boat", "car", "thing")]}
    model.header = replace(model.header, replacements=pairs)
    node = pack("nodes.sanitize_clip").SanitizeCLIP
    inputs = {"clip": clip, "sanitizer": sanitizer, "threshold": 0.5, "mode": "re-encode"}
    with torch.inference_mode():
        [[raw, plain]] = clip.encode_from_tokens_scheduled(clip.tokenize(PROMPTS[1]))
        for strength in (0.5, 1.0, 1.5):
            through = run(node, strength=strength, **inputs).args[0]
            [[cond, extras]] = through.encode_from_tokens_scheduled(clip.tokenize(PROMPTS[1]))
            assert cond.shape[0] == 1 and cond.shape[2] == raw.shape[2] and cond.dtype == raw.dtype
            assert torch.isfinite(cond).all()
            assert cond.shape != raw.shape or not torch.equal(cond, raw)
            assert (extras["pooled_output"] is None) == (plain["pooled_output"] is None)
            if plain["pooled_output"] is not None:
                assert extras["pooled_output"].shape == plain["pooled_output"].shape
            if "attention_mask" in plain:
                assert extras["attention_mask"].shape == cond.shape[:2]
            if name != "t5" or strength < 1:
                assert cond.shape == raw.shape
        calm = run(node, strength=1.0, **{**inputs, "threshold": 1.0}).args[0]
        [[cond, _]] = calm.encode_from_tokens_scheduled(clip.tokenize(PROMPTS[1]))
        assert torch.equal(cond, raw)


def test_a_disguised_word_is_read_whatever_its_weight(kind, pack, loaded):
    _, clip = kind
    fingerprint = pack("nodes.adapter.clip").ComfyTextEncoder(clip).fingerprint
    sanitizer = loaded(width=fingerprint.width, pooled=fingerprint.pooled_width, fingerprint=fingerprint)
    reader = pack("nodes.adapter.clip_rewrite").PromptReader(clip, sanitizer)
    tokens = clip.tokenize("a painting of a (n4k3d:0.3) man")
    with torch.inference_mode():
        [entry] = clip.encode_from_tokens_scheduled(tokens)
        [part] = pack("nodes.adapter.conditioning").parts(entry)
        known = reader(tokens, part, weighted=False)
    assert known.read.texts == {0: "a painting of a naked man"}
    assert known.read.scores.shape == (1, 2)
