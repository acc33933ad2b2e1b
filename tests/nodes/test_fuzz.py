"""Whatever a conditioning holds: an error that says why, or every text of it scored and, where unsafe, written.

FUZZ_EXAMPLES=20000 runs more cases than the few hundred of every day.
"""

import copy
import os
from types import SimpleNamespace

import numpy
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

settings.register_profile(
    "conditionings", max_examples=int(os.environ.get("FUZZ_EXAMPLES", "300")), deadline=None, database=None,
    derandomize="FUZZ_EXAMPLES" not in os.environ, suppress_health_check=list(HealthCheck),
)  # fmt: skip
PROFILE = settings.get_profile("conditionings")
ROWS = 16
UNSAFE, SAFE = "a nude woman on a bed", "a red boat on a lake"


@pytest.fixture(scope="module")
def world(pack, trained, encoded):
    conditioning = pack("nodes.adapter.conditioning")
    with pytest.MonkeyPatch.context() as patch:
        # Drawing takes most of the time.
        patch.setattr(pack("nodes.token_score_preview"), "_picture", lambda _: torch.zeros(1, 8, 8, 3))
        yield _world(pack, trained, encoded, conditioning)


def _world(pack, trained, encoded, conditioning):
    model = trained.patcher.model
    texts = {text: encoded(text)[0][0][:, :ROWS].clone() for text in (UNSAFE, SAFE)}
    verdicts = {text: bool(model.sanitize(tensor, concepts=trained.concepts).flagged) for text, tensor in texts.items()}
    assert verdicts == {UNSAFE: True, SAFE: False}
    return SimpleNamespace(
        error=pack("sanitizer.errors").SanitizerError, texts=texts, trained=trained, conditioning=conditioning,
        keys=pack("nodes.adapter.keys"), sanitize=pack("nodes.sanitize_conditioning").SanitizeConditioning,
        preview=pack("nodes.token_score_preview").TokenScorePreview,
    )  # fmt: skip


class Opaque:
    pass


def of_class(module, name):
    return type(name, (), {"__module__": module})()


def mostly(usual, others, share=6):
    """The usual value, and one time in `share` another: a case with many faults tells no more than one with few."""
    return st.integers(1, share).flatmap(lambda drawn: others if drawn == share else st.just(usual))


def texts():
    """A name of one of the two texts, and what was done to its tensor."""
    forms = [
        "as it is", "float16", "bfloat16", "float64", "int64", "nan", "inf", "batch of 3", "batch with the other",
        "no rows", "rank 2", "rank 4", "other width", "list", "numpy", "dict", "none", "string", "object", "nested",
        "torch nested", "sparse", "meta", "complex", "scaled 1.01", "requires grad", "not contiguous", "expanded",
        "float8",
    ]  # fmt: skip
    return st.tuples(st.sampled_from([UNSAFE, SAFE]), mostly("as it is", st.sampled_from(forms)))


def made(world, name, form):
    tensor = world.texts[name].clone()
    other = world.texts[SAFE if name == UNSAFE else UNSAFE]
    return {
        "as it is": lambda: tensor,
        "float16": tensor.half,
        "bfloat16": tensor.bfloat16,
        "float64": tensor.double,
        "int64": tensor.long,
        "float8": lambda: tensor.to(torch.float8_e4m3fn),
        "nan": lambda: tensor.index_fill(1, torch.tensor([2]), float("nan")),
        "inf": lambda: tensor.index_fill(1, torch.tensor([2]), float("inf")),
        "batch of 3": lambda: tensor.repeat(3, 1, 1),
        "batch with the other": lambda: torch.cat([other, tensor]),
        "no rows": lambda: tensor[:, :0],
        "rank 2": lambda: tensor[0],
        "rank 4": lambda: tensor[None],
        "other width": lambda: tensor[..., :-1],
        "list": tensor.tolist,
        "numpy": tensor.numpy,
        "dict": lambda: {"cond": tensor},
        "none": lambda: None,
        "string": lambda: name,
        "object": Opaque,
        "nested": lambda: of_class("comfy.nested_tensor", "NestedTensor"),
        "torch nested": lambda: torch.nested.nested_tensor([tensor[0], tensor[0][:2]]),
        "sparse": tensor.to_sparse,
        "meta": lambda: tensor.to("meta"),
        "complex": lambda: tensor.to(torch.complex64),
        "scaled 1.01": lambda: tensor * 1.01,
        "requires grad": lambda: tensor.requires_grad_(),
        "not contiguous": lambda: tensor.transpose(1, 2).contiguous().transpose(1, 2),
        "expanded": lambda: tensor.expand(2, -1, -1),
    }[form]()


