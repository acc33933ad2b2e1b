"""Sanitize Model on a guider's conditionings: what reaches the diffusion model, and what does not."""

import uuid
from types import SimpleNamespace

import pytest
import torch


@pytest.fixture(scope="module")
def module(pack):
    return pack("nodes.sanitize_model")


@pytest.fixture(scope="module")
def error(pack):
    return pack("sanitizer.errors").SanitizerError


@pytest.fixture
def said(module, monkeypatch):
    """What the node said of its samplings."""
    found = []
    monkeypatch.setattr(module, "send", lambda node, message, sanitizer: found.append(message))
    return found


def entry(seed=1, **extras):
    torch.manual_seed(seed)
    return [torch.randn(1, 5, 8), {"pooled_output": torch.randn(1, 4), **extras}]


def converted(entries):
    """As ComfyUI's sampler holds a conditioning."""
    return [extras | {"cross_attn": cond, "model_conds": {}, "uuid": uuid.uuid4()} for cond, extras in entries]


def make_guider(kind=("comfy.samplers", "CFGGuider"), conds=None, **attributes):
    made = type(kind[1], (), {"__module__": kind[0]})()
    made.conds = {name: converted(entries) for name, entries in (conds or {"positive": [entry()]}).items()}
    made.model_options = {}
    vars(made).update({"cfg": 7.0} | attributes)
    return made


def sample(module, sanitizer, guider, strength=1.0, threshold=0.5):
    """The guider's conditionings as the model would get them."""
    guard = module.ModelGuard(sanitizer, strength, threshold, "7")

    class Executor:
        class_obj = guider

        def __call__(self, *args, **kwargs):
            assert (args, kwargs) == (("noise",), {"seed": 3})
            return guider.conds

    with torch.inference_mode():
        return guard.sample(Executor(), "noise", seed=3)


def test_the_positive_prompt_is_sanitized_and_the_negative_one_left_alone(module, loaded, said):
    guider = make_guider(conds={"positive": [entry(area=(8, 8, 0, 0)), entry(2)], "negative": [entry(3)]})
    before = {name: [dict(cond) for cond in conds] for name, conds in guider.conds.items()}
    given = list(guider.conds["positive"])
    out = sample(module, loaded(), guider)
    for old, new in zip(before["positive"], out["positive"], strict=True):
        assert (old["cross_attn"] != new["cross_attn"]).any(dim=-1).all()
        assert not torch.equal(old["pooled_output"], new["pooled_output"])
        assert new["uuid"] == old["uuid"]
    assert out["positive"][0]["area"] == (8, 8, 0, 0)
    assert out["negative"][0]["cross_attn"] is before["negative"][0]["cross_attn"]
    assert [cond["cross_attn"] for cond in given] == [cond["cross_attn"] for cond in before["positive"]]
    [message] = said
    assert message["state"] == "changed"
    assert "Last sampling: Erased nudity" in message["text"]
    assert "negative prompt was left alone" in message["text"]


@pytest.mark.parametrize(("logit", "strength"), [(-4.0, 1.0), (4.0, 0.0)])
def test_harmless_prompt_and_strength_0_reach_the_model_as_they_are(module, loaded, said, logit, strength):
    guider = make_guider()
    [old] = guider.conds["positive"]
    [new] = sample(module, loaded(logit=logit), guider, strength=strength)["positive"]
    assert new["cross_attn"] is old["cross_attn"]
    assert new["pooled_output"] is old["pooled_output"]


CUSTOM, PERPNEG, LT = (f"comfy_extras.nodes_{name}" for name in ("custom_sampler", "perpneg", "lt"))


