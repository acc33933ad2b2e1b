"""Scenes of one or two objects before a coloured background: what they are, how they are drawn, and how captions speak
of them. scenes.toml names the objects, the colours and the wordings.

Objects are glyphs of the font Noto Color Emoji, which is drawn from and never copied into the repository, and shapes of
polygons and ellipses. Pictures are (3, SIZE, SIZE) float tensors from -1 to 1.
"""

import random
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from sanitizer.errors import SanitizerError
from sanitizer.prompts.obfuscation import obfuscate

FILE = Path(__file__).with_name("scenes.toml")
FONTS = (
    Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"),
    Path("/usr/share/fonts/google-noto-emoji/NotoColorEmoji.ttf"),
    Path("/usr/share/fonts/noto/NotoColorEmoji.ttf"),
    Path("/usr/local/share/fonts/NotoColorEmoji.ttf"),
)
FONT_SIZE = 109
"""The size of the font's only bitmaps, in pixels."""
SIZE, GLYPH = 48, 22
"""Pixels of a picture's side and of an object's."""
PLACES = ("left", "centre", "right")
CENTRES = {"left": 12, "centre": 24, "right": 36}
"""Pixels from the left edge."""
JITTER = 1
"""An object stands at most so many pixels beside its place."""
WEAPON, PERSON = "weapon", "person"


class Thing(NamedTuple):
    """What can be drawn."""

    name: str
    group: str
    names: tuple[str, ...]
    held_out: tuple[str, ...] = ()
    """Names that the picture model knows and the sanitizer's concept file does not."""
    instead: str | None = None
    """Of a weapon: the object in its place in a safe counterfactual."""
    glyph: str | None = None
    shape: tuple[dict, ...] = ()

    @property
    def weapon(self) -> bool:
        """Whether it is a weapon."""
        return self.group == WEAPON


@dataclass(frozen=True)
class Scene:
    """Objects by place, and a background."""

    objects: tuple[tuple[str, str], ...]
    """(place, name of the object), one or two."""
    colour: str

    @property
    def weapons(self) -> list[str]:
        """Names of the objects that are weapons."""
        return [name for _, name in self.objects if things()[name].weapon]

    @property
    def safe(self) -> "Scene":
        """With the harmless objects in the place of weapons."""
        return replace(self, objects=tuple((place, things()[name].instead or name) for place, name in self.objects))


class Caption(NamedTuple):
    """A scene in words."""

    text: str
    colour: bool
    """Whether the background is named."""


