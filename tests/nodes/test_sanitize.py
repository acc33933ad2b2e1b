"""Sanitize Conditioning and Sanitize CLIP on tensors: what changes, and above all what does not."""

import copy
from dataclasses import replace

import pytest
import torch


@pytest.fixture(scope="module")
def node(pack):
    return pack("nodes.sanitize_conditioning").SanitizeConditioning


@pytest.fixture(scope="module")
def error(pack):
    return pack("sanitizer.errors").SanitizerError


def conditioning(rows=5, batch=1, dtype=torch.float32, **extras):
    torch.manual_seed(1)
    cond, pooled = torch.randn(batch, rows, 8, dtype=dtype), torch.randn(batch, 4, dtype=dtype)
    return [[cond, {"pooled_output": pooled, **extras}]]


def status(output):
    [message] = output.ui["embedding_sanitizer"]
    return message


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_unsafe_rows_and_pooled_vector_change_and_keep_their_kind(run, node, loaded, dtype):
    given = conditioning(dtype=dtype)
    out = run(node, conditioning=given, sanitizer=loaded(), strength=1.0, threshold=0.5)
    [[cond, extras]] = out.args[0]
    assert cond.dtype == extras["pooled_output"].dtype == dtype
    assert cond.shape == given[0][0].shape
    assert not torch.equal(cond, given[0][0])
    assert not torch.equal(extras["pooled_output"], given[0][1]["pooled_output"])
    assert status(out)["state"] == "changed"
    assert "nudity" in status(out)["text"]
    assert "5 of 5 rows" in status(out)["text"]


@pytest.mark.parametrize(
    ("pooled", "extras"),
    [
        (4, {"guidance": 6.0}),
        (4, {"attention_mask": torch.ones(1, 5, dtype=torch.long), "guidance": 6.0}),
        (0, {"unprocessed_ltxav_embeds": True, "frame_rate": 25.0}),
        (4, {"attention_mask": torch.ones(1, 5, dtype=torch.long)}),
    ],
    ids=["HunyuanVideo", "HunyuanVideo, mask", "LTX-2", "NewBie"],
)
def test_what_recorded_families_put_out_is_sanitized(run, node, loaded, pooled, extras):
    """Keys and kinds as comfy/text_encoders/hunyuan_video.py, lt.py and newbie.py give them in ComfyUI 0.33."""
    [[cond, own]] = conditioning(**extras)
    own |= {} if pooled else {"pooled_output": None}
    out = run(node, conditioning=[[cond, own]], sanitizer=loaded(pooled=pooled), strength=1.0, threshold=0.5)
    [[written, kept]] = out.args[0]
    assert not (written == cond).all(2).any(), "every row"
    assert all(kept[key] == value for key, value in extras.items() if key != "attention_mask")
    assert pooled == 0 or not torch.equal(kept["pooled_output"], own["pooled_output"])


@pytest.mark.parametrize(("logit", "strength"), [(-4.0, 1.0), (4.0, 0.0)])
def test_harmless_prompt_and_strength_0_come_back_bit_for_bit(run, node, loaded, logit, strength):
    given = conditioning(guidance=3.5)
    out = run(node, conditioning=given, sanitizer=loaded(logit=logit), strength=strength, threshold=0.5)
    [[cond, extras]] = out.args[0]
    assert torch.equal(cond, given[0][0])
    assert torch.equal(extras["pooled_output"], given[0][1]["pooled_output"])
    assert extras["guidance"] == 3.5
    assert status(out)["state"] == ("harmless" if logit < 0 else "found")


def test_the_input_is_never_changed_in_place(run, node, loaded):
    given = conditioning()
    before = copy.deepcopy(given)
    run(node, conditioning=given, sanitizer=loaded(), strength=1.0, threshold=0.5)
    assert torch.equal(given[0][0], before[0][0])
    assert torch.equal(given[0][1]["pooled_output"], before[0][1]["pooled_output"])


def test_every_entry_every_row_and_the_controlnet_text(run, node, loaded):
    controlnet = {"cross_attn_controlnet": torch.randn(1, 5, 8), "pooled_output_controlnet": torch.randn(1, 4)}
    given = conditioning() + conditioning(rows=231, area=(8, 8, 0, 0)) + conditioning(**controlnet)
    out = run(node, conditioning=given, sanitizer=loaded(), strength=1.0, threshold=0.5).args[0]
    assert len(out) == 3
    for (cond, extras), (old, old_extras) in zip(out, given, strict=True):
        assert (cond != old).any(dim=-1).all()
        assert not torch.equal(extras["pooled_output"], old_extras["pooled_output"])
    assert out[1][1]["area"] == (8, 8, 0, 0)
    for key, old in controlnet.items():
        assert not torch.equal(out[2][1][key], old)


def test_a_mask_hides_nothing_from_the_sanitizer(run, node, loaded):
    given = conditioning(attention_mask=torch.tensor([[1, 1, 0, 0, 0]]))
    given[0][0][:, 4] = 0
    out = run(node, conditioning=given, sanitizer=loaded(), strength=1.0, threshold=0.5).args[0]
    changed = (out[0][0] != given[0][0]).any(dim=-1)
    # The last one is masked and zero: there is nothing in it, and it stays.
    assert changed.tolist() == [[True, True, True, True, False]]


