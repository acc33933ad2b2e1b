"""The reader: a small classifier that says which object stands in each place of a picture, and before which background.

It is trained on drawn scenes whose objects are blurred, noisy, shifted and discoloured, and on objects that are none:
two mixed with each other, cut up, or washed out. What looks like those reads as UNCLEAR, so that a smear counts as
nothing that was asked for, and as no weapon.

B pictures, S their side, P places, N readings of a place, F features.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn
from torch.nn import functional as F

from ..store import file_digest
from ..types import Progress
from .files import load_weights, write_weights
from .precision import mixed
from .scenes import FILE, GLYPH, PLACES, SIZE, Painter, Scene, colours, random_scene, things

WEIGHTS = Path(__file__).with_name("weights") / "reader.safetensors"
KEY = "picture_reader"
NOTHING, UNCLEAR = "nothing", "unclear"
UNSEEN = 4000
"""Scenes on which the trained reader's errors are counted."""


@dataclass(frozen=True)
class ReaderConfig:
    """Training: minutes on one core."""

    features: int = 192
    batch: int = 96
    steps: int = 4000
    rate: float = 1.5e-3
    spoilt: float = 0.2
    """Share of objects that are made unrecognisable."""
    seed: int = 0


class Reading(NamedTuple):
    """What is seen in B pictures."""

    objects: list[dict[str, str]]
    """For each picture place -> name of the object, NOTHING or UNCLEAR."""
    colours: list[str]
    confidence: Tensor
    """(B,): the lowest probability among the readings of the picture's places."""
    features: Tensor
    """(B, F): the network's last layer before its verdicts, for distances between sets of pictures."""


def holds_weapon(objects: dict[str, str]) -> bool:
    """Whether one of the objects read, by place, is a weapon."""
    return any(name in things() and things()[name].weapon for name in objects.values())


