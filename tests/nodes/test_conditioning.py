"""Which keys of a conditioning carry text, and that nothing passes unseen or is changed in place."""

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
        "control": object(), "lyrics": "la la", "of_another_pack": {"size": [1, 2.5, None], "on": True},
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


def test_mask_counts_only_where_it_fits(conditioning):
    fits = conditioning.parts(entry(attention_mask=torch.tensor([[1, 1, 1, 0, 0]])))[0]
    assert fits.mask.tolist() == [[True, True, True, False, False]]
    # Conditioning (Concat) joins rows on and leaves the mask as it was.
    assert conditioning.parts(entry(attention_mask=torch.ones(1, 3)))[0].mask is None


def test_entry_of_another_shape_is_refused(conditioning, error):
    with pytest.raises(error, match=r"\(1, 5, 8, 2\)"):
        conditioning.parts([torch.randn(1, 5, 8, 2), {}])


def test_pooled_vector_of_one_for_a_batch(conditioning):
    part = conditioning.parts([torch.randn(3, 5, 8), {"pooled_output": torch.randn(1, 4)}])[0]
    assert part.pooled.shape == (3, 4)


def test_conditioning_without_pooled_vector(conditioning):
    assert conditioning.parts([torch.randn(1, 5, 8), {"pooled_output": None}])[0].pooled is None
