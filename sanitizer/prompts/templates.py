"""Sentence frames and benign prompts, from concepts/templates.toml, and how they are filled."""

import random
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from .concepts import FOLDER, KINDS, TEMPLATES, TOPIC, _File

SLOT = re.compile(r"\{(\w+)\}")
ARTICLE = re.compile(r"\b([Aa])n? (?=(\W*\w))")
PHRASE = "phrase"
DISPLAY = "display"
"""Kind of the frames that show a noun phrase in the formats in which others talk about a topic."""


@dataclass(frozen=True)
class Templates:
    slots: dict[str, tuple[str, ...]]
    frames: dict[str, tuple[str, ...]]
    """Kind -> frames with {phrase}."""
    held_out_frames: dict[str, tuple[str, ...]]
    benign_frames: tuple[str, ...]
    benign_prompts: tuple[str, ...]
    held_out_benign_frames: tuple[str, ...]
    held_out_benign_prompts: tuple[str, ...]

    def fill(self, frame: str, rng: random.Random) -> str:
        """Fill every slot but {phrase}, each with an entry of its own."""
        return fix_articles(SLOT.sub(lambda m: m[0] if m[1] == PHRASE else rng.choice(self.slots[m[1]]), frame))


def insert(frame: str, phrase: str) -> str:
    """Put a phrase into a filled frame and set the article before it right."""
    return fix_articles(frame.replace("{" + PHRASE + "}", phrase))


def fix_articles(text: str) -> str:
    """a before a consonant, an before a vowel, by spelling."""
    return ARTICLE.sub(lambda m: m[1] + ("n " if m[2].strip().lower()[-1:] in "aeiou" else " "), text)


def load_templates(folder: Path = FOLDER) -> Templates:
    """Read and check the templates file. Raises SanitizerError with file and line."""
    file = _File(folder / f"{TEMPLATES}.toml")
    data = file.data
    tables = ("slots", "frames", "held_out_frames", "benign", "held_out_benign")
    file.expect(data, "", {"licence": str, **dict.fromkeys(tables, dict)}, {})
    for key in ("benign", "held_out_benign"):
        file.expect(data[key], f"[{key}]", {"frames": list, "prompts": list}, {})
    slots = data["slots"]
    for key in ("frames", "held_out_frames"):
        file.expect(data[key], f"[{key}]", dict.fromkeys((*KINDS, TOPIC, DISPLAY), list), {})
        for frames in data[key].values():
            for frame in frames:
                check_phrase_frame(file, frame, slots)
    for key in ("benign", "held_out_benign"):
        for frame in data[key]["frames"]:
            _check_frame(file, frame, set(slots))
    return Templates(
        slots={name: tuple(values) for name, values in slots.items()},
        frames={kind: tuple(frames) for kind, frames in data["frames"].items()},
        held_out_frames={kind: tuple(frames) for kind, frames in data["held_out_frames"].items()},
        benign_frames=tuple(data["benign"]["frames"]),
        benign_prompts=tuple(data["benign"]["prompts"]),
        held_out_benign_frames=tuple(data["held_out_benign"]["frames"]),
        held_out_benign_prompts=tuple(data["held_out_benign"]["prompts"]),
    )


def check_phrase_frame(file: _File, frame: str, slots: Iterable[str] = ()) -> None:
    """Raises SanitizerError for a frame without {phrase}, with more than one, or with a slot that is not known."""
    _check_frame(file, frame, {*slots, PHRASE})
    if frame.count("{" + PHRASE + "}") != 1:
        raise file.fail(frame, f"expected {{phrase}} once, found {frame!r}.")


def _check_frame(file: _File, frame: str, known: set[str]) -> None:
    for name in SLOT.findall(frame):
        if name not in known:
            raise file.fail(frame, f"unknown slot {{{name}}}; expected one of {', '.join(sorted(known))}.")
