"""The picture model: a small diffusion transformer that draws the scenes of scenes.toml from a frozen text encoder's
token embeddings, as large models do with theirs. The network and the sampler are those of diffusers.

It works on the latents of autoencoder.py and is trained by flow matching, x = (1 - σ) · latents + σ · noise, with the
network's input and output scaled as in Karras et al. 2022, arXiv 2206.00364.

B pictures, L token embeddings, D channels, S the picture's side, C latent channels, T the latents' side.
"""

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, PixArtTransformer2DModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from sanitizer.encoders import Encoding, Fingerprint, TextEncoder
from sanitizer.errors import SanitizerError
from sanitizer.files import make_folder
from sanitizer.tensor_files import DAMAGE, read, write

from ..store import file_digest, text_digest
from ..types import BATCH, Progress, batches
from . import autoencoder
from .autoencoder import CHANNELS, SIDE, Autoencoder
from .files import load_weights, write_weights
from .precision import mixed
from .scenes import FILE, Painter, caption, random_scene

WEIGHTS = Path(__file__).with_name("weights")
KEY = "picture_model"
SHIFT = 2.0
"""More of the sampler's steps go where there is much noise, for the same reason as in training."""
SPREAD = 1.0
"""Standard deviation of latents."""
LONGEST = 77
"""Token embeddings of one window of the encoders: longer captions are left out."""


@dataclass(frozen=True)
class PictureConfig:
    """The network and its training: hours on one core."""

    heads: int = 4
    head_width: int = 56
    layers: int = 6
    patch: int = 2
    """Latents of a patch's side."""
    captions: int = 24_000
    """Captions encoded before training; scenes are drawn anew each time."""
    disguised: float = 0.05
    """Share of names in captions that are disguised, so that such prompts mean something to the model."""
    unconditional: float = 0.1
    """Share of pictures that are trained with the empty prompt, for guidance."""
    noise: tuple[float, float] = (1.0, 1.2)
    """Mean and standard deviation of the logit of the noise's share in training. An object is seen through a lot of
    noise, and its name is learnt only where it is not."""
    batch: int = 64
    steps: int = 5_000
    rate: float = 1e-3
    warm_up: int = 300
    cool_down: float = 0.25
    """Share of the steps in which the rate falls to zero."""
    average: float = 0.999
    """Of the weights, over steps: the weights that are kept."""
    seed: int = 0


class PictureModel:
    """A trained model: token embeddings in, pictures out."""

    def __init__(self, net: PixArtTransformer2DModel, autoencoder: Autoencoder, empty: Encoding, digest: str) -> None:
        self.net, self.autoencoder, self.empty, self.digest = net.eval(), autoencoder, empty, digest

    @torch.no_grad()
    def draw(
        self,
        embeddings: Tensor,
        mask: Tensor,
        seeds: Sequence[int],
        *,
        guidance: float = 3.0,
        steps: int = 16,
        negative: Encoding | None = None,
    ) -> Tensor:
        """(B, L, D), (B, L) bool and a seed of the noise for each -> pictures (B, 3, S, S) from -1 to 1.

        negative: B prompts, or one for all, to be guided away from; the empty prompt for None.
        """
        other = negative or self.empty
        other = other.select([0] * len(seeds)) if len(other.mask) == 1 else other
        embeddings, mask = joined(embeddings, mask, other)
        noise = [torch.randn(CHANNELS, SIDE, SIDE, generator=torch.Generator().manual_seed(s)) for s in seeds]
        x = torch.stack(noise).to(embeddings.device)
        scheduler = FlowMatchEulerDiscreteScheduler(shift=SHIFT)
        scheduler.set_timesteps(steps)
        for time, sigma in zip(scheduler.timesteps, scheduler.sigmas[:-1], strict=True):
            wanted, unwanted = predict(self.net, x.repeat(2, 1, 1, 1), sigma, embeddings, mask).chunk(2)
            latents = unwanted + guidance * (wanted - unwanted)
            x = scheduler.step((x - latents) / sigma, time, x, return_dict=False)[0]
        return self.autoencoder.decode(x)


