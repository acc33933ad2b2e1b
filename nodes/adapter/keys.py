"""What each key of a conditioning may hold, and what is done with it: one table, which docs/conditioning.md shows.

It was read in the sources of ComfyUI 0.3.64 and 0.33: the nodes and text encoders that set a key, and the models that
read it. A key or a value that is not in the table is refused, save for a single number, which cannot hold a prompt.
"""

import re
from collections.abc import Callable
from enum import StrEnum
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...sanitizer.errors import SanitizerError

RECORD = "embedding_sanitizer"
"""Extra under which Sanitize CLIP sends the tokens along: {"tokens": [str, …]}."""
_NAME = re.compile(r"[\w./+-]{1,40}")


class Fate(StrEnum):
    """What is done with the value of a key."""

    SANITIZED = "sanitized"
    READ = "read as the mask"
    PASSED_ON = "passed on as it is"
    REFUSED = "refused"


class Kind(NamedTuple):
    """What a value may be: the words for it, and the test of it."""

    name: str
    holds: Callable[[Any], bool]


class Row(NamedTuple):
    """Keys that are dealt with alike."""

    keys: tuple[str, ...]
    fate: Fate
    kind: Kind
    made_by: str


def is_plain_tensor(value: Any) -> bool:
    """Whether every number of a tensor can be read: not nested, sparse, quantized or without data, and no subclass
    whose operations are its own."""
    return (
        type(value) in (Tensor, torch.nn.Parameter)
        and not value.is_nested
        and value.layout == torch.strided
        and not value.is_quantized
        and not value.is_meta
    )


def describe(value: Any) -> str:
    """A value for an error, without what it says."""
    if isinstance(value, Tensor) and value.is_nested:
        return "a nested tensor"
    if isinstance(value, Tensor):
        kind = "a tensor" if is_plain_tensor(value) else f"a {value.layout} {type(value).__name__}"
        return f"{kind} of shape {tuple(value.shape)} and {value.dtype}"
    if value is None:
        return "nothing (None)"
    module = type(value).__module__
    name = type(value).__qualname__ if module == "builtins" else f"{module}.{type(value).__qualname__}"
    if isinstance(value, (list, tuple)):
        kinds = sorted({type(item).__name__ for item in value})
        return f"a {name} of {len(value)}" + (f": {', '.join(kinds[:4])}" if kinds else "")
    return f"a {name}"


def _tensor(*ranks: int) -> Kind:
    def holds(value: Any) -> bool:
        return is_plain_tensor(value) and (not ranks or value.ndim in ranks)

    return Kind(f"a tensor of {' or '.join(map(str, ranks))} dimensions" if ranks else "a tensor", holds)


def _list(kind: Kind) -> Kind:
    def holds(value: Any) -> bool:
        return isinstance(value, (list, tuple)) and all(kind.holds(item) for item in value)

    return Kind(f"a list, each item {kind.name}", holds)


def _either(*kinds: Kind) -> Kind:
    return Kind(" or ".join(kind.name for kind in kinds), lambda value: any(kind.holds(value) for kind in kinds))


def _dict(**fields: Kind) -> Kind:
    def holds(value: Any) -> bool:
        return isinstance(value, dict) and all(
            key in fields and (item is None or fields[key].holds(item)) for key, item in value.items()
        )

    return Kind("a dict with " + ", ".join(f"{name} ({kind.name})" for name, kind in fields.items()), holds)


def _object(module: str, name: str) -> Kind:
    """By name, for a class of another version or of the tests' stand-in is another object."""

    def holds(value: Any) -> bool:
        return any((base.__module__, base.__name__) == (module, name) for base in type(value).__mro__)

    return Kind(f"a {module}.{name}", holds)


def _is_area(value: Any) -> bool:
    """4 or 6 numbers, in pixels or, behind the word "percentage", in shares."""
    if not isinstance(value, (list, tuple)):
        return False
    numbers = value[1:] if value[:1] in (("percentage",), ["percentage"]) else value
    return len(numbers) in (4, 6) and all(map(NUMBER.holds, numbers))


