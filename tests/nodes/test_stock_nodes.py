"""The table of keys against ComfyUI: what its sources set, what its nodes make, and what the document says."""

import os
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "conditioning.md"
MODELS = DOCUMENT.with_name("models.md")


@pytest.fixture(scope="module")
def keys(pack):
    return pack("nodes.adapter.keys")


def test_the_document_shows_the_table(keys):
    """Each row of the document's table is a row of the code's, in its order."""
    rows = re.findall(r"^\| (`.+?) \| (.+?) \| (.+?) \| (.+?) \|$", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE)
    expected = [
        (" ".join(f"`{key}`" for key in row.keys), row.kind.name, row.fate.value, row.made_by) for row in keys.TABLE
    ]
    assert rows == expected


def test_the_page_on_models_shows_the_table_of_families(pack, helper):
    families = pack("nodes.adapter.families").TABLE
    row = r"^\| (.*?) \| (tested|recorded|refused|untested) \|(.*?)\|(.*?)\|(.*?)\|$"
    rows = re.findall(row, MODELS.read_text(encoding="utf-8"), re.MULTILINE)
    numbers = [(f"{own.width:,}" if own.width else "", f"{own.pooled:,}" if own.pooled else "") for own in families]
    expected = [(own.models, own.state.value, *both, own.text) for own, both in zip(families, numbers, strict=True)]
    assert [tuple(cell.strip() for cell in row) for row in rows] == expected
    made = {own.made_as for own in families if own.state.value == "tested"}
    assert made == set(helper("real_clips").MODELS) - {"anima"}


def test_every_key_has_one_row(keys):
    names = [key for row in keys.TABLE for key in row.keys]
    assert len(names) == len(set(names))


def test_every_key_that_the_sources_set_is_in_the_table(keys, helper, comfy_modules):
    if not comfy_modules.real:
        pytest.skip("COMFYUI_PATH is not set")
    found = helper("stock_keys").stock_keys(Path(os.environ["COMFYUI_PATH"]))
    assert {"area", "control", "gligen", "attention_mask", "conditioning_llama3", "pooled_output"} <= found.keys()
    assert {key: place for key, place in found.items() if key not in keys.KEYS} == {}


