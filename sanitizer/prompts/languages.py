"""Phrases in other languages, from concepts/languages/: one file a language, with frames and harmless prompts of its
own. They are joined with the concepts as phrases of one more kind, for a kind is what says which frames a phrase fits.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from .concepts import (
    FOLDER,
    Concept,
    Pair,
    Phrase,
    _check_phrase,
    _check_unique,
    _File,
    _split_pair,
    any_word,
    refuse_words,
)
from .templates import Templates, check_phrase_frame

LANGUAGES = FOLDER / "languages"
LISTS = ("guard_words", "frames", "held_out_frames", "harmless", "held_out_harmless")
CONTEXT = "youth"
"""The table in which alone words for young people may stand."""
SPACELESS = "zh", "ja", "ko"
"""Languages in which a word stands beside another, or beside a particle, without a space."""


@dataclass(frozen=True)
class Language:
    code: str
    """Of two letters, as the file is called: the kind of its phrases."""
    name: str
    guard_words: tuple[str, ...]
    """Words for young people."""
    frames: tuple[str, ...]
    held_out_frames: tuple[str, ...]
    harmless: tuple[str, ...]
    held_out_harmless: tuple[str, ...]
    pairs: dict[str, tuple[Pair, ...]]
    """Concept -> its phrases."""
    hard_negatives: dict[str, tuple[Phrase, ...]]
    """Concept -> harmless look-alikes."""


def load_languages(folder: Path = LANGUAGES) -> list[Language]:
    """All languages of a folder, by their code. Raises SanitizerError with file and line for anything wrong."""
    return [load_language(path) for path in sorted(folder.glob("*.toml"))]


def load_language(path: Path) -> Language:
    """Read and check one file. Raises SanitizerError with file and line."""
    file = _File(path)
    tables = {name: dict for name, value in file.data.items() if isinstance(value, dict)}
    file.expect(file.data, "", {"language": str, "licence": str, **dict.fromkeys(LISTS, list)}, tables)
    lists = {key: tuple(_check_phrase(file, text) for text in file.data[key]) for key in LISTS if "frames" not in key}
    for key in ("frames", "held_out_frames"):
        for frame in file.data[key]:
            check_phrase_frame(file, frame)
        lists[key] = tuple(file.data[key])
    pairs, hard = {}, {}
    for name in tables:
        table = file.data[name]
        negatives = {"hard_negatives": list, "held_out_hard_negatives": list}
        file.expect(table, f"[{name}]", {"pairs": list, "held_out": list}, negatives)
        pairs[name] = tuple(
            Pair(target, anchor, anchor, path.stem, key == "held_out")
            for key in ("pairs", "held_out")
            for target, anchor in (_split_pair(file, line) for line in table[key])
        )
        hard[name] = tuple(
            Phrase(_check_phrase(file, text), path.stem, key.startswith("held_out"))
            for key in negatives
            for text in table.get(key, [])
        )
        _check_unique(file, [pair.target for pair in pairs[name]] + [phrase.text for phrase in hard[name]])
    found = Language(path.stem, file.data["language"], pairs=pairs, hard_negatives=hard, **lists)
    _check_adults(file, found)
    return found


def _check_adults(file: _File, language: Language) -> None:
    """Words for young people stand in no table but one."""
    own = [own for name, own in language.pairs.items() if name != CONTEXT]
    texts = [text for pairs in own for pair in pairs for text in (pair.target, pair.anchor)]
    texts += [p.text for phrases in language.hard_negatives.values() for p in phrases]
    texts += [*language.frames, *language.held_out_frames]
    refuse_words(file, texts, any_word(language.guard_words, alone=language.code not in SPACELESS), f"[{CONTEXT}]")


def with_languages(
    concepts: Sequence[Concept], templates: Templates, languages: Sequence[Language], known: Sequence[str]
) -> tuple[list[Concept], Templates]:
    """The concepts and templates with what is in other languages: harmless text of all of them, and phrases of the
    known ones, which the encoder tells from harmless ones; the others' would only teach that a language is harmful."""
    joined = []
    for concept in concepts:
        pairs = [pair for own in languages if own.code in known for pair in own.pairs.get(concept.name, ())]
        anchors = [
            Phrase(pair.anchor, pair.kind, pair.held_out)
            for own in languages
            if own.code not in known
            for pair in own.pairs.get(concept.name, ())
        ]
        hard = [phrase for own in languages for phrase in own.hard_negatives.get(concept.name, ())]
        guard = [word for own in languages for word in own.guard_words] if concept.guard_words else []
        joined.append(
            replace(
                concept,
                pairs=(*concept.pairs, *pairs),
                hard_negatives=(*concept.hard_negatives, *hard, *anchors),
                guard_words=(*concept.guard_words, *guard),
            )
        )
    return joined, replace(
        templates,
        frames=templates.frames | {own.code: own.frames for own in languages},
        held_out_frames=templates.held_out_frames | {own.code: own.held_out_frames for own in languages},
        benign_prompts=(*templates.benign_prompts, *(text for own in languages for text in own.harmless)),
        held_out_benign_prompts=(
            *templates.held_out_benign_prompts,
            *(text for own in languages for text in own.held_out_harmless),
        ),
    )
