"""ComfyUI's own composite text encoders with few layers and random weights."""

import base64
import json
from contextlib import suppress
from importlib import import_module
from io import BytesIO

import pytest
import torch

CLIP_CONFIG = {"num_hidden_layers": 3, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}
T5_CONFIG = {"num_layers": 1, "d_model": 32, "d_ff": 64, "d_kv": 8, "num_heads": 4}
LLAMA_CONFIG = {
    "num_hidden_layers": 4, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2,
    "num_key_value_heads": 1,
}  # fmt: skip
# FLUX.2 puts out layers 10, 20 and 30, FLUX.2 Klein layers 9, 18 and 27, Ideogram 4 and Krea 2 more of them.
DEEP_CONFIG = LLAMA_CONFIG | {"num_hidden_layers": 36}
OPTIONS = {
    f"{name}_model_config": config
    for config, names in (
        (CLIP_CONFIG, "clip_l clip_g clip_h"),
        (T5_CONFIG, "t5xxl umt5xxl pile_t5xl t5base"),
        (LLAMA_CONFIG, "qwen25_7b qwen25_3b qwen3_2b qwen3_06b gemma2_2b ministral3_3b"),
        (DEEP_CONFIG, "qwen3_4b qwen3vl_4b qwen3vl_8b mistral3_24b"),
    )
    for name in names.split()
}
MODELS = {
    "sd15": ("comfy.sd1_clip", "SD1ClipModel", "SD1Tokenizer"),
    "sd2": ("comfy.text_encoders.sd2_clip", "SD2ClipModel", "SD2Tokenizer"),
    "sdxl": ("comfy.sdxl_clip", "SDXLClipModel", "SDXLTokenizer"),
    "sdxl_refiner": ("comfy.sdxl_clip", "SDXLRefinerClipModel", "SDXLTokenizer"),
    "sd3": ("comfy.text_encoders.sd3_clip", "SD3ClipModel", "SD3Tokenizer"),
    "flux": ("comfy.text_encoders.flux", "FluxClipModel", "FluxTokenizer"),
    "t5": ("comfy.text_encoders.pixart_t5", "PixArtT5XXL", "PixArtTokenizer"),
    "wan": ("comfy.text_encoders.wan", "WanT5Model", None),
    "aura_flow": ("comfy.text_encoders.aura_t5", "AuraT5Model", "AuraT5Tokenizer"),
    "stable_audio": ("comfy.text_encoders.sa_t5", "SAT5Model", "SAT5Tokenizer"),
    "cosmos": ("comfy.text_encoders.cosmos", "te()", "CosmosT5Tokenizer"),
    "mochi": ("comfy.text_encoders.genmo", "mochi_te()", "MochiT5Tokenizer"),
    "ltxv": ("comfy.text_encoders.lt", "ltxv_te()", "LTXVT5Tokenizer"),
    "qwen_image": ("comfy.text_encoders.qwen_image", "te()", "QwenImageTokenizer"),
    "hunyuan_image": ("comfy.text_encoders.hunyuan_image", "te(byt5=False)", "HunyuanImageTokenizer"),
    "omnigen2": ("comfy.text_encoders.omnigen2", "te()", "Omnigen2Tokenizer"),
    "z_image": ("comfy.text_encoders.z_image", "te()", "ZImageTokenizer"),
    "klein": ("comfy.text_encoders.flux", "klein_te()", "KleinTokenizer"),
    "kandinsky5": ("comfy.text_encoders.kandinsky5", "te()", "Kandinsky5Tokenizer"),
    "longcat": ("comfy.text_encoders.longcat_image", "te()", "LongCatImageTokenizer"),
    "ovis": ("comfy.text_encoders.ovis", "te()", "OvisTokenizer"),
    "cogvideo": ("comfy.text_encoders.cogvideo", "cogvideo_te()", "CogVideoXTokenizer"),
    "lumina2": ("comfy.text_encoders.lumina2", "te()", "LuminaTokenizer"),
    "pixeldit": ("comfy.text_encoders.pixeldit", "pixeldit_te()", "PixelDiTGemma2Tokenizer"),
    "ideogram4": ("comfy.text_encoders.ideogram4", "te()", "Ideogram4Tokenizer"),
    "krea2": ("comfy.text_encoders.krea2", "te()", "Krea2Tokenizer"),
    "mage_flow": ("comfy.text_encoders.mage_flow", "te()", "MageFlowTokenizer"),
    "boogu": ("comfy.text_encoders.boogu", "te()", "BooguTokenizer"),
    "joyimage": ("comfy.text_encoders.joyimage", "te()", "JoyImageTokenizer"),
    "hunyuan_video15": (
        "comfy.text_encoders.hunyuan_image",
        "te(byt5=False)",
        "comfy.text_encoders.hunyuan_video.HunyuanVideo15Tokenizer",
    ),
    "flux2": ("comfy.text_encoders.flux", "flux2_te()", "Flux2Tokenizer"),
    "ernie": ("comfy.text_encoders.ernie", "te()", "ErnieTokenizer"),
    "anima": ("comfy.text_encoders.anima", "te()", "AnimaTokenizer"),
}
"""Family -> module, text model (with "()": what makes its class) and tokenizer, in that module or with its own, or None
for one that is made here."""


