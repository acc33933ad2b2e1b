"""Pictures from the core as ComfyUI's IMAGE."""

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from PIL.Image import Image


def as_image(picture: "Image") -> torch.Tensor:
    """(1, H, W, 3) float32 in [0, 1]."""
    pixels = torch.frombuffer(bytearray(picture.convert("RGB").tobytes()), dtype=torch.uint8)
    return (pixels.reshape(1, picture.height, picture.width, 3).float() / 255).clone()
