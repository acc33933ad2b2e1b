"""CONDITIONING <-> tensors: which keys of an entry carry text, and how an entry is copied with other values.

A conditioning is a list of `[cond, extras]`, cond (B, L, D). Nothing in it is ever changed in place.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import torch
from torch import Tensor

from ...sanitizer.errors import SanitizerError
from ...sanitizer.model.sanitizer import Sanitized

RECORD = "embedding_sanitizer"
"""Extra under which Sanitize CLIP sends the tokens along: {"tokens": [str, …]}."""

PARTS = (("cond", "attention_mask", "pooled_output"), ("cross_attn_controlnet", None, "pooled_output_controlnet"))
"""Names of embeddings, mask and pooled vector that belong together. "cond" is the entry's first item."""

NO_TEXT = frozenset(
    """
    area mask mask_strength set_area_to_bounds strength start_percent end_percent clip_start_percent clip_end_percent
    width height crop_w crop_h target_width target_height aesthetic_score timestep_start timestep_end
    hooks control control_apply_to_uncond default guidance seed uuid model_conds
    concat_latent_image concat_mask concat_mask_index concat_image noise_concat denoise_mask noise_augmentation noise
    unclip_conditioning clip_vision_output clip_vision_output_ref stable_cascade_prior augmentation_level
    reference_latents reference_latent reference_latents_method ref_latents_method ref_latent ref_latents
    latent_image latent_shapes frame_rate fps motion_bucket_id num_video_frames keyframe_idxs guiding_frame_index
    generated_keyframes guide_attention_entries elevation azimuth camera_conditions camera_info aspect_ratio
    vace_frames vace_mask vace_strength time_dim_concat time_dim_replace reference_motion pose_video_latent
    pose_strength face_video_pixels control_video control_type driving_mask_28ch ref_mask_28ch ref_mask_flag
    context_latents audio_embed audio_feature audio_inject_scale ref_audio reference_audio_timbre_latents
    reference_strength attention_mask_img_shape image_only_indicator seconds_start seconds_total lq_latent grid_mask
    lyrics_strength patch_size trellis2_shape_slat trellis2_coords trellis2_coord_counts
    clip_vision_outputs clip_vision_output_pose degrade_sigma minimax_keyframes minimax_refs minimax_token_tags
    """.split()  # noqa: SIM905, a list of names in words reads best
)
"""Keys of ComfyUI's own nodes whose tensors hold pictures, latents, sound, masks or numbers."""

CODES = frozenset({"audio_codes"})
"""Keys under which a text encoder hands on the prompt's meaning as plain numbers."""


@dataclass
class Summary:
    """What sanitizing did to a conditioning, for the line that a node shows of itself."""

    prompts: int = 0
    flagged: int = 0
    rows: int = 0
    changed: int = 0
    fired: list[str] = field(default_factory=list)
    highest: float = 0.0
    """Highest prompt score of a chosen concept."""


@dataclass(frozen=True)
class Part:
    """Embeddings (B, L, D), mask (B, L) bool or None, pooled (B, P) or None, and the keys that they came from."""

    keys: tuple[str, str | None, str]
    embeddings: Tensor
    mask: Tensor | None
    pooled: Tensor | None


def parts(entry: list) -> list[Part]:
    """The text of an entry. Raises SanitizerError for a value that may carry text and is not covered."""
    cond, extras = entry[0], entry[1]
    _check_covered(extras)
    values = {**extras, "cond": cond}
    found = []
    for key, mask_key, pooled_key in PARTS:
        embeddings = values.get(key)
        if not torch.is_tensor(embeddings):
            if torch.is_tensor(values.get(pooled_key)):
                raise SanitizerError(f"Conditioning: found {pooled_key!r} without {key!r}, expected both or none.")
            continue
        if embeddings.ndim != 3:
            raise SanitizerError(
                f"Conditioning: expected {key!r} of shape (batch, rows, channels), found {tuple(embeddings.shape)}. "
                "This kind of conditioning cannot be sanitized; put Sanitize Conditioning behind a text encode node."
            )
        mask = _mask(values.get(mask_key) if mask_key else None, embeddings)
        pooled = values.get(pooled_key)
        if torch.is_tensor(pooled) and pooled.ndim == 2 and pooled.shape[0] == 1 < embeddings.shape[0]:
            pooled = pooled.expand(embeddings.shape[0], -1)
        found.append(Part((key, mask_key, pooled_key), embeddings, mask, pooled if torch.is_tensor(pooled) else None))
    return found


def sanitize_entry(entry: list, apply: Callable[[Part], Sanitized]) -> tuple[list, list[Sanitized]]:
    """A copy of the entry with every text part replaced by what `apply` makes of it, and its results.

    A part that `apply` left as it was keeps its very tensors.
    """
    cond, extras = entry[0], entry[1].copy()
    results = []
    for part in parts(entry):
        result = apply(part)
        results.append(result)
        if not bool(result.changed.any()):
            continue
        key, _, pooled_key = part.keys
        if key == "cond":
            cond = result.embeddings
        else:
            extras[key] = result.embeddings
        if result.pooled is not None:
            extras[pooled_key] = result.pooled
    return [cond, extras], results


def _mask(mask: Any, embeddings: Tensor) -> Tensor | None:
    """(B, L) bool, or None where there is none or others were joined on since it was made: then all count."""
    if not torch.is_tensor(mask) or mask.ndim != 2 or mask.shape[1] != embeddings.shape[1]:
        return None
    if mask.shape[0] not in (1, embeddings.shape[0]):
        return None
    return (mask != 0).expand(embeddings.shape[0], -1)


def _check_covered(extras: dict) -> None:
    covered = {key for keys in PARTS for key in keys if key}
    for key, value in extras.items():
        if key in covered or key in NO_TEXT or key == RECORD or (key not in CODES and _is_plain(value)):
            continue
        raise SanitizerError(
            f"Conditioning: the key {key!r} holds a {type(value).__name__} that may carry the prompt and that no "
            "sanitizer covers, so it is refused rather than passed on unseen. If another node added it and it carries "
            "no text, put Sanitize Conditioning before that node; if the text encoder made it, this model is not "
            "supported."
        )


def _is_plain(value: Any) -> bool:
    """Whether a value cannot hold an embedding: numbers and names. Arrays and objects of unknown kinds can."""
    if value is None or isinstance(value, (bool, int, float, str, bytes, Enum)):
        return True
    if isinstance(value, dict):
        return all(_is_plain(item) for item in value.values())
    return isinstance(value, (list, tuple, set)) and all(_is_plain(item) for item in value)