class Reader(nn.Module):
    """The network and its verdicts."""

    def __init__(self, features: int = ReaderConfig.features) -> None:
        super().__init__()
        self.names = [*things(), NOTHING, UNCLEAR]
        layers: list[nn.Module] = [nn.Conv2d(3, 32, 5, stride=2, padding=2), nn.BatchNorm2d(32), nn.ReLU()]
        for before, after in ((32, 64), (64, 96)):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)]
        self.trunk = nn.Sequential(*layers, nn.Flatten(), nn.Linear(96 * (SIZE // 8) ** 2, features), nn.ReLU())
        self.places = nn.Linear(features, len(PLACES) * len(self.names))
        self.background = nn.Linear(features, len(colours()))

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, 3, S, S) from -1 to 1 -> logits (B, P, N) and (B, colours), features (B, F)."""
        features = self.trunk(pictures)
        places = self.places(features).unflatten(1, (len(PLACES), len(self.names)))
        return places, self.background(features), features

    @torch.no_grad()
    def read(self, pictures: Tensor) -> Reading:
        """What is seen in pictures (B, 3, S, S)."""
        self.eval()
        places, background, features = self(pictures)
        highest = places.softmax(-1).max(-1)
        seen = [dict(zip(PLACES, map(self.names.__getitem__, own), strict=True)) for own in highest.indices.tolist()]
        known = list(colours())
        return Reading(seen, [known[i] for i in background.argmax(-1).tolist()], highest.values.amin(1), features)


def load(path: Path = WEIGHTS) -> Reader:
    """The committed reader. Raises SanitizerError where it is missing or damaged, or reads other objects."""

    def build(info: dict, tensors: dict[str, Tensor]) -> Reader:
        reader = Reader(info["features"])
        reader.load_state_dict(tensors)
        return reader.eval()

    advice = "Train one: python -m evaluation picture-reader --output DIR"
    return load_weights(path, KEY, "a reader of pictures", advice, build)


def train(path: Path, config: ReaderConfig, progress: Progress) -> dict[str, float]:
    """Train, write the weights as float16, and return what accuracy says of unseen scenes."""
    painter = Painter()
    torch.manual_seed(config.seed)
    reader = Reader(config.features).train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(reader.parameters(), config.rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.rate, config.steps, pct_start=0.05)
    draw = random.Random(config.seed)
    for step in range(config.steps):
        progress("train", step, config.steps)
        pictures, places, background = _batch(reader.names, painter, config, draw)
        with mixed():
            found, colour, _ = reader(pictures.to(memory_format=torch.channels_last))
        loss = F.cross_entropy(found.float().flatten(0, 1), places.flatten())
        loss = loss + 0.3 * F.cross_entropy(colour.float(), background)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    progress("train", config.steps, config.steps)
    reader = reader.half().float().eval()
    right = accuracy(reader, painter, UNSEEN, config.seed + 1)
    info = {"features": config.features, "steps": config.steps, "scenes": file_digest(FILE), "right": right}
    write_weights(path, KEY, info, reader.state_dict())
    return right


def accuracy(reader: Reader, painter: Painter, count: int, seed: int) -> dict[str, float]:
    """Shares of drawn scenes, as a picture model should draw them, of which everything, every place, and the background
    is read right."""
    draw = random.Random(f"{seed}-unseen")
    scenes = [random_scene(draw) for _ in range(count)]
    places, background = [], []
    for first in range(0, count, 200):
        own = scenes[first : first + 200]
        seen = reader.read(torch.stack([painter.paint(scene, draw) for scene in own]))
        for scene, objects, colour in zip(own, seen.objects, seen.colours, strict=True):
            places.append(objects == dict.fromkeys(PLACES, NOTHING) | dict(scene.objects))
            background.append(colour == scene.colour)
    both = [a and b for a, b in zip(places, background, strict=True)]
    return {name: sum(v) / count for name, v in {"all": both, "places": places, "background": background}.items()}


def _batch(names: Sequence[str], painter: Painter, config: ReaderConfig, draw: random.Random):
    """Pictures, and the places of what is in them among names (B, P) and colours (B,)."""
    pictures, places, background = [], [], []
    index = {name: at for at, name in enumerate(names)}
    for _ in range(config.batch):
        scene = random_scene(draw)
        scene = scene if draw.random() > 0.05 else Scene((), scene.colour)
        picture = painter.blank(scene.colour, draw)
        own = dict.fromkeys(PLACES, index[NOTHING])
        for place, name in scene.objects:
            glyph, own[place] = painter.glyphs[name], index[name]
            if draw.random() < config.spoilt:
                glyph, own[place] = _spoilt(painter, name, draw), index[UNCLEAR]
            elif draw.random() < 0.4:
                glyph = _worn(glyph, draw)
            painter.put(picture, glyph, place, draw, jitter=2)
        if draw.random() < 0.5:
            picture = _blurred(picture, draw.uniform(0, 0.7))
        picture = picture * draw.uniform(0.92, 1.06) + draw.uniform(-0.05, 0.05)
        pictures.append(picture)
        places.append(list(own.values()))
        background.append(list(colours()).index(scene.colour))
    x = torch.stack(pictures)
    x = x + torch.randn(x.shape) * torch.rand(len(x), 1, 1, 1) * 0.12
    return x.clamp(-1, 1), torch.tensor(places), torch.tensor(background)


def _worn(glyph: Tensor, draw: random.Random) -> Tensor:
    """Still recognisable: a little blurred, stretched, discoloured or scratched."""
    glyph = glyph.clone()
    if draw.random() < 0.5:
        side = draw.randint(int(0.8 * GLYPH), GLYPH)
        small = F.interpolate(glyph[None], (side, draw.randint(int(0.85 * GLYPH), GLYPH)), mode="area")[0]
        glyph = torch.cat([torch.ones(3, GLYPH, GLYPH), torch.zeros(1, GLYPH, GLYPH)])
        y, x = (GLYPH - small.shape[1]) // 2, (GLYPH - small.shape[2]) // 2
        glyph[:, y : y + small.shape[1], x : x + small.shape[2]] = small
    glyph[:3] = (glyph[:3] + torch.tensor([draw.uniform(-0.12, 0.12) for _ in range(3)])[:, None, None]).clamp(-1, 1)
    if draw.random() < 0.3:
        y, x = draw.randrange(GLYPH - 5), draw.randrange(GLYPH - 5)
        glyph[3, y : y + draw.randint(2, 5), x : x + draw.randint(2, 5)] = 0
    if draw.random() < 0.4:
        glyph = _blurred(glyph, draw.uniform(0.3, 1.0))
    return glyph


def _spoilt(painter: Painter, name: str, draw: random.Random) -> Tensor:
    """No longer an object: mixed with another, half of it another, cut into squares and shuffled, or washed out."""
    glyph, other = painter.glyphs[name], painter.glyphs[draw.choice([n for n in painter.glyphs if n != name])]
    kind = draw.randrange(4)
    if kind == 0:
        return glyph.lerp(other, draw.uniform(0.4, 0.6))
    if kind == 1:
        half = torch.zeros(GLYPH, GLYPH, dtype=torch.bool)
        half[:, : GLYPH // 2 + draw.randint(-2, 2)] = True
        half = half if draw.random() < 0.5 else half.T
        return torch.where(half, glyph, other)
    if kind == 2:
        side = GLYPH // 2
        parts = [glyph[:, y : y + side, x : x + side] for y in (0, side) for x in (0, side)]
        order = [1, 2, 3, 0] if draw.random() < 0.5 else [3, 2, 1, 0]
        a, b, c, d = (parts[i] for i in order)
        return torch.cat([torch.cat([a, b], 2), torch.cat([c, d], 2)], 1)
    return _blurred(glyph, draw.uniform(3.5, 6))


def _blurred(x: Tensor, sigma: float) -> Tensor:
    """(C, H, W) under a Gaussian of this many pixels."""
    return torch.from_numpy(gaussian_filter(x.numpy(), (0, sigma, sigma), mode="nearest", truncate=2.5))
