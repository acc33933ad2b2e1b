"""Concept files: TOML that a person edits, checked, with errors that name file and line.

A file holds `[[group]]`s of one grammatical kind, each with its canonical anchor, `pairs` of "target -> anchor" to
train on and `held_out` ones for the report only; and `[[hard_negatives]]`, harmless look-alikes, likewise.
concepts/README.md describes the format for the person who edits it.
"""

import hashlib
import json
import math
import re
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

from ..errors import SanitizerError
from ..files import data_folder

FOLDER = data_folder("concepts")
TEMPLATES = "templates"
KINDS = ("adjective", "noun", "action", "detail", "tag", "sentence")
TOPIC = "topic"
"""Kind of the hard negatives that talk about a concept, and of the frames they stand in."""
ARROW = " -> "
MAX_PHRASE = 300


@dataclass(frozen=True)
class Pair:
    target: str
    anchor: str
    """Its own, varied safe counterpart: a negative for the score net."""
    canonical: str
    """The group's anchor: what the erase net learns to write. Predictable, so that it can be learnt."""
    kind: str
    held_out: bool = False


@dataclass(frozen=True)
class Phrase:
    text: str
    kind: str
    held_out: bool = False


@dataclass(frozen=True)
class Concept:
    name: str
    title: str
    description: str
    licence: str
    pairs: tuple[Pair, ...]
    hard_negatives: tuple[Phrase, ...] = ()
    overlaps: tuple[str, ...] = ()
    """Concepts that this one's phrases may belong to as well: no negatives for those."""
    context: bool = False
    """Scored, never erased."""
    lowers: tuple[tuple[str, float], ...] = ()
    """(concept, logits): the presence of this concept lowers that one's threshold."""
    guard_words: tuple[str, ...] = ()
    """Words for young people, which no prompt of a concept that can be erased may hold."""


