"""The picture model of evaluation/pictures as ComfyUI's MODEL and VAE. Its latents have a side of 12,
which ComfyUI makes of an empty latent of 96 × 96 pixels, and its pictures one of 48, which the VAE enlarges."""

import comfy.latent_formats
import comfy.model_management
import comfy.supported_models_base
import torch
from comfy.model_base import BaseModel, ModelType
from comfy.model_patcher import ModelPatcher

from evaluation.pictures import autoencoder, diffusion
from sanitizer.encoders import load_encoder

SCALE = 8


class Latents(comfy.latent_formats.LatentFormat):
    latent_channels = autoencoder.CHANNELS


class Config(comfy.supported_models_base.BASE):
    latent_format = Latents
    sampling_settings = {"shift": diffusion.SHIFT}  # noqa: RUF012


class Velocity(torch.nn.Module):
    """The network in the form that ComfyUI's samplers of flow models expect."""

    def __init__(self, net) -> None:
        super().__init__()
        self.net, self.dtype = net, torch.float32

    def forward(self, x, timesteps, context=None, **_options):
        sigma = timesteps / 1000
        mask = torch.ones(context.shape[:2], dtype=torch.bool, device=context.device)
        latents = diffusion.predict(self.net, x, sigma, context, mask)
        return (x - latents) / sigma.view(-1, 1, 1, 1)


class Enlarged:
    """The autoencoder as a VAE."""

    def __init__(self, own: autoencoder.Autoencoder) -> None:
        self.own = own

    def decode(self, samples):
        """(B, C, T, T) -> (B, SCALE · S, SCALE · S, 3) from 0 to 1."""
        pixels = (self.own.decode(samples.float().cpu()) + 1) / 2
        return torch.nn.functional.interpolate(pixels, scale_factor=SCALE, mode="nearest").movedim(1, -1)


def load(encoder_name: str):
    """MODEL and VAE for an embedded encoder."""
    model = BaseModel(Config({"disable_unet_model_creation": True}), ModelType.FLOW)
    own = diffusion.load(load_encoder(encoder_name))
    model.diffusion_model = Velocity(own.net)
    memory = comfy.model_management
    return ModelPatcher(model, memory.get_torch_device(), memory.unet_offload_device()), Enlarged(own.autoencoder)