class Vae:
    """Encodes to zeros of the right shape."""

    latent_channels = 16

    def encode(self, pixels):
        return torch.zeros(pixels.shape[0], 16, pixels.shape[1] // 8, pixels.shape[2] // 8)

    def spacial_compression_encode(self):
        return 8


class VideoVae(Vae):
    """Wan's latents have a time axis, for a single picture too."""

    def encode(self, pixels):
        return torch.zeros(1, 16, (pixels.shape[0] - 1) // 4 + 1, pixels.shape[1] // 8, pixels.shape[2] // 8)


def call(node, *args, **inputs):
    """A node of either kind: 0.3.64 has more of the old one."""
    function = node.execute if hasattr(node, "execute") else getattr(node(), node.FUNCTION)
    return function(*args, **inputs)


def outputs(result):
    """A node's outputs, V1 or V3."""
    return list(getattr(result, "result", result) if not isinstance(result, tuple) else result)


def picture(count=1):
    return torch.rand(count, 64, 64, 3)


@pytest.fixture
def make(stock):
    """`make(name, conditioning, other)`: the conditionings that a stock node makes of two."""
    nodes = stock("nodes")
    vision = stock("comfy.clip_vision").Output()
    vision["image_embeds"] = torch.zeros(1, 8)
    vision["penultimate_hidden_states"] = torch.zeros(1, 4, 8)
    vision["last_hidden_state"] = torch.zeros(1, 4, 8)
    control = stock("comfy.controlnet").ControlBase()
    control.copy = lambda: control
    extras = lambda name: stock(f"comfy_extras.nodes_{name}")  # noqa: E731
    size = {"width": 64, "height": 64}
    video = {**size, "length": 5, "batch_size": 1}
    model = SimpleNamespace(get_cond=lambda _: torch.zeros(1, 3, 8))
    mask = torch.ones(1, 64, 64)

    def hooks(c, _d):
        return extras("hooks").PairConditioningSetProperties().set_properties(
            c, c, 1.0, "default", mask=mask, hooks=stock("comfy.hooks").HookGroup(), timesteps=(0.0, 0.5)
        )  # fmt: skip

    def wan(name, **inputs):
        return lambda c, d: call(getattr(extras("wan"), name), c, d, VideoVae(), **video, **inputs)

    made = {
        "Combine": lambda c, d: nodes.ConditioningCombine().combine(c, d),
        "Average": lambda c, d: nodes.ConditioningAverage().addWeighted(c, d, 0.7),
        "Concat": lambda c, d: nodes.ConditioningConcat().concat(c, d),
        "SetArea": lambda c, _: nodes.ConditioningSetArea().append(c, 64, 64, 0, 0, 1.0),
        "SetAreaPercentage": lambda c, _: nodes.ConditioningSetAreaPercentage().append(c, 0.5, 0.5, 0.0, 0.0, 1.0),
        "SetAreaVideo": lambda c, _: extras("video_model").ConditioningSetAreaPercentageVideo().append(
            c, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 1.0),
        "SetAreaStrength": lambda c, _: nodes.ConditioningSetAreaStrength().append(c, 0.5),
        "SetMask": lambda c, _: nodes.ConditioningSetMask().append(c, mask, "mask bounds", 1.0),
        "SetTimestepRange": lambda c, _: nodes.ConditioningSetTimestepRange().set_range(c, 0.0, 0.5),
        "ZeroOut": lambda c, _: nodes.ConditioningZeroOut().zero_out(c),
        "hooks": hooks,
        "default": lambda c, d: extras("hooks").ConditioningSetDefaultAndCombine().set_default_and_combine(c, d),
        "ControlNet": lambda c, _: nodes.ControlNetApply().apply_controlnet(c, control, picture(), 1.0),
        "ControlNetAdvanced": lambda c, d: nodes.ControlNetApplyAdvanced().apply_controlnet(
            c, d, control, picture(), 1.0, 0.0, 1.0),
        "unCLIP": lambda c, _: nodes.unCLIPConditioning().apply_adm(c, vision, 1.0, 0.0),
        "StyleModel": lambda c, _: nodes.StyleModelApply().apply_stylemodel(c, model, vision, 1.0, "multiply"),
        "StyleModelBias": lambda c, _: nodes.StyleModelApply().apply_stylemodel(c, model, vision, 0.5, "attn_bias"),
        "InpaintModel": lambda c, d: nodes.InpaintModelConditioning().encode(c, d, picture(), Vae(), mask, True),
        "InstructPix2Pix": lambda c, d: call(extras("ip2p").InstructPixToPixConditioning, c, d, picture(), Vae()),
        "FluxGuidance": lambda c, _: call(extras("flux").FluxGuidance, c, 3.5),
        "FluxDisableGuidance": lambda c, _: call(extras("flux").FluxDisableGuidance, c),
        "ReferenceLatent": lambda c, _: call(
            extras("edit_model").ReferenceLatent, c, {"samples": torch.zeros(1, 16, 8, 8)}),
        "FluxKontextMethod": lambda c, _: call(extras("flux").FluxKontextMultiReferenceLatentMethod, c, "index"),
        "upscale": lambda c, d: call(extras("sdupscale").SD_4XUpscale_Conditioning, picture(), c, d, 4.0, 0.1),
        "StableCascade": lambda c, _: call(
            extras("stable_cascade").StableCascade_StageB_Conditioning, c, {"samples": torch.zeros(1, 16, 8, 8)}),
        "StableAudio": lambda c, d: call(extras("audio").ConditioningStableAudio, c, d, 0.0, 10.0),
        "LTXV": lambda c, d: call(extras("lt").LTXVConditioning, c, d, 25.0),
        "WanImageToVideo": wan("WanImageToVideo", start_image=picture(), clip_vision_output=vision),
        "WanFirstLastFrame": wan("WanFirstLastFrameToVideo", start_image=picture(), end_image=picture()),
        "WanFunControl": wan("WanFunControlToVideo", control_video=picture(5)),
        "WanVace": wan("WanVaceToVideo", strength=1.0, control_video=picture(5)),
        "WanPhantom": wan("WanPhantomSubjectToVideo", images=picture()),
        "WanCamera": wan("WanCameraImageToVideo", start_image=picture(), camera_conditions=torch.zeros(1, 24, 2, 8, 8)),
        "HunyuanImageToVideo": lambda c, _: call(extras("hunyuan").HunyuanImageToVideo, c, VideoVae(), **video,
            guidance_type="v1 (concat)", start_image=picture()),
        "HunyuanReplace": lambda c, _: call(extras("hunyuan").HunyuanImageToVideo, c, VideoVae(), **video,
            guidance_type="v2 (replace)", start_image=picture()),
    }  # fmt: skip

    def run(name, c, d):
        kinds = [out for out in outputs(made[name](c, d)) if isinstance(out, list) and out and len(out[0]) == 2]
        assert kinds
        return kinds

    run.names = list(made)
    return run


STOCK = [
    "Combine", "Average", "Concat", "SetArea", "SetAreaPercentage", "SetAreaVideo", "SetAreaStrength", "SetMask",
    "SetTimestepRange", "ZeroOut", "hooks", "default", "ControlNet", "ControlNetAdvanced", "unCLIP", "StyleModel",
    "StyleModelBias", "InpaintModel", "InstructPix2Pix", "FluxGuidance", "FluxDisableGuidance", "ReferenceLatent",
    "FluxKontextMethod", "upscale", "StableCascade", "StableAudio", "LTXV", "WanImageToVideo", "WanFirstLastFrame",
    "WanFunControl", "WanVace", "WanPhantom", "WanCamera", "HunyuanImageToVideo", "HunyuanReplace",
]  # fmt: skip


@pytest.mark.parametrize("name", STOCK)
@pytest.mark.parametrize("masked", [False, True])
def test_what_a_stock_node_makes_is_sanitized(make, run, pack, loaded, name, masked):
    """No false refusal and no silent pass: every text of it is changed by a sanitizer that fires on everything."""

    def given():
        extras = {"pooled_output": torch.randn(1, 4)}
        cond = torch.randn(1, 5, 8)
        if masked:
            cond[:, 3:] = 0
            extras["attention_mask"] = torch.tensor([[1, 1, 1, 0, 0]])
        return [[cond, extras]]

    if masked and name.startswith("StyleModel"):
        pytest.skip("the stock node takes no mask of two dimensions itself")
    sanitizer = loaded()
    with torch.inference_mode():
        conditionings = make(name, given(), given())
    for conditioning in conditionings:
        node = pack("nodes.sanitize_conditioning").SanitizeConditioning
        out = run(node, conditioning=conditioning, sanitizer=sanitizer, strength=1.0, threshold=0.5).args[0]
        assert len(out) == len(conditioning)
        for (cond, extras), (old, old_extras) in zip(out, conditioning, strict=True):
            assert (cond != old).any(dim=-1)[old.abs().sum(dim=-1) > 0].all()
            pooled = old_extras["pooled_output"]
            assert not pooled.any() or not torch.equal(extras["pooled_output"], pooled)
            assert extras.keys() == old_extras.keys()
            for key in old_extras.keys() - {"pooled_output"}:
                assert extras[key] is old_extras[key]


def test_every_stock_node_is_tried(make):
    assert make.names == STOCK


def test_a_controlnets_text_is_sanitized_and_gligens_refused(stock, run, pack, loaded, helper):
    clip = helper("real_clips").make("sd15")
    own = pack("nodes.adapter.clip").ComfyTextEncoder(clip).fingerprint
    sanitizer = loaded(width=own.width, pooled=own.pooled_width, fingerprint=own)
    node, inputs = pack("nodes.sanitize_conditioning").SanitizeConditioning, {"strength": 1.0, "threshold": 0.5}
    with torch.inference_mode():
        [given] = outputs(stock("nodes").CLIPTextEncode().encode(clip, "a boat"))
        [second] = outputs(call(stock("comfy_extras.nodes_cond").CLIPTextEncodeControlnet, clip, given, "a car"))
        [boxes] = outputs(stock("nodes").GLIGENTextBoxApply().append(given, clip, None, "a cup", 64, 64, 0, 0))
    [[_, extras]] = run(node, conditioning=second, sanitizer=sanitizer, **inputs).args[0]
    for key in ("cross_attn_controlnet", "pooled_output_controlnet"):
        assert not torch.equal(extras[key], second[0][1][key])
    with pytest.raises(pack("sanitizer.errors").SanitizerError, match="'gligen'"):
        run(node, conditioning=boxes, sanitizer=sanitizer, **inputs)