NUMBER = Kind("a number", lambda value: isinstance(value, (bool, int, float)))
_ID = Kind("a name of at most 40 letters", lambda value: isinstance(value, str) and bool(_NAME.fullmatch(value)))
_TEXTS = Kind("a list of texts", lambda value: isinstance(value, list) and all(type(item) is str for item in value))
_AREA = Kind('4 or 6 numbers, "percentage" before them or not', _is_area)
_ANY = Kind("anything", lambda _: True)
_VISION = _object("comfy.clip_vision", "Output")
_PICTURE, _VIDEO, _LATENT = _tensor(4), _tensor(4, 5), _tensor(3, 4, 5)


def _row(keys: str, fate: Fate, kind: Kind, made_by: str) -> Row:
    return Row(tuple(keys.split()), fate, kind, made_by)


SANITIZED, READ, PASSED_ON, REFUSED = Fate
TABLE: tuple[Row, ...] = (
    # The text.
    _row("cond", SANITIZED, _tensor(3), "the entry's first item, from every text encoder"),
    _row("pooled_output", SANITIZED, _tensor(2), "text encoders that have one"),
    _row("attention_mask", READ, _tensor(2), "text encoders that pad"),
    _row("cross_attn_controlnet cross_attn_pose", SANITIZED, _tensor(3), "CLIPTextEncodeControlnet, WanAnimate2"),
    _row("pooled_output_controlnet", SANITIZED, _tensor(2), "CLIPTextEncodeControlnet"),
    _row(RECORD, PASSED_ON, _dict(tokens=_TEXTS), "Sanitize CLIP, for Token Score Preview; no model reads it"),
    # When, where and how much.
    _row(
        "strength mask_strength set_area_to_bounds start_percent end_percent clip_start_percent clip_end_percent "
        "default control_apply_to_uncond guidance",
        PASSED_ON, NUMBER, "the stock nodes for area, mask, time, hooks, ControlNet, guidance",
    ),
    _row("area", PASSED_ON, _AREA, "ConditioningSetArea and its like"),
    _row("mask", PASSED_ON, _LATENT, "ConditioningSetMask, hooks"),
    _row("prompt_type reference_latents_method", PASSED_ON, _ID, "guiders, FluxKontextMultiReferenceLatentMethod"),
    _row("hooks", PASSED_ON, _object("comfy.hooks", "HookGroup"), "SetClipHooks, ConditioningSetProperties"),
    _row("control", PASSED_ON, _object("comfy.controlnet", "ControlBase"), "ControlNetApply and its like"),
    # Numbers for one kind of model.
    _row(
        "width height crop_w crop_h target_width target_height aesthetic_score frame_rate fps motion_bucket_id "
        "augmentation_level noise_augmentation seconds_start seconds_total lyrics_strength guiding_frame_index "
        "concat_mask_index audio_inject_scale pose_strength reference_strength ref_mask_flag num_layers_stacked "
        "unprocessed_ltxav_embeds",
        PASSED_ON, NUMBER, "nodes and text encoders of SDXL, PixArt, SVD, LTX, Wan, audio and others",
    ),
    _row("elevation azimuth vace_strength", PASSED_ON, _list(NUMBER), "SV3D, WanVaceToVideo"),
    _row("attention_mask_img_shape", PASSED_ON, _list(NUMBER), "StyleModelApply and its like, beside a mask of 3 "
         "dimensions, which weighs text against picture and hides nothing"),
    _row("degrade_sigma", PASSED_ON, _tensor(1), "PiDConditioning"),
    _row("conditioning_scale", PASSED_ON, _tensor(3), "MiniMaxMusic3TextEncode"),
    _row("minimax_token_tags", PASSED_ON, _tensor(1, 2), "MiniMax H3's text encoder: the kind of each token"),
    # Pictures, videos, sounds.
    _row("concat_latent_image concat_mask", PASSED_ON, _LATENT, "inpainting, InstructPix2Pix, image to video"),
    _row("concat_image stable_cascade_prior lq_latent", PASSED_ON, _PICTURE, "upscaling, Stable Cascade, PiD"),
    _row("unclip_conditioning", PASSED_ON,
         _list(_dict(clip_vision_output=_VISION, strength=NUMBER, noise_augmentation=NUMBER)), "unCLIPConditioning"),
    _row("clip_vision_output clip_vision_output_ref clip_vision_output_pose", PASSED_ON, _VISION, "image to video"),
    _row("clip_vision_outputs", PASSED_ON, _list(_VISION), "TextEncodeZImageOmni"),
    _row("reference_latents reference_audio_timbre_latents context_latents", PASSED_ON, _list(_LATENT),
         "ReferenceLatent, editing models, Bernini"),
    _row(
        "ref_latent reference_motion pose_video_latent face_video_pixels control_video camera_conditions "
        "time_dim_concat time_dim_replace driving_mask_28ch ref_mask_28ch",
        PASSED_ON, _VIDEO, "Wan, HunyuanVideo, Kandinsky",
    ),
    _row("vace_frames vace_mask", PASSED_ON, _list(_VIDEO), "WanVaceToVideo"),
    _row("audio_embed", PASSED_ON, _LATENT, "sound to video"),
    _row("keyframe_idxs", PASSED_ON, _LATENT, "LTXV"),
    _row("guide_attention_entries", PASSED_ON, _list(_dict(
        pre_filter_count=NUMBER, strength=NUMBER, pixel_mask=_tensor(5), latent_shape=_list(NUMBER))), "LTXV"),
    _row("ref_audio", PASSED_ON, _dict(tokens=_tensor(3)), "LTXV"),
    _row("minimax_keyframes", PASSED_ON, _list(_dict(
        resolved_frame_index=NUMBER, latent=_LATENT, audio_latent=_LATENT)), "MiniMax H3"),
    _row("minimax_refs", PASSED_ON, _list(_dict(
        kind=_ID, latent_t=NUMBER, latent_h=NUMBER, latent_w=NUMBER, ref_audio_t=NUMBER, latent=_LATENT,
        audio_latent=_LATENT)), "MiniMax H3"),
    # Text that no sanitizer covers.
    _row("conditioning_llama3", REFUSED, _ANY, "HiDream: embeddings"),
    _row("conditioning_mt5xl attention_mask_mt5xl", REFUSED, _ANY, "HunyuanDiT: embeddings"),
    _row("conditioning_byt5small", REFUSED, _ANY, "HunyuanImage, HunyuanVideo 1.5: embeddings of quoted text"),
    _row("conditioning_lyrics audio_codes", REFUSED, _ANY, "ACE-Step: embeddings of lyrics, codes of the prompt"),
    _row("text_input_ids", REFUSED, _ANY, "HiDream-O1: tokens"),
    _row("t5xxl_ids t5xxl_weights", REFUSED, _ANY, "Anima: tokens"),
    _row("reference_latents_text_embeds", REFUSED, _ANY, "TextEncodeZImageOmni: embeddings"),
    _row("gligen", REFUSED, _ANY, "GLIGENTextBoxApply: embeddings of the boxes' texts"),
    _row("cross_attn model_conds additional_models", REFUSED, _ANY, "the sampler alone; where a node sets one, it "
         "reaches the model in place of what was sanitized"),
    # Models that take no prompt.
    _row("condition", REFUSED, _ANY, "SeedVR2, which takes no prompt"),
    _row(
        "embeds proj_feat_pack trellis2_coords trellis2_coord_counts trellis2_generation_mode trellis2_shape_slat "
        "trellis2_proj_feats trellis2_model_frame",
        REFUSED, _ANY, "Trellis2, which takes no prompt",
    ),
)  # fmt: skip
KEYS: dict[str, Row] = {key: row for row in TABLE for key in row.keys}


def check(extras: dict) -> None:
    """Raises SanitizerError for a key that is refused, and for a value that its key may not hold."""
    for key, value in extras.items():
        row = KEYS.get(key) if isinstance(key, str) else None
        if row is None or key == "cond":
            if value is None or NUMBER.holds(value):
                continue
            raise SanitizerError(
                f"Conditioning: the key {key!r} holds {describe(value)}, which may carry the prompt and which no "
                "sanitizer covers, so it is refused rather than passed on unseen. If another node added it and it "
                "carries no text, put Sanitize Conditioning before that node; if the text encoder made it, this model "
                "is not supported."
            )
        if value is None:
            continue
        if row.fate is REFUSED:
            raise SanitizerError(
                f"Conditioning: the key {key!r} holds {describe(value)} and is refused, since no sanitizer covers it "
                f"(set by {row.made_by}). Use another model or node, or put Sanitize Conditioning before the node that "
                "added it."
            )
        if row.fate is PASSED_ON and not row.kind.holds(value):
            raise SanitizerError(
                f"Conditioning: the key {key!r} holds {describe(value)}, expected {row.kind.name} (as set by "
                f"{row.made_by}). Put Sanitize Conditioning before the node that added it."
            )