def masks():
    values = st.one_of(
        st.just([0] * ROWS), st.just([1] * ROWS), st.lists(st.sampled_from([0, 1]), min_size=1, max_size=ROWS + 2),
        st.lists(st.sampled_from([0.0, 1.0, 0.5, -1e9, float("-inf"), float("nan"), 255.0]), min_size=ROWS,
                 max_size=ROWS),
    )  # fmt: skip
    dtypes = st.sampled_from([torch.float32, torch.float16, torch.int64, torch.bool, torch.uint8, torch.float64])
    return st.tuples(values, dtypes, mostly(1, st.sampled_from([0, 2, 3])))


def mask_of(drawn):
    values, dtype, rank = drawn
    plain = dtype in (torch.int64, torch.bool, torch.uint8)
    mask = torch.tensor([int(abs(v) > 0) if plain and v in (0, 1) else (2 if plain else v) for v in values]).to(dtype)
    return {0: mask.tolist(), 1: mask[None], 2: mask, 3: mask[None, None]}[rank]


def other_values():
    """Of further keys, known and unknown."""
    leaf = st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=30), st.binary(max_size=4),
        st.sampled_from([
            Opaque(), torch.ones(1, 4, 8, 8), torch.ones(1, 3, 4), torch.ones(2), numpy.ones(3), UNSAFE, (8, 8, 0, 0),
            ("percentage", 0.5, 0.5, 0, 0), of_class("comfy.hooks", "HookGroup"),
            of_class("comfy.clip_vision", "Output"),
            of_class("comfy.controlnet", "ControlBase"), {"tokens": ["a", "boat"]}, {"tokens": None}, {"tokens": 3}, {},
        ]),
    )  # fmt: skip
    return st.recursive(leaf, lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.tuples(inner, inner), st.dictionaries(st.text(max_size=8), inner, max_size=2)
    ), max_leaves=4)  # fmt: skip


@st.composite
def conditionings(draw, key_names):
    """Recipes of conditionings: the tensors are made from them in the test."""
    keys = st.one_of(st.sampled_from(key_names), st.text(max_size=10), st.integers(), st.none())
    entry = st.fixed_dictionaries({
        "cond": texts(),
        "mask": mostly(None, masks(), 2),
        "controlnet": mostly(None, texts(), 3),
        "pose": mostly(None, texts(), 3),
        "pooled": mostly(None, texts(), 12),
        "smuggled": mostly(None, st.tuples(keys, texts()), 8),
        "others": mostly({}, st.dictionaries(keys, other_values(), max_size=2), 4),
        "form": mostly("list", st.sampled_from(
            ["tuple", "one item", "three items", "extras none", "extras list", "none"]), 12),
    })  # fmt: skip
    count = draw(st.sampled_from([1, 1, 1, 1, 2, 2, 3, 0]))
    entries = draw(st.lists(entry, min_size=count, max_size=count))
    return entries, draw(mostly("list", st.sampled_from(["tuple", "dict", "none"]), 20))


def build(world, recipe):
    entries, form = recipe
    found = []
    for drawn in entries:
        extras = dict(drawn["others"])
        for key, value in (("cross_attn_controlnet", drawn["controlnet"]), ("cross_attn_pose", drawn["pose"])):
            if value:
                extras[key] = made(world, *value)
        if drawn["pooled"]:
            extras["pooled_output"] = made(world, *drawn["pooled"])
        if drawn["mask"]:
            extras["attention_mask"] = mask_of(drawn["mask"])
        if drawn["smuggled"]:
            extras[drawn["smuggled"][0]] = made(world, *drawn["smuggled"][1])
        cond = made(world, *drawn["cond"])
        found.append({
            "list": [cond, extras], "tuple": (cond, extras), "one item": [cond], "three items": [cond, extras, {}],
            "extras none": [cond, None], "extras list": [cond, [extras]], "none": None,
        }[drawn["form"]])  # fmt: skip
    return {"list": found, "tuple": tuple(found), "dict": dict(enumerate(found)), "none": None}[form]


def same(a, b):
    """Whether two texts are the same, bit for bit."""
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)


TEXTS = ("cross_attn_controlnet", "cross_attn_pose", "pooled_output", "pooled_output_controlnet")


