"""Write a checkpoint that ComfyUI takes for Stable Diffusion 1.5: random weights, full CLIP-L, a UNet of two blocks.

Run: python tiny_checkpoint.py COMFYUI_PATH OUTPUT.safetensors
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

UNET = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320, "num_res_blocks": [1],
    "channel_mult": [1], "num_heads": 8, "use_spatial_transformer": True, "transformer_depth": [1],
    "transformer_depth_output": [1, 1], "transformer_depth_middle": 1, "context_dim": 768,
    "use_linear_in_transformer": False, "legacy": False, "adm_in_channels": None, "use_temporal_attention": False,
}  # fmt: skip
VAE = {
    "double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128,
    "ch_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0,
}  # fmt: skip


def write(path: Path) -> None:
    """About 0.5 GB, float16. ComfyUI must be importable."""
    import comfy.ops
    from comfy.ldm.models.autoencoder import AutoencoderKL
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
    from comfy.sd1_clip import SD1ClipModel

    operations = comfy.ops.disable_weight_init
    torch.manual_seed(0)
    parts = {
        "model.diffusion_model.": UNetModel(**UNET, operations=operations, dtype=torch.float32, device="cpu"),
        "first_stage_model.": AutoencoderKL(ddconfig=VAE, embed_dim=4),
        "cond_stage_model.": SD1ClipModel(device="cpu", dtype=torch.float32),
    }
    tensors = {}
    for prefix, module in parts.items():
        for name, tensor in module.state_dict().items():
            name = name.replace("clip_l.transformer.", "transformer.")
            if "logit_scale" in name or "text_projection" in name or "position_ids" in name:
                continue
            tensors[prefix + name] = random_weight(prefix + name, tensor)
    save_file(tensors, str(path))


def random_weight(name: str, tensor: torch.Tensor) -> torch.Tensor:
    if not tensor.is_floating_point():
        return tensor.clone()
    if tensor.ndim == 1:
        value = torch.ones if name.endswith("weight") else torch.zeros
        return value(tensor.shape, dtype=torch.float16)
    # Token embeddings must stand out from what the random layers add, or all prompts look alike.
    fan_in = tensor[0].numel() if "embedding" not in name else 1
    return (torch.randn(tensor.shape) * fan_in**-0.5).to(torch.float16)


if __name__ == "__main__":
    sys.path.insert(0, sys.argv[1])
    import comfy.options

    output = Path(sys.argv[2])
    sys.argv = [sys.argv[0], "--cpu"]
    comfy.options.enable_args_parsing()
    write(output)
