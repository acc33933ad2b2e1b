"""ComfyUI's own composite text encoders with few layers and random weights."""

import torch

CLIP_CONFIG = {"num_hidden_layers": 3, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}
T5_CONFIG = {"num_layers": 1, "d_model": 32, "d_ff": 64, "d_kv": 8, "num_heads": 4}
OPTIONS = {
    "clip_l_model_config": CLIP_CONFIG,
    "clip_g_model_config": CLIP_CONFIG,
    "t5xxl_model_config": T5_CONFIG,
    "umt5xxl_model_config": T5_CONFIG,
}


def make(kind):
    import comfy.sd
    import comfy.text_encoders.flux as flux
    import comfy.text_encoders.pixart_t5 as pixart
    import comfy.text_encoders.sd3_clip as sd3
    import comfy.text_encoders.wan as wan
    from comfy import sd1_clip, sdxl_clip

    class WanPieces(sd3.T5XXLTokenizer):
        """Wan's own vocabulary comes with its checkpoint; its 512 rows do not depend on it."""

        def __init__(self, embedding_directory=None, tokenizer_data={}):  # noqa: B006 - as in ComfyUI
            super().__init__(embedding_directory, tokenizer_data, min_length=512)
            self.embedding_key = "umt5xxl"

    class WanTokenizer(sd1_clip.SD1Tokenizer):
        def __init__(self, embedding_directory=None, **_options):
            super().__init__(embedding_directory, clip_name="umt5xxl", tokenizer=WanPieces)

    models = {
        "sd15": (sd1_clip.SD1ClipModel, sd1_clip.SD1Tokenizer),
        "sdxl": (sdxl_clip.SDXLClipModel, sdxl_clip.SDXLTokenizer),
        "sd3": (sd3.SD3ClipModel, sd3.SD3Tokenizer),
        "flux": (flux.FluxClipModel, flux.FluxTokenizer),
        "t5": (pixart.PixArtT5XXL, pixart.PixArtTokenizer),
        "wan": (wan.WanT5Model, WanTokenizer),
    }

    class Target:
        params: dict = {}  # noqa: RUF012
        clip, tokenizer = models[kind]

    # SD3 pads its CLIP rows to T5's 4096 channels.
    width = {"t5xxl_model_config": T5_CONFIG | {"d_model": 4096}} if kind == "sd3" else {}
    clip = comfy.sd.CLIP(Target, embedding_directory=None, model_options=OPTIONS | width)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in clip.cond_stage_model.parameters():
            matrix = parameter.ndim > 1
            parameter.copy_(torch.randn(parameter.shape) * (0.05 if matrix else 0.01) + (0 if matrix else 1))
    return clip
