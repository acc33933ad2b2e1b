"""Sanitize Model in a running ComfyUI: every way by which a conditioning reaches a sampler."""

import copy

import pytest

HARMLESS = "a red boat on a quiet lake, oil painting"
UNSAFE = "an oil painting of a nude woman"
CITY = "a photo of a city at night"


def node(kind, **inputs):
    return {"class_type": kind, "inputs": inputs}


def differs(server, prompt):
    """Whether Sanitize Model changes the picture of this graph, in which it is node "10"."""
    plain = copy.deepcopy(prompt)
    source = plain.pop("10")["inputs"]["model"]
    for other in plain.values():
        other["inputs"] = {name: source if value == ["10", 0] else value for name, value in other["inputs"].items()}
    return bool((server.picture(prompt) != server.picture(plain)).any())


@pytest.mark.parametrize(("text", "strength"), [(HARMLESS, 1.0), (UNSAFE, 0.0)])
def test_harmless_prompt_and_strength_0_give_the_same_picture(server, trained, text, strength):
    assert not differs(server, server.graph(text, model={"strength": strength}))


def test_the_picture_is_that_of_sanitize_conditioning(server, trained):
    by_model = server.picture(server.graph(UNSAFE, model={}))
    assert (by_model == server.picture(server.graph(UNSAFE, conditioning={}))).all()


def test_what_is_sanitized_already_is_left_as_it_is(server, trained):
    prompt = server.graph(UNSAFE, conditioning={})
    alone = server.picture(prompt)
    inputs = {key: prompt["10"]["inputs"][key] for key in ("sanitizer", "strength", "threshold")}
    prompt["11"] = node("ESSanitizeModel", model=["1", 0], **inputs)
    prompt["5"]["inputs"]["model"] = ["11", 0]
    assert (server.picture(prompt) == alone).all()


@pytest.mark.parametrize(("cfg", "expected"), [(7.0, False), (1.0, False), (0.0, True)])
def test_an_unsafe_negative_prompt_is_sanitized_where_it_is_drawn(server, trained, cfg, expected):
    assert (
        differs(server, server.graph(HARMLESS, negative=UNSAFE, values={"KSampler": {"cfg": cfg}}, model={}))
        is expected
    )


JOINED = {
    "combined": ("ConditioningCombine", {"conditioning_1": ["20", 0], "conditioning_2": ["2", 0]}),
    "concatenated": ("ConditioningConcat", {"conditioning_to": ["20", 0], "conditioning_from": ["2", 0]}),
    "averaged": (
        "ConditioningAverage",
        {"conditioning_to": ["2", 0], "conditioning_from": ["20", 0], "conditioning_to_strength": 0.9},
    ),
    "in an area": (
        "ConditioningSetArea", {"conditioning": ["2", 0], "width": 64, "height": 64, "x": 0, "y": 0, "strength": 1.0},
    ),
    "at a time": ("ConditioningSetTimestepRange", {"conditioning": ["2", 0], "start": 0.0, "end": 0.5}),
}  # fmt: skip


@pytest.mark.parametrize("way", JOINED)
def test_whatever_nodes_make_of_the_prompt_is_sanitized(server, trained, way):
    prompt = server.graph(UNSAFE, model={})
    kind, inputs = JOINED[way]
    prompt["20"] = node("CLIPTextEncode", clip=["1", 1], text=CITY)
    prompt["21"] = node(kind, **inputs)
    prompt["5"]["inputs"]["positive"] = ["21", 0]
    assert differs(server, prompt)


def custom(server, guider, **model):
    """The graph with the custom sampler and this guider."""
    prompt = server.graph(HARMLESS, model=model)
    prompt["30"] = node("CLIPTextEncode", clip=["1", 1], text=UNSAFE)
    prompt["31"] = guider
    prompt["32"] = node("RandomNoise", noise_seed=5)
    prompt["33"] = node("KSamplerSelect", sampler_name="euler")
    prompt["34"] = node("BasicScheduler", model=["10", 0], scheduler="normal", steps=2, denoise=1.0)
    prompt["5"] = node(
        "SamplerCustomAdvanced", noise=["32", 0], guider=["31", 0], sampler=["33", 0], sigmas=["34", 0],
        latent_image=["4", 0],
    )  # fmt: skip
    return prompt


SAFE = {"model": ["10", 0]}
GUIDERS = {
    "basic": node("BasicGuider", **SAFE, conditioning=["30", 0]),
    "cfg": node("CFGGuider", **SAFE, positive=["30", 0], negative=["3", 0], cfg=7.0),
    "dual, first": node(
        "DualCFGGuider", **SAFE, cond1=["30", 0], cond2=["2", 0], negative=["3", 0], cfg_conds=4.0,
        cfg_cond2_negative=4.0, style="regular",
    ),
    "dual, second": node(
        "DualCFGGuider", **SAFE, cond1=["2", 0], cond2=["30", 0], negative=["3", 0], cfg_conds=2.0,
        cfg_cond2_negative=6.0, style="regular",
    ),
    "perp-neg, empty": node(
        "PerpNegGuider", **SAFE, positive=["2", 0], negative=["3", 0], empty_conditioning=["30", 0], cfg=4.0,
        neg_scale=1.0,
    ),
}  # fmt: skip


@pytest.mark.parametrize("guider", GUIDERS)
def test_every_guider_s_prompts_are_sanitized(server, trained, guider):
    assert differs(server, custom(server, GUIDERS[guider]))


def test_a_guider_s_negative_prompt_is_left_alone(server, trained):
    guider = node("CFGGuider", **SAFE, positive=["2", 0], negative=["30", 0], cfg=7.0)
    assert not differs(server, custom(server, guider))


def test_a_prompt_inside_a_patch_of_the_model_is_refused(server, trained):
    """The old Perp-Neg node keeps its prompt in the model, where no guider has it."""
    prompt = server.graph(HARMLESS, model={})
    prompt["30"] = node("CLIPTextEncode", clip=["1", 1], text=UNSAFE)
    for first in (True, False):
        prompt["31"] = node(
            "PerpNeg", model=["1", 0] if first else ["10", 0], empty_conditioning=["30", 0], neg_scale=1.0
        )
        prompt["10"]["inputs"]["model"] = ["31", 0] if first else ["1", 0]
        prompt["5"]["inputs"]["model"] = ["10", 0] if first else ["31", 0]
        assert "brings a conditioning of its own" in server.error(prompt)


def test_patches_on_either_side_change_nothing_of_it(server, trained):
    for first in (True, False):
        prompt = server.graph(UNSAFE, model={})
        prompt["31"] = node("RescaleCFG", model=["1", 0] if first else ["10", 0], multiplier=0.7)
        prompt["32"] = node("PatchModelAddDownscale" if first else "ModelSamplingDiscrete", **(
            {"model": ["31", 0], "block_number": 3, "downscale_factor": 2.0, "start_percent": 0.0, "end_percent": 0.35,
             "downscale_after_skip": True, "downscale_method": "bicubic", "upscale_method": "bicubic"}
            if first else {"model": ["31", 0], "sampling": "eps", "zsnr": False}
        ))  # fmt: skip
        prompt["10"]["inputs"]["model"] = ["32", 0] if first else ["1", 0]
        prompt["5"]["inputs"]["model"] = ["10", 0] if first else ["32", 0]
        assert differs(server, prompt)