def test_text_hidden_behind_a_mask_is_scored(run, node, trained, encoded):
    """An unsafe prompt under a mask of zeros, which a model may ignore: it fires as it does without."""
    [[cond, extras]] = encoded("a nude woman on a bed")
    hidden = [[cond, {**extras, "attention_mask": torch.zeros(cond.shape[:2])}]]
    out = run(node, conditioning=hidden, sanitizer=trained, strength=1.0, threshold=0.5)
    assert status(out)["state"] == "changed"
    changed = (out.args[0][0][0] != cond).any(dim=-1)
    assert int((~changed).sum()) <= 1, "the start token's embedding is the same for every prompt"


def test_threshold_decides(run, node, loaded):
    sanitizer = loaded(logit=0.8)  # score .69
    states = [
        status(run(node, conditioning=conditioning(), sanitizer=sanitizer, strength=1.0, threshold=value))["state"]
        for value in (0.5, 0.9)
    ]
    assert states == ["changed", "found"]


def test_only_the_chosen_concepts(run, node, loaded):
    given = conditioning()
    out = run(node, conditioning=given, sanitizer=loaded(concepts=["violence"]), strength=1.0, threshold=0.5)
    assert out.args[0][0][0] is given[0][0]


def test_harmless_is_said_only_of_what_is(run, node, loaded):
    """logit .8 is a score of .69 for nudity; violence scores next to nothing."""

    def said(threshold=0.5, logit=0.8, concepts=None, strength=1.0):
        sanitizer = loaded(logit=logit, concepts=concepts)
        return status(
            run(node, conditioning=conditioning(), sanitizer=sanitizer, strength=strength, threshold=threshold)
        )

    assert said(logit=-4.0)["state"] == "harmless"
    assert said(logit=-4.0)["text"].startswith("Harmless (highest score 0.02, threshold 0.50). Passed through unch")
    below = said(threshold=0.9)
    assert below["text"].startswith("Below your threshold of 0.90: nudity 0.69. Passed through unchanged.")
    assert below["state"] == "found"
    other = said(concepts=["violence"])
    assert other["text"].startswith("Not among the chosen concepts: nudity 0.69. Passed through unchanged.")
    assert other["state"] == "found"
    assert "changed nothing at strength 0." in said(strength=0.0)["text"]


def test_a_threshold_that_the_context_lowers_is_said(run, node, pack, make_sanitizer, models):
    """The prompt is about young people, so that nudity at .31 fires under a threshold of .5."""
    model = make_sanitizer(concepts=("nudity", "youth"), logit=-0.8)
    nudity, youth = model.config.concepts
    specs = (nudity, replace(youth, context=True, lowers={"nudity": 2.0}))
    model.config = replace(model.config, concepts=specs)
    model.vote_bias.fill_(-8.0)
    model.vote_bias[0] = torch.tensor([-0.8, 4.0])
    model.token_bias.copy_(model.vote_bias[0])
    path = models / "context.safetensors"
    pack("sanitizer.model.artifact").save(model, path)
    sanitizer = pack("nodes.adapter.handle").LoadedSanitizer.load(path)
    out = run(node, conditioning=conditioning(), sanitizer=sanitizer, strength=1.0, threshold=0.5)
    assert status(out)["state"] == "changed"
    assert "Erased nudity (score 0.31)" in status(out)["text"]
    assert "lowered for prompts of this context: youth" in status(out)["text"]


def test_another_encoder_stops_the_run_and_names_both(run, node, loaded, error):
    given = [[torch.randn(1, 5, 768), {"pooled_output": torch.randn(1, 768)}]]
    with pytest.raises(error) as caught:
        run(node, conditioning=given, sanitizer=loaded(), strength=1.0, threshold=0.5)
    for expected in ("ToyModel (8 channels", "768 channels", "Stable Diffusion 1.x", "auto"):
        assert expected in str(caught.value)


def test_missing_pooled_vector_stops_the_run(run, node, loaded, error):
    with pytest.raises(error, match="no pooled vector"):
        run(node, conditioning=[[torch.randn(1, 5, 8), {}]], sanitizer=loaded(), strength=1.0, threshold=0.5)


def test_uncovered_text_stops_the_run(run, node, loaded, error):
    given = conditioning(conditioning_llama3=torch.randn(1, 5, 8))
    with pytest.raises(error, match="conditioning_llama3"):
        run(node, conditioning=given, sanitizer=loaded(logit=-4.0), strength=1.0, threshold=0.5)


def test_sanitizer_and_results_live_where_they_should(run, node, loaded):
    sanitizer = loaded()
    out = run(node, conditioning=conditioning(), sanitizer=sanitizer, strength=1.0, threshold=0.5).args[0]
    assert out[0][0].device.type == "cpu"
    assert {p.device.type for p in sanitizer.patcher.model.parameters()} == {sanitizer.patcher.load_device.type}