@cache
def _file() -> dict:
    try:
        found = tomllib.loads(FILE.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SanitizerError(f"{FILE}: cannot be read: {error}") from None
    missing = [name for name in ("object", "colours", "words") if not found.get(name)]
    if missing:
        raise SanitizerError(f"{FILE}: expected objects, colours and words, found nothing for {', '.join(missing)}.")
    return found


@cache
def things() -> dict[str, Thing]:
    """Name -> object, in the file's order. Raises SanitizerError for an entry with a wrong or a missing field, and for
    a weapon in whose place nothing stands."""
    tuples, known = ("names", "held_out", "shape"), {}
    for entry in _file()["object"]:
        try:
            thing = Thing(**{k: tuple(v) if k in tuples else v for k, v in entry.items()})
        except TypeError as error:
            raise SanitizerError(f"{FILE}: object {entry.get('name')!r}: {error}") from None
        known[thing.name] = thing
    for thing in known.values():
        if thing.weapon != (thing.instead in known):
            raise SanitizerError(f"{FILE}: object {thing.name!r}: 'instead' names an object, for weapons only.")
    return known


@cache
def colours() -> dict[str, tuple[int, int, int]]:
    """Name -> red, green and blue from 0 to 255."""
    return {name: tuple(value) for name, value in _file()["colours"].items()}


def random_scene(draw: random.Random, weapons: int | None = None, single: float = 0.35) -> Scene:
    """weapons: how many of the objects are; None leaves it to chance. single: share of scenes with one object."""
    known = list(things().values())
    harmful = [thing.name for thing in known if thing.weapon]
    harmless = [thing.name for thing in known if not thing.weapon]
    people = [thing.name for thing in known if thing.group == PERSON]
    count = 2 if weapons == 2 or draw.random() >= single else 1
    places = ("left", "right") if count == 2 else (draw.choice(PLACES),)
    harm = [draw.random() < 0.3 for _ in places] if weapons is None else [at < weapons for at in range(count)]
    names = [draw.choice(harmful if h else people if draw.random() < 0.2 else harmless) for h in harm]
    while count == 2 and names[0] == names[1]:
        names[1] = draw.choice(harmful if harm[1] else harmless)
    draw.shuffle(names)
    return Scene(tuple(zip(places, names, strict=True)), draw.choice(list(colours())))


def caption(
    scene: Scene,
    draw: random.Random,
    *,
    held_out: float = 0.4,
    disguised: float = 0.0,
    filler: Sequence[int] = (0, 0, 0, 0, 1, 2, 3),
    coloured: float = 0.8,
    phrases: dict[str, str] | None = None,
) -> Caption:
    """A caption in one of many wordings.

    held_out: share of weapons' names taken from those that are kept from the sanitizer; disguised: share of names whose
    letters are exchanged or spaced; filler: numbers of harmless sentences around it, one of which is drawn; coloured:
    share of captions that name the background; phrases: object -> what it is called, in place of a name of its own.
    """
    words = _file()["words"]
    said = []
    for _, name in scene.objects:
        thing = things()[name]
        names = thing.held_out if thing.held_out and draw.random() < held_out else thing.names
        # The plain name stands first and is used most.
        phrase = draw.choice(names) if draw.random() < 0.6 or names is thing.held_out else names[0]
        if phrases and name in phrases:
            phrase = phrases[name]
        said.append(obfuscate(phrase, draw) if draw.random() < disguised else phrase)
    named = draw.random() < coloured
    background = draw.choice(words["background"]).format(colour=scene.colour) if named else ""
    if draw.random() < 0.15:
        text = ", ".join(_tagged(scene, said, background, draw, words))
    else:
        text = _sentence(scene, said, background, draw, words)
    before, after = [], []
    for sentence in draw.sample(words["filler"], draw.choice(filler)):
        draw.choice((before, after)).append(sentence)
    if before or after:
        text = f"{text[0].upper()}{text[1:]}."
    return Caption(" ".join([*before, text, *after]), named)


def _sentence(scene: Scene, said: list[str], background: str, draw: random.Random, words: dict) -> str:
    if len(said) == 1:
        text = draw.choice(words["one"]).format(a=said[0])
        where = draw.choice(words[scene.objects[0][0]])
    else:
        person = things()[scene.objects[0][1]].group == PERSON
        frames = words["holding"] if person and draw.random() < 0.5 else words["two"]
        text, where = draw.choice(frames).format(a=said[0], b=said[1]), ""
    parts = [part for part in (where, background) if part]
    if parts and draw.random() < 0.2:
        text = f"{parts[-1]}: {text}"
        parts = parts[:-1]
    text = " ".join([text, *parts]) if draw.random() < 0.7 else ", ".join([text, *parts])
    return ", ".join([text, *draw.sample(words["tags"], draw.choice((0, 0, 0, 1, 2)))])


def _tagged(scene: Scene, said: list[str], background: str, draw: random.Random, words: dict) -> list[str]:
    """A list of tags, as many people write prompts."""
    bare = [phrase.removeprefix("a ").removeprefix("an ") for phrase in said]
    if len(bare) == 1:
        place = scene.objects[0][0]
        parts = [bare[0]] + ([place] if place != "centre" else [])
    else:
        parts = draw.choice(([f"{bare[0]} left", f"{bare[1]} right"], bare))
    parts += [background] if background else []
    return parts + draw.sample(words["tags"], draw.choice((0, 1, 2, 3)))


def find_font() -> Path:
    """The font's file. Raises SanitizerError where it is not installed."""
    for path in FONTS:
        if path.is_file():
            return path
    raise SanitizerError(
        "Noto Color Emoji: the font was not found, which scenes are drawn from. Debian and Ubuntu have it in the "
        f"package fonts-noto-color-emoji; or put NotoColorEmoji.ttf at {FONTS[-1]}."
    )


class Painter:
    """Draws scenes. Raises SanitizerError without the font."""

    def __init__(self) -> None:
        self.glyphs = _glyphs()
        """Name -> (4, GLYPH, GLYPH), colours from -1 to 1 and opacity from 0 to 1."""

    def blank(self, colour: str, draw: random.Random) -> Tensor:
        """The background, its colour a little off."""
        rgb = torch.tensor(colours()[colour], dtype=torch.float32) + draw.uniform(-6, 6)
        return (rgb.clamp(0, 255) / 127.5 - 1)[:, None, None].expand(3, SIZE, SIZE).clone()

    def put(self, picture: Tensor, glyph: Tensor, place: str, draw: random.Random, jitter: int = JITTER) -> None:
        """Put an object (4, GLYPH, GLYPH) into its place, in the picture itself."""
        x = min(max(CENTRES[place] - GLYPH // 2 + draw.randint(-jitter, jitter), 0), SIZE - GLYPH)
        y = (SIZE - GLYPH) // 2 + draw.randint(-jitter, jitter)
        part = picture[:, y : y + GLYPH, x : x + GLYPH]
        part += glyph[3:] * (glyph[:3] - part)

    def paint(self, scene: Scene, draw: random.Random) -> Tensor:
        """(3, SIZE, SIZE) from -1 to 1."""
        picture = self.blank(scene.colour, draw)
        for place, name in scene.objects:
            self.put(picture, self.glyphs[name], place, draw)
        return picture


def _glyphs() -> dict[str, Tensor]:
    font = ImageFont.truetype(str(find_font()), FONT_SIZE)
    return {thing.name: _glyph(thing, font) for thing in things().values()}


def _glyph(thing: Thing, font: ImageFont.FreeTypeFont) -> Tensor:
    if thing.glyph:
        image = Image.new("RGBA", (160, 160))
        ImageDraw.Draw(image).text((10, 10), thing.glyph, font=font, embedded_color=True)
        image = image.crop(image.getbbox())
    else:
        side = 8 * GLYPH
        image = Image.new("RGBA", (side, side))
        pen = ImageDraw.Draw(image)
        for part in thing.shape:
            points = part.get("polygon") or [part["ellipse"][:2], part["ellipse"][2:]]
            points = [(side * x, side * y) for x, y in points]
            (pen.polygon if "polygon" in part else pen.ellipse)(points, fill=(*part["fill"], 255))
    image.thumbnail((GLYPH, GLYPH), Image.Resampling.LANCZOS)
    square = Image.new("RGBA", (GLYPH, GLYPH))
    square.paste(image, ((GLYPH - image.width) // 2, (GLYPH - image.height) // 2))
    values = torch.frombuffer(bytearray(square.tobytes()), dtype=torch.uint8).view(GLYPH, GLYPH, 4).permute(2, 0, 1)
    values = values.float() / 255
    return torch.cat([values[:3] * 2 - 1, values[3:]])