class _File:
    """A TOML file that knows on which line a text stands."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise SanitizerError(f"{path}: cannot be read ({error}).") from error
        try:
            self.data = tomllib.loads("\n".join(self.lines))
        except tomllib.TOMLDecodeError as error:
            raise SanitizerError(f"{path}: no valid TOML: {error}.") from error

    def fail(self, text: str, message: str, occurrence: int = 0) -> SanitizerError:
        found = [number for number, line in enumerate(self.lines, 1) if text and text in line]
        line = found[min(occurrence, len(found) - 1)] if found else 1
        return SanitizerError(f"{self.path}, line {line}: {message}")

    def expect(self, table: dict, where: str, required: dict, optional: dict) -> None:
        for key in required:
            if key not in table:
                raise self.fail(where, f"{where or 'the file'} lacks the key {key!r}. Add it.")
        for key, value in table.items():
            kind = required.get(key) or optional.get(key)
            if kind is None:
                known = ", ".join([*required, *optional])
                raise self.fail(key, f"unknown key {key!r}; expected one of {known}.")
            if not isinstance(value, kind):
                raise self.fail(key, f"{key!r}: expected {kind.__name__}, found {type(value).__name__}.")


def evenly(pairs: Sequence[Pair], most: int) -> list[Pair]:
    """At most so many of the pairs, taken evenly: a concept file's order goes by topic."""
    count = min(len(pairs), most)
    return [pairs[i * len(pairs) // count] for i in range(count)]


def digest(concept: Concept) -> str:
    """16 hexadecimal digits of what makes a concept: its pairs, in any order."""
    pairs = sorted(astuple(pair) for pair in concept.pairs)
    return hashlib.sha256(json.dumps(pairs).encode()).hexdigest()[:16]


def available(folder: Path = FOLDER) -> list[str]:
    """Names of the concept files in a folder."""
    return sorted(path.stem for path in folder.glob("*.toml") if path.stem != TEMPLATES)


def load_concepts(names: Iterable[str] | None = None, folder: Path = FOLDER) -> list[Concept]:
    """Load concepts by name, all of the folder for None or "all". Context concepts that concern them come along.

    Raises SanitizerError with file and line for anything wrong in a file, and for an unknown name.
    """
    known = available(folder)
    wanted = known if names is None or list(names) == ["all"] else list(dict.fromkeys(names))
    for name in wanted:
        if name not in known:
            raise SanitizerError(f"Concept {name!r}: no such file in {folder}. There are: {', '.join(known)}.")
    chosen = [load_concept(folder / f"{name}.toml") for name in wanted]
    if not any(not concept.context for concept in chosen):
        raise SanitizerError(f"Concepts {', '.join(wanted)}: expected at least one that can be erased, found none.")
    for path in (folder / f"{name}.toml" for name in known if name not in wanted):
        data = _File(path).data
        if data.get("context") and not set(wanted).isdisjoint(data.get("lowers", {})):
            chosen.append(load_concept(path))
    return chosen


def load_concept(path: Path) -> Concept:
    """Read and check one concept file. Raises SanitizerError with file and line."""
    file = _File(path)
    data = file.data
    file.expect(
        data,
        "",
        {"name": str, "title": str, "description": str, "licence": str, "group": list},
        {"hard_negatives": list, "overlaps": list, "context": bool, "lowers": dict, "guard_words": list},
    )
    if data["name"] != path.stem:
        raise file.fail("name", f"expected the name {path.stem!r}, like the file, found {data['name']!r}.")
    pairs: list[Pair] = []
    for group in data["group"]:
        file.expect(group, "[[group]]", {"kind": str, "anchor": str, "pairs": list}, {"held_out": list})
        for key in ("pairs", "held_out"):
            for line in group.get(key, []):
                target, anchor = _split_pair(file, line)
                pairs.append(Pair(target, anchor, group["anchor"], group["kind"], key == "held_out"))
        _check_kind(file, group["kind"], KINDS)
        _check_phrase(file, group["anchor"])
    phrases: list[Phrase] = []
    for group in data.get("hard_negatives", []):
        file.expect(group, "[[hard_negatives]]", {"kind": str, "phrases": list}, {"held_out": list})
        _check_kind(file, group["kind"], (*KINDS, TOPIC))
        for key in ("phrases", "held_out"):
            phrases += [Phrase(_check_phrase(file, t), group["kind"], key == "held_out") for t in group.get(key, [])]
    _check_unique(file, [pair.target for pair in pairs] + [phrase.text for phrase in phrases])
    context = data.get("context", False)
    for name, value in data.get("lowers", {}).items():
        # TOML knows nan and inf.
        if type(value) not in (int, float) or not 0 <= value < math.inf:
            raise file.fail("lowers", f"lowers, {name!r}: expected a number of logits from 0, found {value!r}.")
    if not context:
        _check_adults(file, path.parent, pairs, phrases)
    return Concept(
        name=data["name"],
        title=data["title"],
        description=data["description"],
        licence=data["licence"],
        pairs=tuple(pairs),
        hard_negatives=tuple(phrases),
        overlaps=tuple(data.get("overlaps", ())),
        context=context,
        lowers=tuple((name, float(value)) for name, value in data.get("lowers", {}).items()),
        guard_words=tuple(data.get("guard_words", ())),
    )


def parse_custom_concept(text: str) -> Concept:
    """A concept from a few lines: its name, then lines "target -> anchor". Raises SanitizerError with the line.

    The grammatical kind is guessed from the target, and every target is its own group: its anchor is canonical.
    """
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if len(lines) < 2:
        raise SanitizerError(
            "Custom concept: expected a name in the first line and at least one line 'target -> anchor', "
            f"found {len(lines)} line(s)."
        )
    name = re.sub(r"\W+", "_", lines[0][1].lower()).strip("_")
    if ARROW.strip() in lines[0][1] or not name or phrase_problem(name):
        raise SanitizerError(f"Custom concept, line {lines[0][0]}: expected a name, found {lines[0][1]!r:.80}.")
    pairs = []
    for number, line in lines[1:]:
        target, arrow, anchor = (part.strip() for part in line.partition(ARROW.strip()))
        if not (target and arrow and anchor):
            raise SanitizerError(f"Custom concept, line {number}: expected 'target -> anchor', found {line!r}.")
        for part in (target, anchor):
            problem = phrase_problem(part)
            if problem:
                raise SanitizerError(f"Custom concept, line {number}: {problem}.")
        pairs += [Pair(target, anchor, anchor, kind) for kind in _guess_kinds(target)]
    return Concept(
        name=name,
        title=lines[0][1],
        description="A concept of the user's own.",
        licence="the user's",
        pairs=tuple(pairs),
    )


def _guess_kinds(target: str) -> tuple[str, ...]:
    if target.split()[0].lower().endswith("ing"):
        return ("action", "tag")
    if target.split()[0].lower() in ("with", "in", "on", "without", "at"):
        return ("detail", "tag")
    return ("noun", "tag")


def _split_pair(file: _File, line: object) -> tuple[str, str]:
    if not isinstance(line, str) or line.count(ARROW) != 1:
        raise file.fail(str(line), f'expected "target -> anchor", found {line!r}.')
    target, anchor = line.split(ARROW)
    return _check_phrase(file, target, line), _check_phrase(file, anchor, line)


def _check_kind(file: _File, kind: str, kinds: Sequence[str]) -> None:
    if kind not in kinds:
        raise file.fail(f'"{kind}"', f"expected a kind out of {', '.join(kinds)}, found {kind!r}.")


def phrase_problem(text: object) -> str | None:
    """What keeps a value from being a phrase of a concept; None for nothing."""
    if not isinstance(text, str) or not text.strip():
        return f"expected a phrase, found {text!r}"
    if len(text) > MAX_PHRASE:
        return f"expected at most {MAX_PHRASE} characters, found {len(text)}"
    if "{" in text or "}" in text or not text.isprintable():
        return f"braces and control characters are not allowed in {text!r}"
    return None


def _check_phrase(file: _File, text: object, line: str | None = None) -> str:
    problem = phrase_problem(text)
    if problem:
        raise file.fail(line or str(text), f"{problem}.")
    return str(text).strip()


def _check_unique(file: _File, texts: list[str]) -> None:
    seen: set[str] = set()
    for text in texts:
        key = text.lower()
        if key in seen:
            raise file.fail(f'"{text}', f"{text!r} stands in this file twice. Remove one.", occurrence=1)
        seen.add(key)


def any_word(words: Iterable[str], alone: bool = True) -> re.Pattern[str]:
    """Finds one of the words, in any case; standing alone, or, with alone=False, anywhere."""
    edge = r"\b" if alone else ""
    return re.compile(f"{edge}(" + "|".join(re.escape(word) for word in words) + f"){edge}", re.IGNORECASE)


def _check_adults(file: _File, folder: Path, pairs: list[Pair], phrases: list[Phrase]) -> None:
    """Every subject is an adult: words for young people, listed in youth.toml, stand in no other concept file."""
    guard = folder / "youth.toml"
    if not guard.is_file():
        return
    words = tomllib.loads(guard.read_text(encoding="utf-8")).get("guard_words", [])
    if not words:
        return
    texts = [text for pair in pairs for text in (pair.target, pair.anchor, pair.canonical)]
    refuse_words(file, [*texts, *(phrase.text for phrase in phrases)], any_word(words), "youth.toml")


def refuse_words(file: _File, texts: Iterable[str], young: re.Pattern[str], where: str) -> None:
    """Raises SanitizerError for a text with a word for young people, which only `where` may hold."""
    for text in texts:
        if found := young.search(text):
            raise file.fail(text, f"{found.group()!r} is a word for young people, which only {where} may hold.")
