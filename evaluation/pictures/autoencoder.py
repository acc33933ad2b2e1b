"""The autoencoder: pictures of 48 × 48 pixels as 12 × 12 latents of 4 channels, and back, as large picture models have
one. In these latents a word is learnt several times as fast as in pixels, and what is drawn is clear.

The network is diffusers' AutoencoderTiny. B pictures, S their side, C latent channels, T the latents' side.
"""

import hashlib
import random
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderTiny
from torch import Tensor

from ..types import Progress
from .files import load_weights, write_weights
from .precision import mixed
from .scenes import SIZE, Painter, random_scene

WEIGHTS = Path(__file__).with_name("weights") / "autoencoder.safetensors"
KEY = "picture_autoencoder"
CHANNELS, SIDE = 4, SIZE // 4
UNSEEN = 1000
"""Scenes that the latents' mean and spread, and the error, are measured on."""


@dataclass(frozen=True)
class AutoencoderConfig:
    """Training: minutes on one core."""

    width: int = 48
    """Channels of every convolution."""
    batch: int = 48
    steps: int = 1600
    refining: int = 2000
    """Further steps of the decoder alone, with the encoder as it is."""
    rate: float = 4e-3
    noise: float = 0.15
    """Standard deviations of noise on the latents, so that those that are a little wrong are drawn clearly, too."""
    seed: int = 0


class Autoencoder:
    """Trained: latents have a mean of zero and a standard deviation of one."""

    def __init__(self, net: AutoencoderTiny, mean: Tensor, std: Tensor) -> None:
        self.net = net.eval().requires_grad_(False)
        self.mean, self.std = mean.view(1, -1, 1, 1), std.view(1, -1, 1, 1)
        """Of each channel of the network's own latents."""

    @property
    def digest(self) -> str:
        """Of what makes the latents: a picture model is for these alone."""
        values = [*self.net.encoder.state_dict().values(), self.mean, self.std]
        return hashlib.sha256(b"".join(value.half().numpy().tobytes() for value in values)).hexdigest()[:16]

    @torch.no_grad()
    def encode(self, pictures: Tensor) -> Tensor:
        """(B, 3, S, S) from -1 to 1 -> (B, C, T, T)."""
        return (self.net.encode(pictures).latents - self.mean) / self.std

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """(B, C, T, T) -> (B, 3, S, S) from -1 to 1."""
        return self.net.decode(latents * self.std + self.mean).sample.clamp(-1, 1)


def make_net(width: int) -> AutoencoderTiny:
    return AutoencoderTiny(
        encoder_block_out_channels=(width,) * 3,
        decoder_block_out_channels=(width,) * 3,
        num_encoder_blocks=(1, 1, 2),
        num_decoder_blocks=(2, 1, 1),
        latent_channels=CHANNELS,
    )


def load(path: Path = WEIGHTS) -> Autoencoder:
    """The committed one. Raises SanitizerError where it is missing or damaged."""

    def build(info: dict, tensors: dict[str, Tensor]) -> Autoencoder:
        mean, std = tensors.pop("mean"), tensors.pop("std")
        net = make_net(info["width"])
        net.load_state_dict(tensors)
        return Autoencoder(net, mean, std)

    advice = "Train one: python -m evaluation picture-autoencoder --output DIR"
    return load_weights(path, KEY, "an autoencoder of pictures", advice, build)


def train(path: Path, config: AutoencoderConfig, progress: Progress) -> float:
    """Train, write the weights as float16, and return the mean squared error of unseen scenes' pixels."""
    painter, draw = Painter(), random.Random(config.seed)
    torch.manual_seed(config.seed)
    net = make_net(config.width).to(memory_format=torch.channels_last)
    _fit(net, [*net.parameters()], config.steps, painter, config, draw, progress)
    net.encoder.requires_grad_(False).half().float()
    refine(net, painter, config, draw, progress)
    net = net.half().float().eval()
    with torch.no_grad():
        unseen = _pictures(painter, UNSEEN, random.Random(config.seed + 1))
        latents = net.encode(unseen).latents
    mean, std = latents.mean((0, 2, 3)).half(), latents.std((0, 2, 3)).half()
    own = Autoencoder(net, mean.float(), std.float())
    error = (own.decode(own.encode(unseen)) - unseen).square().mean().item()
    tensors = net.state_dict() | {"mean": mean, "std": std}
    write_weights(path, KEY, asdict(config) | {"error": error}, tensors)
    return error


def refine(
    net: AutoencoderTiny, painter: Painter, config: AutoencoderConfig, draw: random.Random, progress: Progress
) -> None:
    """Train the decoder alone: latents, and the picture models that work on them, stay as they are."""
    _fit(net, [*net.decoder.parameters()], config.refining, painter, config, draw, progress)


def _fit(
    net: AutoencoderTiny, weights: list[Tensor], steps: int, painter: Painter, config: AutoencoderConfig,
    draw: random.Random, progress: Progress,
) -> None:  # fmt: skip
    net.train()
    optimizer = torch.optim.AdamW(weights, config.rate, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.rate, steps, pct_start=0.1)
    for step in range(steps):
        progress("train", step, steps)
        pictures = _pictures(painter, config.batch, draw)
        with mixed():
            latents = net.encode(pictures).latents
            # Noise by their own size: without it the network would make its latents large.
            spread = latents.detach().float().std((0, 2, 3), keepdim=True)
            found = net.decode(latents + config.noise * spread * torch.randn(latents.shape)).sample.float()
        loss = (found - pictures).square().mean() + 0.3 * (found - pictures).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
    progress("train", steps, steps)


def _pictures(painter: Painter, count: int, draw: random.Random) -> Tensor:
    pictures = torch.stack([painter.paint(random_scene(draw), draw) for _ in range(count)])
    return pictures.to(memory_format=torch.channels_last)
