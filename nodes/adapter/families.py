"""The families of models whose text encoders ComfyUI loads: one table, which docs/models.md shows.

It was read in the sources of ComfyUI 0.3.64 and 0.33. Widths are those of the released text encoders.
"""

from enum import StrEnum
from typing import NamedTuple


class State(StrEnum):
    """What is known of a family."""

    TESTED = "tested"
    """On ComfyUI's own classes of its text encoder and tokenizer, with few layers and random weights."""
    RECORDED = "recorded"
    """On conditionings of the form that its text encoder puts out, read in its source; the encoder was not run."""
    REFUSED = "refused"
    """By an error that names the tensor: text reaches the model where no sanitizer covers it."""
    UNTESTED = "untested"
    """Text in the usual places is sanitized, a tensor under an unknown key is refused."""


class Family(NamedTuple):
    models: str
    state: State
    width: int
    """Channels of a token embedding, 0 where they were not read."""
    pooled: int
    """Of the pooled vector, 0 for none."""
    text: str
    """Where the text is, and what stands in the way."""
    made_as: str = ""
    """Of a tested one: its name in the tests (tests/nodes/real_clips.py)."""


TESTED, RECORDED, REFUSED, UNTESTED = State
TABLE: tuple[Family, ...] = (
    Family("Stable Diffusion 1.x", TESTED, 768, 768, "CLIP-L", "sd15"),
    Family("Stable Diffusion 2.x", TESTED, 1024, 1024, "OpenCLIP-H", "sd2"),
    Family("SDXL", TESTED, 2048, 1280, "CLIP-L and CLIP-G side by side", "sdxl"),
    Family("SDXL refiner", TESTED, 1280, 1280, "CLIP-G", "sdxl_refiner"),
    Family("Stable Diffusion 3, 3.5", TESTED, 4096, 2048, "CLIP-L and CLIP-G, then T5-XXL in further rows", "sd3"),
    Family("Flux.1", TESTED, 4096, 768, "T5-XXL, and CLIP-L's pooled vector", "flux"),
    Family("FLUX.2", TESTED, 15_360, 0, "three layers of Mistral 24B, a small vocabulary of the tests'", "flux2"),
    Family("FLUX.2 Klein", TESTED, 7680, 0, "three layers of Qwen3 4B (8B: 12,288 channels)", "klein"),
    Family("PixArt, Chroma", TESTED, 4096, 0, "T5-XXL alone", "t5"),
    Family("Wan", TESTED, 4096, 0, "UMT5-XXL, 512 rows", "wan"),
    Family("AuraFlow", TESTED, 2048, 0, "Pile-T5-XL", "aura_flow"),
    Family("Stable Audio", TESTED, 768, 0, "T5-base", "stable_audio"),
    Family("Cosmos 1", TESTED, 1024, 0, "T5 11B, the first version", "cosmos"),
    Family("Mochi", TESTED, 4096, 0, "T5-XXL", "mochi"),
    Family("LTX-Video", TESTED, 4096, 0, "T5-XXL", "ltxv"),
    Family("CogVideoX", TESTED, 4096, 0, "T5-XXL", "cogvideo"),
    Family("Qwen-Image", TESTED, 3584, 0, "Qwen2.5-VL 7B without the beginning of its template", "qwen_image"),
    Family("HunyuanImage, no text in quotes", TESTED, 3584, 0, "Qwen2.5-VL 7B", "hunyuan_image"),
    Family("HunyuanVideo 1.5, no text in quotes", TESTED, 3584, 0, "the same", "hunyuan_video15"),
    Family("Kandinsky 5", TESTED, 3584, 768, "Qwen2.5-VL 7B, and CLIP-L's pooled vector", "kandinsky5"),
    Family("LongCat-Image", TESTED, 3584, 0, "Qwen2.5-VL 7B without its template", "longcat"),
    Family("OmniGen2", TESTED, 2048, 0, "Qwen2.5 3B with its template", "omnigen2"),
    Family("Ovis-Image", TESTED, 2048, 0, "Ovis 2.5 2B", "ovis"),
    Family("Z-Image", TESTED, 2560, 0, "Qwen3 4B", "z_image"),
    Family("Lumina 2", TESTED, 2304, 0, "Gemma 2 2B with a small vocabulary of the tests'", "lumina2"),
    Family("PixelDiT", TESTED, 2304, 0, "the same", "pixeldit"),
    Family("Ideogram 4", TESTED, 53_248, 0, "thirteen layers of Qwen3-VL 8B", "ideogram4"),
    Family("Krea 2", TESTED, 30_720, 0, "twelve layers of Qwen3-VL 4B", "krea2"),
    Family("Mage-Flow", TESTED, 2560, 0, "Qwen3-VL 4B", "mage_flow"),
    Family("Boogu-Image", TESTED, 4096, 0, "Qwen3-VL 8B with its template", "boogu"),
    Family("JoyImage", TESTED, 4096, 0, "Qwen3-VL 8B", "joyimage"),
    Family("ErnieImage", TESTED, 3072, 0, "Ministral 3B with a small vocabulary of the tests'", "ernie"),
    Family("HunyuanVideo", RECORDED, 4096, 768, "Llama 3, its vocabulary not at hand, and CLIP-L's pooled vector"),
    Family("LTX-2", RECORDED, 0, 0, "layers of Gemma 3 12B in one row each"),
    Family("NewBie", RECORDED, 2560, 1024, "Gemma 3 4B, and Jina CLIP's pooled vector"),
    Family("Anima", REFUSED, 1024, 0, "Qwen3 0.6B, and T5's tokens in `t5xxl_ids`", "anima"),
    Family("HunyuanImage, HunyuanVideo 1.5, with text in quotes", REFUSED, 3584, 0, "ByT5 in `conditioning_byt5small`"),
    Family("HiDream-I1", REFUSED, 4096, 2048, "Llama in `conditioning_llama3`"),
    Family("HiDream-O1", REFUSED, 0, 0, "tokens in `text_input_ids`"),
    Family("HunyuanDiT", REFUSED, 0, 0, "mT5 in `conditioning_mt5xl`"),
    Family("ACE-Step", REFUSED, 0, 0, "lyrics in `conditioning_lyrics`, codes in `audio_codes`"),
    Family("all others", UNTESTED, 0, 0, ""),
)  # fmt: skip


def makers(width: int) -> str:
    """The models, three at most, whose embeddings have so many channels; "" where there is none."""
    named = [family.models for family in TABLE if width and family.width == width]
    return " or ".join(named[:3]) + (" or others" if len(named) > 3 else "")