def make(kind, form=None):
    """A CLIP of that family; skips the test where this ComfyUI does not know it.

    form: "float8" for weights of eight bits; "quantized" for linear layers as quantized checkpoints have them."""
    import comfy.sd

    where, model, tokenizer_name = MODELS[kind]
    try:
        module = import_module(where)
        name, call, options = model.partition("(")
        found = getattr(module, name)
        home, _, tokenizer_class = (tokenizer_name or "").rpartition(".")
        made_tokenizer = getattr(import_module(home or where), tokenizer_class) if tokenizer_class else _wan_tokenizer()
    except (ImportError, AttributeError):
        pytest.skip(f"this ComfyUI has no {kind}")
    made = found(**({"byt5": False} if "byt5" in options else {})) if call else found

    class Target:
        params: dict = {}  # noqa: RUF012
        clip = made
        tokenizer = made_tokenizer

    # SD3 pads its CLIP rows to T5's 4096 channels.
    width = {"t5xxl_model_config": T5_CONFIG | {"d_model": 4096}} if kind == "sd3" else {}
    pieces = {}
    if kind in ("lumina2", "pixeldit"):
        pieces = {"spiece_model": _gemma_pieces()}
    elif kind in ("flux2", "ernie"):
        pieces = {"tekken_model": _mistral_pieces()}

    def build(more, **state):
        return comfy.sd.CLIP(
            Target, embedding_directory=None, model_options=OPTIONS | width | more, tokenizer_data=pieces, **state
        )

    with pytest.MonkeyPatch.context() as patch:
        # Qwen-VL sees pictures through hundreds of millions of further weights, which no text passes.
        for tower in ("qwen_vl.Qwen2VLVisionTransformer", "qwen3vl.Qwen3VLVisionModel"):
            with suppress(ImportError):
                patch.setattr(f"comfy.text_encoders.{tower}", lambda *_some, **_options: torch.nn.Module())
        clip = build({})
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in clip.cond_stage_model.parameters():
            matrix = parameter.ndim > 1
            parameter.copy_(torch.randn(parameter.shape) * (0.05 if matrix else 0.01) + (0 if matrix else 1))
    if form == "float8":
        state = clip.cond_stage_model.state_dict()
        clip = build({"dtype": torch.float8_e4m3fn})
        clip.cond_stage_model.load_state_dict(state)
    elif form == "quantized":
        if not hasattr(comfy.utils, "detect_layer_quantization"):
            pytest.skip("this ComfyUI has no quantized layers")
        # Such layers have no weights before they are loaded.
        clip = build({"quantization_metadata": {"mixed_ops": True}}, state_dict=_quantized(clip.cond_stage_model))
    return clip


def _quantized(model):
    """Weights in which each linear layer of the transformers is eight bits and a scale."""
    state = dict(model.state_dict())
    for name, layer in model.named_modules():
        if isinstance(layer, torch.nn.Linear) and ".transformer." in name:
            weight = state[f"{name}.weight"].float()
            scale = weight.abs().max() / torch.finfo(torch.float8_e4m3fn).max
            state[f"{name}.weight"] = (weight / scale).to(torch.float8_e4m3fn)
            state[f"{name}.weight_scale"] = scale
            said = json.dumps({"format": "float8_e4m3fn"}).encode()
            state[f"{name}.comfy_quant"] = torch.tensor(list(said), dtype=torch.uint8)
    return state


WORDS = ("a", "red", "boat", "nude", "woman", "oil", "painting", "tea", "user", "assistant", "Prompt", "Start")
"""What the vocabularies know that come with checkpoints and are made here."""


def _mistral_pieces():
    """Bytes, the words behind a space with their beginnings, and the marks of the template where Mistral has them."""
    pieces = [bytes([value]) for value in range(256)]
    for word in WORDS:
        pieces += [f" {word[:end]}".encode() for end in range(1, len(word) + 1)]
    marks = {"<s>": 1, "</s>": 2, "[INST]": 3, "[/INST]": 4, "<pad>": 11, "[SYSTEM_PROMPT]": 17, "[/SYSTEM_PROMPT]": 18}
    vocab = [
        {"rank": rank, "token_bytes": base64.b64encode(piece).decode()}
        for rank, piece in enumerate(dict.fromkeys(pieces))
    ]
    return json.dumps(
        {
            "config": {"default_num_special_tokens": 1000, "default_vocab_size": 131072},
            "vocab": vocab,
            "special_tokens": [{"rank": rank, "token_str": mark} for mark, rank in marks.items()],
        }
    )


def _gemma_pieces():
    """Learned from a few words."""
    import sentencepiece

    made = BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([" ".join(WORDS[at:] + WORDS[:at]) for at in range(len(WORDS))] * 20),
        model_writer=made, vocab_size=80, hard_vocab_limit=False, model_type="bpe", minloglevel=2,
        pad_id=0, eos_id=1, bos_id=2, unk_id=3,
    )  # fmt: skip
    return torch.frombuffer(bytearray(made.getvalue()), dtype=torch.uint8)


def _wan_tokenizer():
    """Wan's own vocabulary comes with its checkpoint; its 512 rows do not depend on it."""
    import comfy.text_encoders.sd3_clip as sd3
    from comfy import sd1_clip

    class WanPieces(sd3.T5XXLTokenizer):
        def __init__(self, embedding_directory=None, tokenizer_data={}):  # noqa: B006 - as in ComfyUI
            super().__init__(embedding_directory, tokenizer_data, min_length=512)
            self.embedding_key = "umt5xxl"

    class WanTokenizer(sd1_clip.SD1Tokenizer):
        def __init__(self, embedding_directory=None, **_options):
            super().__init__(embedding_directory, clip_name="umt5xxl", tokenizer=WanPieces)

    return WanTokenizer
