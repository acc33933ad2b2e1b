"""Where the text of a conditioning is, what its keys may hold, and that nothing passes unseen."""

import pytest
import torch


@pytest.fixture(scope="module")
def conditioning(pack):
    return pack("nodes.adapter.conditioning")


@pytest.fixture(scope="module")
def error(pack):
    return pack("sanitizer.errors").SanitizerError


def entry(**extras):
    return [torch.randn(1, 5, 8), {"pooled_output": torch.randn(1, 4), **extras}]


@pytest.mark.parametrize(
    "key",
    [
        "conditioning_llama3", "text_input_ids", "t5xxl_ids", "t5xxl_weights", "conditioning_byt5small",
        "conditioning_mt5xl", "conditioning_lyrics", "reference_latents_text_embeds", "something_new",
    ],
)  # fmt: skip
def test_text_that_is_not_covered_is_an_error_that_names_the_key(conditioning, error, key):
    with pytest.raises(error, match=key):
        conditioning.parts(entry(**{key: torch.randn(1, 3, 8)}))


def stock_object(module, name, base=None):
    """An object of a class that is called as one of ComfyUI's is, or whose base is."""
    if base is not None:
        return type(name, (type(stock_object(module, base)),), {"__module__": "another_pack"})()
    return type(name, (), {"__module__": module})()


class Holder:
    """An object of another pack; what it holds cannot be seen."""


@pytest.mark.parametrize("value", [Holder(), [Holder()], {"a": (1, torch.ones(2).numpy())}])
def test_objects_and_arrays_of_unknown_keys_are_refused(conditioning, error, value):
    with pytest.raises(error, match="'of_another_pack' holds"):
        conditioning.parts(entry(of_another_pack=value))


def test_codes_that_a_text_encoder_made_are_refused_though_they_are_plain_numbers(conditioning, error):
    with pytest.raises(error, match="audio_codes"):
        conditioning.parts(entry(audio_codes=[[1, 2, 3]]))


def test_text_inside_gligen_is_found(conditioning, error):
    gligen = ("position", object(), [(torch.randn(1, 768), 1, 1, 0, 0)])
    with pytest.raises(error, match="gligen"):
        conditioning.parts(entry(gligen=gligen))


def test_pictures_masks_and_numbers_pass(conditioning):
    extras = {
        "mask": torch.ones(1, 8, 8), "concat_latent_image": torch.zeros(1, 4, 8, 8), "guidance": 3.5,
        "prompt_type": "x", "reference_latents": [torch.zeros(1, 4, 8, 8)], "area": (8, 8, 0, 0),
        "control": stock_object("comfy.controlnet", "ControlNet", "ControlBase"),
        "of_another_pack": 2.5, "or_none": None,
        "hooks": stock_object("comfy.hooks", "HookGroup"), "embedding_sanitizer": {"tokens": ["a", "", "boat"]},
        "unclip_conditioning": [{"clip_vision_output": stock_object("comfy.clip_vision", "Output"), "strength": 1.0}],
    }  # fmt: skip
    assert len(conditioning.parts(entry(**extras))) == 1


def test_controlnet_text_is_a_part_of_its_own(conditioning):
    rows, pooled = torch.randn(1, 5, 8), torch.randn(1, 4)
    found = conditioning.parts(entry(cross_attn_controlnet=rows, pooled_output_controlnet=pooled))
    assert [part.keys[0] for part in found] == ["cond", "cross_attn_controlnet"]
    assert found[1].embeddings is rows
    assert found[1].pooled is pooled


def test_pooled_vector_without_rows_is_refused(conditioning, error):
    with pytest.raises(error, match="pooled_output_controlnet"):
        conditioning.parts(entry(pooled_output_controlnet=torch.randn(1, 4)))


NESTED = torch.nested.nested_tensor([torch.randn(2, 8), torch.randn(3, 8)])
NO_TEXTS = [
    None, [[0.5] * 8], torch.randn(1, 5, 8).numpy(), {"a": torch.randn(1, 5, 8)}, "a prompt",
    stock_object("comfy.x", "Y"),
    stock_object("comfy.nested_tensor", "NestedTensor"), NESTED, torch.randn(1, 5, 8).to_sparse(),
    torch.randn(1, 5, 8, device="meta"), torch.zeros(1, 5, 8, dtype=torch.int64), torch.randn(8),
    torch.randn(1, 5, 8).to(torch.complex64),
]  # fmt: skip