def joined(embeddings: Tensor, mask: Tensor, other: Encoding) -> tuple[Tensor, Tensor]:
    """(2 B, L, D) and (2 B, L): both batches, the shorter one padded, without padding that all have."""
    length = max(mask.shape[1], other.mask.shape[1])
    missing, other = length - mask.shape[1], other.padded(length)
    embeddings = torch.cat([F.pad(embeddings, (0, 0, 0, missing)), other.embeddings])
    mask = torch.cat([F.pad(mask, (0, missing)), other.mask])
    used = int(mask.any(0).nonzero().max()) + 1
    return embeddings[:, :used], mask[:, :used]


def predict(net: PixArtTransformer2DModel, x: Tensor, sigma: Tensor, embeddings: Tensor, mask: Tensor) -> Tensor:
    """What the latents (B, C, T, T) were under the noise; sigma (B,) or () is the noise's share."""
    given, skip, out = preconditioning(sigma.view(-1, 1, 1, 1))
    found = net(
        given * x,
        encoder_hidden_states=embeddings.float(),
        encoder_attention_mask=mask.long(),
        timestep=(1000 * sigma).expand(len(x)),
        return_dict=False,
    )[0]
    return skip * x + out * found.float()


def preconditioning(sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Karras et al. 2022, arXiv 2206.00364, table 1, for x = (1 - σ) · latents + σ · noise: what the input is scaled
    by, so that it has unit variance; what of it goes past the network; and what the network's output is scaled by, so
    that its target has unit variance. Where there is little noise the latents are nearly the input itself."""
    variance = ((1 - sigma) * SPREAD).square() + sigma.square()
    return variance.rsqrt(), (1 - sigma) * SPREAD**2 / variance, sigma * SPREAD * variance.rsqrt()


def make_net(config: PictureConfig, width: int) -> PixArtTransformer2DModel:
    """An untrained network for a text encoder of so many channels."""
    net = PixArtTransformer2DModel(
        num_attention_heads=config.heads,
        attention_head_dim=config.head_width,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        num_layers=config.layers,
        cross_attention_dim=config.heads * config.head_width,
        sample_size=SIDE,
        patch_size=config.patch,
        caption_channels=width,
        use_additional_conditions=False,
    )
    # Written out: torch's fused attention takes half of a training step on a CPU, for its gradient.
    net.set_attn_processor(AttnProcessor())
    return net


def load(encoder: TextEncoder, path: Path | None = None) -> PictureModel:
    """The model of an encoder; None is the committed one. Raises SanitizerError where there is none, or it is damaged
    or was trained with another encoder."""
    path = path or WEIGHTS / f"{encoder.name}.safetensors"
    advice = f"Train one: python -m evaluation picture-model --encoder {encoder.name} --output DIR"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in WEIGHTS.glob("minilm*.safetensors")))
        raise SanitizerError(
            f"{path}: no picture model for {encoder.name}. There is one for: {known or 'none'}. {advice}"
        )

    def build(info: dict, tensors: dict[str, Tensor]) -> tuple[str, Fingerprint, PixArtTransformer2DModel]:
        trained_on = Fingerprint.from_dict(info["encoder"])
        net = make_net(PictureConfig(**info["config"]), trained_on.width)
        net.load_state_dict(tensors)
        return info["autoencoder"], trained_on, net

    latents, trained_on, net = load_weights(path, KEY, "a picture model", advice, build)
    if trained_on != encoder.fingerprint:
        raise SanitizerError(f"{path}: was trained with {trained_on}, found the encoder {encoder.fingerprint}.")
    own = autoencoder.load()
    if latents != own.digest:
        raise SanitizerError(f"{path}: was trained on the latents of another autoencoder. Train it again.")
    return PictureModel(net, own, encoder.encode([""]), file_digest(path))


class Captions:
    """Scenes and the token embeddings of their captions, kept in a file beside the training's state."""

    def __init__(self, encoder: TextEncoder, folder: Path, config: PictureConfig, progress: Progress) -> None:
        draw = random.Random(f"{config.seed}-captions")
        scenes = [random_scene(draw) for _ in range(config.captions)]
        texts = [caption(scene, draw, disguised=config.disguised).text for scene in scenes]
        path, digest = folder / "captions.safetensors", text_digest([str(encoder.fingerprint), *texts])
        kept = _kept(path, digest) or _encode(encoder, texts, path, digest, progress)
        self.index = (kept["lengths"] <= LONGEST).nonzero().squeeze(1).tolist()
        self.scenes, self.parts = scenes, kept["embeddings"].split(kept["lengths"].tolist())

    def batch(self, index: Sequence[int], empty: Tensor, is_empty: Sequence[bool]) -> tuple[Tensor, Tensor]:
        """(B, L, D) float32 and (B, L) bool of these captions, or of the empty prompt (L', D)."""
        parts = [empty if e else self.parts[i] for i, e in zip(index, is_empty, strict=True)]
        mask = pad_sequence([torch.ones(len(part), dtype=torch.bool) for part in parts], batch_first=True)
        return pad_sequence([part.float() for part in parts], batch_first=True), mask


def _kept(path: Path, digest: str) -> dict[str, Tensor] | None:
    """The file's tensors, None where there are none that were made of this."""
    try:
        info, tensors = read(path, KEY)
        return tensors if info["made_of"] == digest else None
    except DAMAGE:
        return None


def _encode(encoder: TextEncoder, texts: list[str], path: Path, digest: str, progress: Progress) -> dict[str, Tensor]:
    """Embeddings of all captions, one behind the other, and how many each has; kept in the file."""
    found: list[Tensor] = [torch.empty(0)] * len(texts)
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    places = iter(order)
    with torch.no_grad():
        for done, batch in enumerate(batches(encoder, [texts[i] for i in order])):
            progress("encode captions", done * BATCH, len(order))
            for embeddings, mask in zip(batch.encoding.embeddings, batch.encoding.mask, strict=True):
                found[next(places)] = embeddings[mask].half()
    tensors = {"embeddings": torch.cat(found), "lengths": torch.tensor([len(part) for part in found])}
    write(path, KEY, {"made_of": digest}, tensors)
    return tensors


def train(
    encoder: TextEncoder,
    folder: Path,
    config: PictureConfig,
    progress: Progress,
    *,
    device: str = "cpu",
    compiled: bool = False,
    every: int = 250,
    watch: Callable[[int, float], None] = lambda step, loss: None,
) -> Path:
    """Train, or go on where a training in the folder was cut off, and write `<encoder>.safetensors` into it.

    compiled: a third faster on a CPU; torch.compile needs a C++ compiler. every: steps between two saved states. watch
    is called with the step and the mean loss since the last state.
    """
    make_folder(folder)
    painter, own = Painter(), autoencoder.load()
    captions = Captions(encoder, folder, config, progress)
    empty = encoder.encode([""])
    null = empty.embeddings[0, empty.mask[0]]
    torch.manual_seed(config.seed)
    net = make_net(config, null.shape[1])
    with torch.no_grad():  # as if the channels had a standard deviation of one
        net.caption_projection.linear_1.weight /= torch.cat(captions.parts[:1000]).float().std()
    net.to(device).train()
    called = torch.compile(net) if compiled else net
    weights = list(net.parameters())
    optimizer = torch.optim.AdamW(weights, config.rate, betas=(0.9, 0.99), weight_decay=0.01)
    average = [p.detach().clone() for p in weights]
    made_of = {
        "encoder": encoder.fingerprint.to_dict(),
        "config": asdict(config),
        "scenes": file_digest(FILE),
        "autoencoder": own.digest,
    }
    state = folder / "state.safetensors"
    step, losses = _resume(state, made_of, net, average, optimizer)
    recent: list[float] = []
    while step < config.steps:
        progress("train", step, config.steps)
        for group in optimizer.param_groups:
            group["lr"] = config.rate * min(
                1, (step + 1) / config.warm_up, (config.steps - step) / (config.cool_down * config.steps)
            )
        loss = _loss(called, captions, painter, own, null, config, step, device)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        step += 1
        # The first steps' weights would stay in the average for long.
        keep = min(config.average, step / (step + 10))
        torch._foreach_lerp_(average, [p.detach() for p in weights], 1 - keep)
        recent.append(loss.item())
        if step % every == 0 or step == config.steps:
            losses[str(step)] = sum(recent) / len(recent)
            watch(step, losses[str(step)])
            recent = []
            _save(state, made_of, step, losses, net, average, optimizer)
    progress("train", config.steps, config.steps)
    path = folder / f"{encoder.name}.safetensors"
    export(path, net, average, made_of | {"steps": step, "loss": losses[str(step)]})
    return path


def _loss(
    net, captions: Captions, painter: Painter, own: Autoencoder, null: Tensor, config: PictureConfig, step: int,
    device: str,
) -> Tensor:  # fmt: skip
    draw = random.Random(f"{config.seed}-{step}")
    noise = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
    index = [draw.choice(captions.index) for _ in range(config.batch)]
    with mixed():
        latents = own.encode(torch.stack([painter.paint(captions.scenes[i], draw) for i in index])).float().to(device)
    unconditional = [draw.random() < config.unconditional for _ in index]
    embeddings, mask = captions.batch(index, null.cpu(), unconditional)
    sigma = torch.sigmoid(config.noise[0] + config.noise[1] * torch.randn(len(index), generator=noise)).to(device)
    share = sigma[:, None, None, None]
    x = (1 - share) * latents + share * torch.randn(latents.shape, generator=noise).to(device)
    with mixed(device):
        found = predict(net, x, sigma, embeddings.to(device), mask.to(device))
    error = (found - latents).square().mean((1, 2, 3))
    return (error / preconditioning(sigma)[2].square()).mean()


def export(path: Path, net: PixArtTransformer2DModel, average: Sequence[Tensor], info: dict) -> None:
    """Write the averaged weights as float16, with what is to be known of them."""
    names = [name for name, _ in net.named_parameters()]
    write_weights(path, KEY, info, net.state_dict() | dict(zip(names, average, strict=True)))


def _save(path: Path, made_of: dict, step: int, losses: dict, net, average, optimizer) -> None:
    tensors = {}
    for at, (p, mean) in enumerate(zip(net.parameters(), average, strict=True)):
        own = optimizer.state[p]
        tensors |= {f"{at}.weight": p, f"{at}.mean": mean}
        tensors |= {f"{at}.first": own["exp_avg"], f"{at}.second": own["exp_avg_sq"]}
    write(path, KEY, {"made_of": made_of, "step": step, "losses": losses}, tensors)


def _resume(path: Path, made_of: dict, net, average, optimizer) -> tuple[int, dict]:
    if not path.exists():
        return 0, {}
    try:
        found, kept = read(path, KEY)
    except DAMAGE as error:
        raise SanitizerError(f"{path}: damaged ({error}). Delete it and begin anew.") from error
    if found["made_of"] != json.loads(json.dumps(made_of)):
        raise SanitizerError(
            f"{path}: a training with another encoder, other settings or other scenes. Choose another --output."
        )
    with torch.no_grad():
        for at, (p, mean) in enumerate(zip(net.parameters(), average, strict=True)):
            p.copy_(kept[f"{at}.weight"])
            mean.copy_(kept[f"{at}.mean"])
            optimizer.state[p] = {
                "step": torch.tensor(float(found["step"])),
                "exp_avg": kept[f"{at}.first"].to(p),
                "exp_avg_sq": kept[f"{at}.second"].to(p),
            }
    return found["step"], found["losses"]