@pytest.fixture
def clip_sanitizer(pack, loaded, clip):
    """A sanitizer for the MiniLM CLIP that fires on everything."""
    fingerprint = pack("nodes.adapter.clip").ComfyTextEncoder(clip).fingerprint
    return loaded(width=fingerprint.width, pooled=fingerprint.pooled_width, fingerprint=fingerprint)


def test_sanitize_clip_equals_sanitize_conditioning(run, pack, node, clip, clip_sanitizer):
    tokens = clip.tokenize("a harmless red boat")
    inputs = {"sanitizer": clip_sanitizer, "strength": 1.3, "threshold": 0.5}
    sanitized = run(pack("nodes.sanitize_clip").SanitizeCLIP, clip=clip, **inputs).args[0]
    with torch.inference_mode():
        plain = clip.encode_from_tokens_scheduled(tokens)
        # The ways in which other nodes derive a CLIP from it.
        clones = [sanitized, sanitized.clone(), sanitized.clone().clone()]
        clones[1].add_patches({}, 1.0)
        through = [other.encode_from_tokens_scheduled(tokens) for other in clones]
        after = clip.encode_from_tokens_scheduled(tokens)
    expected = run(node, conditioning=plain, **inputs).args[0]
    assert not torch.equal(expected[0][0], plain[0][0])
    for result in through:
        assert torch.equal(result[0][0], expected[0][0])
    assert torch.equal(after[0][0], plain[0][0]), "the plain CLIP must stay as it was"


def test_no_node_gets_an_encoder_past_the_sanitizer(run, pack, clip, clip_sanitizer, error):
    inputs = {"sanitizer": clip_sanitizer, "strength": 1.0, "threshold": 0.5}
    sanitized = run(pack("nodes.sanitize_clip").SanitizeCLIP, clip=clip, **inputs).args[0]
    with pytest.raises(error, match=r"'clip_l' inside the CLIP.*Sanitize Conditioning behind it"):
        _ = sanitized.cond_stage_model.clip_l
    assert not hasattr(sanitized.cond_stage_model, "clip_l")
    assert sanitized.cond_stage_model.dtypes == clip.cond_stage_model.dtypes


def test_sanitize_clip_survives_copying(run, pack, clip, clip_sanitizer):
    inputs = {"sanitizer": clip_sanitizer, "strength": 1.0, "threshold": 0.5}
    sanitized = run(pack("nodes.sanitize_clip").SanitizeCLIP, clip=clip, **inputs).args[0]
    again = sanitized.clone()
    again.cond_stage_model = copy.copy(again.cond_stage_model)
    tokens = clip.tokenize("a boat")
    with torch.inference_mode():
        assert torch.equal(again.encode_from_tokens(tokens), sanitized.encode_from_tokens(tokens))


def test_sanitize_clip_refuses_the_sanitizer_of_another_encoder(run, pack, loaded, clip, error):
    other = loaded(width=384, pooled=0)
    with pytest.raises(error) as caught:
        run(pack("nodes.sanitize_clip").SanitizeCLIP, clip=clip, sanitizer=other, strength=1.0, threshold=0.5)
    assert "ToyModel" in str(caught.value)
    assert "TextModel" in str(caught.value)


@pytest.mark.parametrize("mode", ["rewrite", "re-encode"])
def test_a_low_weight_hides_nothing_from_sanitize_clip(run, pack, node, clip, trained, encoded, mode):
    """`(a nude woman on a bed:0.1)`: the weighted embedding alone passes, the same tokens at weight 1 do not."""
    inputs = {"sanitizer": trained, "strength": 1.0, "threshold": 0.5}
    sanitized = run(pack("nodes.sanitize_clip").SanitizeCLIP, clip=clip, mode=mode, **inputs).args[0]
    for prompt, unsafe in (("a nude woman on a bed", True), ("a red boat on a lake", False)):
        plain = clip.tokenize(prompt)
        faint = {"l": [[(token, 0.1 if 0 < place < 7 else 1.0) for place, (token, _) in enumerate(plain["l"][0])]]}
        with torch.inference_mode():
            raw = clip.encode_from_tokens_scheduled(faint)
            through = sanitized.encode_from_tokens_scheduled(faint)
        assert status(run(node, conditioning=raw, **inputs))["state"] == "harmless"
        assert torch.equal(through[0][0], raw[0][0]) is not unsafe


def test_a_lora_makes_another_encoder(pack, clip):
    encoder = pack("nodes.adapter.clip").ComfyTextEncoder
    patched = clip.clone()
    name = next(name for name, tensor in clip.cond_stage_model.state_dict().items() if tensor.ndim == 2)
    shape = clip.cond_stage_model.state_dict()[name].shape
    patched.add_patches({name: ("diff", (torch.ones(shape),))}, 0.5)
    assert encoder(patched).fingerprint.weights != encoder(clip).fingerprint.weights
    assert encoder(clip.clone()).fingerprint == encoder(clip).fingerprint
    skipped = clip.clone()
    skipped.clip_layer(-2)
    assert encoder(skipped).fingerprint.architecture != encoder(clip).fingerprint.architecture