@pytest.mark.parametrize(
    ("kind", "attributes", "acts"),
    [
        (("comfy.samplers", "CFGGuider"), {"cfg": 1.0}, False),
        (("comfy.samplers", "CFGGuider"), {"cfg": 0.9}, True),
        (("comfy.samplers", "CFGGuider"), {"cfg": 0.0}, True),
        ((CUSTOM, "Guider_DualModel"), {"cfg": 0.5}, True),
        ((CUSTOM, "Guider_DualCFG"), {"cfg1": 0.0, "cfg2": 4.0}, False),
        ((CUSTOM, "Guider_DualCFG"), {"cfg1": 4.0, "cfg2": 0.0}, True),
        ((PERPNEG, "Guider_PerpNeg"), {"cfg": 0.0, "neg_scale": 1.0}, False),
        ((LT, "Guider_LTXAVDualCFG"), {"cfg": 7.0, "video_cfg": 3.0, "audio_cfg": 7.0}, False),
        ((LT, "Guider_LTXAVDualCFG"), {"cfg": 7.0, "video_cfg": 0.0, "audio_cfg": 7.0}, True),
    ],
)
def test_a_negative_prompt_is_sanitized_where_it_would_be_drawn(module, loaded, said, kind, attributes, acts):
    guider = make_guider(kind, {"positive": [entry()], "negative": [entry(2)]}, **attributes)
    old = guider.conds["negative"][0]["cross_attn"]
    assert torch.equal(sample(module, loaded(), guider)["negative"][0]["cross_attn"], old) is not acts


@pytest.mark.parametrize("name", ["middle", "empty_negative_prompt", "of_another_pack"])
def test_every_other_conditioning_of_a_guider_is_sanitized(module, loaded, said, name):
    guider = make_guider(conds={"positive": [entry()], name: [entry(2)]})
    old = guider.conds[name][0]["cross_attn"]
    assert not torch.equal(sample(module, loaded(), guider)[name][0]["cross_attn"], old)


def test_the_text_of_a_controlnet_is_sanitized(module, loaded, said):
    text = torch.randn(1, 5, 8)
    both = {"cross_attn_controlnet": text, "pooled_output_controlnet": torch.randn(1, 4)}
    guider = make_guider(conds={"positive": [entry(**both)]})
    [out] = sample(module, loaded(), guider)["positive"]
    assert not torch.equal(out["cross_attn_controlnet"], text)


def test_an_unsafe_negative_prompt_of_an_unknown_guider_is_refused(module, loaded, said, error):
    kind, conds = ("other.pack", "CFGGuider"), {"positive": [entry()], "negative": [entry(2)]}
    with pytest.raises(error, match=r"guider CFGGuider is not known.* holds nudity"):
        sample(module, loaded(), make_guider(kind, conds))
    guider = make_guider(kind, conds)
    old = guider.conds["negative"][0]["cross_attn"]
    assert sample(module, loaded(logit=-4.0), guider)["negative"][0]["cross_attn"] is old


def test_what_was_sanitized_before_is_not_written_again(module, loaded, run, pack, said):
    sanitizer = loaded()
    node = pack("nodes.sanitize_conditioning").SanitizeConditioning
    done = run(node, conditioning=[entry()], sanitizer=sanitizer, strength=1.0, threshold=0.5).args[0]
    guider = make_guider(conds={"positive": [*done, entry(2)]})
    first, second = sample(module, sanitizer, guider)["positive"]
    assert first["cross_attn"] is done[0][0]
    assert not torch.equal(second["cross_attn"], entry(2)[0])
    assert "1 of the conditionings had been sanitized before" in said[0]["text"]


@pytest.mark.parametrize("change", ["strength", "threshold", "concepts", "file", "bits", "pooled"])
def test_what_was_sanitized_otherwise_is_sanitized_again(module, loaded, run, pack, said, change):
    strength, threshold, first, second = 1.0, 0.5, loaded(), loaded()
    if change == "strength":
        strength = 0.5
    if change == "threshold":
        threshold = 0.6
    if change == "concepts":
        first = loaded(concepts=["nudity"])
    if change == "file":
        first = loaded(name="other")
    node = pack("nodes.sanitize_conditioning").SanitizeConditioning
    [[cond, extras]] = run(node, conditioning=[entry()], sanitizer=first, strength=strength, threshold=threshold).args[
        0
    ]
    if change == "bits":
        cond = cond + 1e-3
    if change == "pooled":
        extras = extras | {"pooled_output": extras["pooled_output"] * 1.1}
    [out] = sample(module, second, make_guider(conds={"positive": [[cond, extras]]}))["positive"]
    assert not torch.equal(out["cross_attn"], cond)