def check_output(world, before, after):
    """Every text of an output is harmless as it is, or was written; nothing else carries one."""
    model, concepts = world.trained.patcher.model, world.trained.concepts
    assert len(after) == len(before)
    for (cond, extras), (old, old_extras) in zip(after, before, strict=True):
        assert extras.keys() == old_extras.keys()
        embeddings = [(cond, old)]
        embeddings += [(extras[key], old_extras[key]) for key in TEXTS if extras.get(key) is not None]
        for new, raw in embeddings:
            # Scored anew without its mask, so that one cannot hide it.
            flagged = model.sanitize(raw, None, None, concepts=concepts).flagged
            for index in range(raw.shape[0]):
                zeros = (raw[index] == 0).all(dim=-1)
                if flagged[index]:
                    assert not same(new[index], raw[index]), "an unsafe text passed"
                    written = (new[index] != raw[index]).any(dim=-1)
                    assert int((~(written | zeros)).sum()) <= 1, "all but the start token"
                else:
                    assert same(new[index], raw[index]), "a harmless text was changed"
        for key, value in old_extras.items():
            if key not in TEXTS:
                assert extras[key] is value
                assert not holds_text(world, value) or world.keys.KEYS[key].kind.holds(value)


def holds_text(world, value):
    if isinstance(value, dict):
        return any(holds_text(world, item) for item in value.values())
    if isinstance(value, (list, tuple)):
        return any(holds_text(world, item) for item in value)
    return torch.is_tensor(value) or (isinstance(value, str) and UNSAFE in value) or isinstance(value, numpy.ndarray)


def run_case(world, run, recipe):
    """ "refused" or "passed", for the counts."""
    conditioning = build(world, recipe)
    inputs = {"sanitizer": world.trained, "strength": 1.0, "threshold": 0.5}
    given_too = copy.copy(conditioning)
    try:
        out = run(world.sanitize, conditioning=conditioning, **inputs)
    except world.error as refused:
        assert len(str(refused)) > 40 and "\n" not in str(refused)
        with pytest.raises(world.error):
            run(world.preview, conditioning=conditioning, sanitizer=world.trained)
        return "refused"
    assert conditioning is None or len(given_too) == len(conditioning)
    check_output(world, conditioning, out.args[0])
    [message] = out.ui["embedding_sanitizer"]
    changed = any(not same(new[0], old[0]) or any(
        key in TEXTS and old[1][key] is not None and not same(new[1][key], old[1][key]) for key in old[1]
    ) for new, old in zip(out.args[0], conditioning, strict=True))  # fmt: skip
    assert (message["state"] == "changed") is changed
    shown = run(world.preview, conditioning=conditioning, sanitizer=world.trained)
    assert shown.args[4] is changed
    for prompt in shown.ui["embedding_sanitizer"][0]["prompts"]:
        framed = any(word["framed"] for word in prompt["words"])
        assert (prompt["state"] == "harmless") is not (framed or prompt["flagged"])
        assert ("Harmless" in prompt["text"]) is (prompt["state"] == "harmless")
    return "passed"


def test_every_conditioning_is_refused_or_sanitized(world, run):
    counts = {"refused": 0, "passed": 0}

    @settings(PROFILE)
    @given(recipe=conditionings(sorted(world.keys.KEYS)))
    def case(recipe):
        counts[run_case(world, run, recipe)] += 1

    case()
    print(f"\nfuzz over conditionings: {counts}")
    assert min(counts.values()) > 0.05 * sum(counts.values()), counts


@pytest.mark.parametrize("place", ["cond", "second entry", "batch", "controlnet", "pose", "masked", "float16"])
def test_the_unsafe_text_is_found_in_each_place(world, run, place):
    unsafe, safe = world.texts[UNSAFE], world.texts[SAFE]
    conditioning = {
        "cond": [[unsafe, {}]],
        "second entry": [[safe, {}], [unsafe, {}]],
        "batch": [[torch.cat([safe, unsafe]), {}]],
        "controlnet": [[safe, {"cross_attn_controlnet": unsafe}]],
        "pose": [[safe, {"cross_attn_pose": unsafe}]],
        "masked": [[unsafe, {"attention_mask": torch.zeros(1, ROWS)}]],
        "float16": [[unsafe.half(), {}]],
    }[place]
    out = run(world.sanitize, conditioning=conditioning, sanitizer=world.trained, strength=1.0, threshold=0.5)
    assert out.ui["embedding_sanitizer"][0]["state"] == "changed"
    check_output(world, conditioning, out.args[0])