@pytest.mark.parametrize("value", NO_TEXTS, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("key", ["cond", "cross_attn_controlnet", "cross_attn_pose", "pooled_output"])
def test_text_that_is_no_plain_tensor_is_refused_by_key(conditioning, error, key, value):
    given = entry() if key == "cond" else entry(**{key: value})
    if key == "cond":
        given[0] = value
    elif value is None:
        return  # a key that is not there
    with pytest.raises(error, match=f"'{key}'"):
        conditioning.parts(given)


def test_a_nested_tensor_is_named(conditioning, error):
    nested = stock_object("comfy.nested_tensor", "NestedTensor")
    with pytest.raises(error, match=r"comfy\.nested_tensor\.NestedTensor"):
        conditioning.parts([nested, {}])


@pytest.mark.parametrize(
    "given", [[torch.randn(1, 5, 8)], [torch.randn(1, 5, 8), None], [torch.randn(1, 5, 8), {}, {}], {}, None, "cond"]
)
def test_a_malformed_entry_is_refused(conditioning, error, given):
    with pytest.raises(error, match="expected an entry"):
        conditioning.parts(given)


@pytest.mark.parametrize("given", [None, {}, "x", torch.randn(1, 5, 8), [], 3])
def test_a_malformed_conditioning_is_refused(conditioning, error, given):
    with pytest.raises(error, match="expected a list of"):
        conditioning.entries(given)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("unknown", "nude woman"), ("unknown", [0.5, 0.1]), ("unknown", {"text": "x"}), ("unknown", torch.ones(1)),
        ("model_conds", {}), ("model_conds", {"c_crossattn": torch.ones(1, 5, 8)}), ("cross_attn", torch.ones(1, 5, 8)),
        ("hooks", torch.ones(1, 5, 8)), ("hooks", object()), ("control", torch.ones(1, 5, 8)), ("strength", "high"),
        ("strength", torch.ones(1, 5, 8)), ("area", ("percentage", "a", "b", "c", "d")), ("area", "a nude woman"),
        ("guidance", torch.ones(1, 5, 8)), ("prompt_type", "a nude woman on a bed"), ("reference_latents", ["text"]),
        ("mask", torch.ones(8, 8)), ("mask", "text"), ("concat_latent_image", torch.ones(5, 8)),
        ("unclip_conditioning", [{"clip_vision_output": torch.ones(1, 5, 8)}]),
        ("clip_vision_output", torch.ones(1, 5, 8)),
        ("unclip_conditioning", [{"text": 1.0}]), ("embedding_sanitizer", {"tokens": [torch.ones(5, 8)]}),
        ("embedding_sanitizer", [1]), ("cond", torch.ones(1, 5, 8)), (3, torch.ones(1, 5, 8)),
        ("embeds", torch.ones(5, 8)),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)  # fmt: skip
def test_a_key_holds_what_the_table_says_and_nothing_else(conditioning, error, key, value):
    with pytest.raises(error, match=f"the key {key!r} holds"):
        conditioning.parts([torch.randn(1, 5, 8), {key: value}])


def masked(values, length=5, visible=3):
    """An entry whose embeddings are zero behind the first `visible`."""
    given = entry(attention_mask=values)
    given[0] = torch.randn(1, length, 8)
    given[0][:, visible:] = 0
    return given


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.int32, torch.uint8, torch.float32, torch.float16])
def test_a_mask_is_trusted_where_the_embeddings_behind_it_are_zero(conditioning, dtype):
    mask = torch.tensor([[1, 1, 0, 0, 0]]).to(dtype)
    assert conditioning.parts(masked(mask, visible=2))[0].mask.tolist() == [[True, True, False, False, False]]
    # The third is masked and holds something, so it counts.
    assert conditioning.parts(masked(mask, visible=3))[0].mask.tolist() == [[True, True, True, False, False]]
    assert conditioning.parts(masked(torch.zeros(1, 5, dtype=dtype), visible=5))[0].mask.all()


def test_a_mask_of_one_prompt_counts_for_a_batch(conditioning):
    given = [torch.zeros(3, 5, 8), {"attention_mask": torch.tensor([[1, 1, 1, 0, 0]])}]
    given[0][1, 4] = 1.0
    assert conditioning.parts(given)[0].mask.tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 0, 1], [1, 1, 1, 0, 0]]


def test_all_counts_where_embeddings_were_joined_on_since_the_mask_was_made(conditioning):
    # Conditioning (Concat) joins rows on and leaves the mask as it was.
    assert conditioning.parts(entry(attention_mask=torch.ones(1, 3)))[0].mask is None


def test_all_counts_where_the_mask_weighs_text_against_a_picture(conditioning):
    bias = torch.full((1, 6, 6), -0.7)
    assert conditioning.parts(entry(attention_mask=bias, attention_mask_img_shape=(1, 1)))[0].mask is None


@pytest.mark.parametrize(
    "mask",
    [
        torch.tensor([[1.0, 1.0, 0.5, 0.0, 0.0]]), torch.tensor([[0.0, 0.0, 0.0, float("-inf"), float("-inf")]]),
        torch.tensor([[0.0, 0.0, 0.0, -1e9, -1e9]]), torch.full((1, 5), float("nan")), torch.full((1, 5), 255),
        torch.tensor([[1.0 + 1e-6] * 5]), torch.ones(1, 6), torch.ones(2, 5), torch.ones(5), torch.ones(1, 1, 5),
        torch.ones(1, 5, 5), [[1, 1, 1, 1, 1]], "11100", torch.ones(1, 5).numpy(), torch.ones(1, 5).to_sparse(),
        torch.ones(1, 5, dtype=torch.complex64), torch.full((1, 3), 0.5), True,
    ],
)  # fmt: skip
def test_other_masks_are_refused(conditioning, error, mask):
    with pytest.raises(error, match="'attention_mask'"):
        conditioning.parts(masked(mask))


def test_entry_of_another_shape_is_refused(conditioning, error):
    with pytest.raises(error, match=r"\(1, 5, 8, 2\)"):
        conditioning.parts([torch.randn(1, 5, 8, 2), {}])


def test_pooled_vector_of_one_for_a_batch(conditioning):
    part = conditioning.parts([torch.randn(3, 5, 8), {"pooled_output": torch.randn(1, 4)}])[0]
    assert part.pooled.shape == (3, 4)


def test_conditioning_without_pooled_vector(conditioning):
    assert conditioning.parts([torch.randn(1, 5, 8), {"pooled_output": None}])[0].pooled is None