def test_a_claim_in_the_conditioning_is_not_believed(module, loaded, said):
    claimed = entry(embedding_sanitizer={"tokens": ["safe"]})
    [out] = sample(module, loaded(), make_guider(conds={"positive": [claimed]}))["positive"]
    assert not torch.equal(out["cross_attn"], claimed[0])


@pytest.mark.parametrize(
    ("extras", "expected"),
    [
        ({"model_conds": {"c_crossattn": 1}}, "model_conds"),
        ({"conditioning_llama3": torch.zeros(1, 2, 8)}, "conditioning_llama3"),
        ({"cross_attn": None}, "cond"),
        ({"cross_attn": [torch.zeros(1, 5, 8)]}, "cond"),
    ],
)
def test_what_cannot_be_sanitized_stops_the_sampling(module, loaded, said, error, extras, expected):
    guider = make_guider()
    guider.conds["positive"][0] |= extras
    with pytest.raises(error, match=expected):
        sample(module, loaded(), guider)


def test_a_conditioning_that_a_patch_brings_along_does_not_reach_the_model(module, loaded, said, error):
    sanitizer, guider = loaded(), make_guider()
    guard = module.ModelGuard(sanitizer, 1.0, 0.5, None)
    sample(module, sanitizer, guider)
    reached = []

    def predict(conds):
        return guard.predict(lambda *args: reached.append(args[1]), None, conds, None, None, guider.model_options)

    predict([guider.conds["positive"], None])
    assert len(reached) == 1
    for foreign in (converted([entry(2)]), [{"model_conds": {}}]):
        with pytest.raises(error, match="brings a conditioning of its own"):
            predict([guider.conds["positive"], foreign])
    assert len(reached) == 1


def test_nothing_is_kept_of_what_was_forgotten(pack, loaded):
    written, conditioning = pack("nodes.adapter.written"), pack("nodes.adapter.conditioning")
    how = written.How("file", frozenset({"nudity"}), 1.0, 0.5)
    known = written.Written(kept=2)
    parts = [conditioning.parts(entry(seed))[0] for seed in range(3)]
    for part in parts:
        known.add(part, part, how)
    assert [known.covers(part, how) for part in parts] == [False, True, True]


def test_the_model_that_goes_in_stays_as_it_was(module, loaded, run):
    class Patcher:
        def __init__(self):
            self.wrappers = []

        def clone(self):
            return Patcher()

        def add_wrapper_with_key(self, kind, key, wrapper):
            self.wrappers.append((kind, key))

    model = Patcher()
    out = run(module.SanitizeModel, model=model, sanitizer=loaded(), strength=1.0, threshold=0.5)
    assert model.wrappers == []
    kinds = {kind for kind, _ in out.args[0].wrappers}
    assert kinds == {"outer_sample", "calc_cond_batch"}
    assert "nudity, violence" in out.ui["embedding_sanitizer"][0]["text"]


def test_every_guider_of_comfyui_is_known(pack, stock):
    """A guider that samples in a way of its own is in the table; those that it does not hold are refused."""
    import importlib
    import pkgutil

    sampling = pack("nodes.adapter.sampling")
    base = stock("comfy.samplers").CFGGuider
    extras = importlib.import_module("comfy_extras")
    for found in pkgutil.iter_modules(extras.__path__):
        if found.name.removeprefix("nodes_") in ("custom_sampler", "perpneg", "lt"):
            importlib.import_module(f"comfy_extras.{found.name}")
    kinds = {base, *base.__subclasses__()}
    ours = {(kind.__module__, kind.__name__) for kind in kinds if kind.__module__.startswith("comfy")}
    assert ours <= sampling.GUIDANCE.keys() | {("comfy_extras.nodes_train", "TrainGuider")}
    assert sampling.negative_acts(SimpleNamespace()) is None
