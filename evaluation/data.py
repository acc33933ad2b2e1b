"""Prompt sets: published ones, found in a folder and read with their own column names, and bundled ones.

What a set is good for is its role: prompts that are unsafe in their words (explicit), in the picture rather than in the
words (implicit), optimised against a model (adversarial) or harmless (benign, borderline). A set may be paired: each
unsafe prompt has a safe counterfactual. The bundled sets need no download: they are made of held-out phrases of a
concept file in held-out frames.
"""

import io
import json
import random
import re
import tomllib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path

import pandas as pd

from sanitizer.errors import SanitizerError
from sanitizer.prompts.concepts import Concept, Pair, load_concepts
from sanitizer.prompts.generator import PromptGenerator
from sanitizer.prompts.languages import load_languages
from sanitizer.prompts.obfuscation import OBFUSCATIONS
from sanitizer.prompts.templates import Templates, insert, load_templates

from .types import HARMLESS_ROLES, PROBE_ROLE, UNSAFE_ROLES, PromptSet

TABLE = Path(__file__).resolve().parent / "prompt_sets.toml"
ENDINGS = (".csv", ".tsv", ".txt", ".jsonl", ".ndjson", ".json")
GIVEN_ROLES = ("explicit", "implicit", "adversarial", *HARMLESS_ROLES)
KEYS = {"title", "source", "role", "files", "column", "join", "safe", "safe_file", "category", "concepts"}

HELD_OUT, OBFUSCATED, SCRAMBLED = "held_out", "obfuscated", "scrambled"
SEVERAL, DILUTED, LANGUAGES = "several", "diluted", "languages"
DILUTED_WORDS = 50
"""Harmless words among which a phrase stands in a diluted prompt."""
BENIGN, HARD_NEGATIVES, TOPICS = "held_out_benign", "held_out_hard_negatives", "held_out_topics"
PROBE_PAIRS, PROBE_BENIGN = "probe_pairs", "probe_benign"
PROBE_SEED = 7919
"""Added to the seed, so that no probe sees the very prompts that the methods are tuned on."""
SCOPES = ("phrase", "prompt")


def read_table(path: Path) -> pd.DataFrame:
    """All rows of a file, every value as text. A .txt file has one column, "prompt", a line each.

    Raises SanitizerError that names the file for one that cannot be read or is no table.
    """
    ending = path.suffix.lower()
    if ending not in ENDINGS:
        raise SanitizerError(f"{path}: expected a name that ends in {', '.join(ENDINGS)}.")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise SanitizerError(f"{path}: cannot be read ({error.strerror or error}).") from error
    except UnicodeDecodeError as error:
        raise SanitizerError(f"{path}: no UTF-8 ({error.reason}). Save the file as UTF-8.") from error
    if ending == ".txt":
        return pd.DataFrame({"prompt": [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]})
    if ending in (".csv", ".tsv"):
        return _separated(path, text, "\t" if ending == ".tsv" else ",")
    return _json(path, text, ending == ".json")


def _separated(path: Path, text: str, separator: str) -> pd.DataFrame:
    try:
        with warnings.catch_warnings():
            # A row with more values than the header has columns: a prompt with a comma that nobody quoted.
            warnings.simplefilter("error", pd.errors.ParserWarning)
            # Only a line feed ends a line here, as in the sanitizer's own readers: prompts hold other separators.
            table = pd.read_csv(
                io.StringIO(text), sep=separator, dtype=str, keep_default_na=False, index_col=False, lineterminator="\n"
            )
    except pd.errors.EmptyDataError:
        return pd.DataFrame()
    except (pd.errors.ParserError, pd.errors.ParserWarning, ValueError) as error:
        raise SanitizerError(f"{path}: no valid table ({' '.join(str(error).split())}).") from error
    table = table.rename(columns=str.strip).fillna("").apply(lambda column: column.str.strip())
    # With a carriage return before its line feed an empty line is no longer empty for pandas.
    return table[(table != "").any(axis=1)].reset_index(drop=True)


def _json(path: Path, text: str, whole: bool) -> pd.DataFrame:
    # Not pandas.read_json, which makes dates and numbers of what looks like them.
    try:
        values = json.loads(text) if whole else [json.loads(line) for line in text.split("\n") if line.strip()]
    except (ValueError, RecursionError) as error:
        raise SanitizerError(f"{path}: no valid JSON ({error}).") from error
    if not isinstance(values, list):
        raise SanitizerError(f"{path}: expected a list of prompts or of objects, found {type(values).__name__}.")
    records = []
    for number, value in enumerate(values, 1):
        if isinstance(value, str):
            records.append({"prompt": value})
        elif isinstance(value, dict):
            records.append({str(key): "" if entry is None else str(entry) for key, entry in value.items()})
        else:
            raise SanitizerError(f"{path}, entry {number}: expected text or an object, found {type(value).__name__}.")
    return pd.DataFrame(records)


def column_of(path: Path, table: pd.DataFrame, names: str | Sequence[str]) -> list[str]:
    """The values of the first of these columns that the table of this file has. Raises SanitizerError."""
    names = _listed(names)
    if table.empty:
        raise SanitizerError(f"{path}: an empty set, no prompt in it. Fill it or take it out of the folder.")
    for name in names:
        if name in table:
            missing = table[name].isna().to_numpy()
            if missing.any():
                raise SanitizerError(f"{path}, row {missing.argmax() + 1}: expected a column {name!r}.")
            return table[name].tolist()
    # A file of lines has no column names; its one column is the prompts.
    if path.suffix.lower() == ".txt":
        return table["prompt"].tolist()
    expected = " or ".join(repr(name) for name in names)
    raise SanitizerError(f"{path}: expected a column {expected}, found {', '.join(table)}.")


def load_table(folder: Path | None = None) -> dict[str, dict]:
    """Name -> entry of prompt_sets.toml, with those of the folder's own table added or put in their place.

    Raises SanitizerError for a table that is no TOML, an unknown key or role, or an unsafe set without a concept.
    """
    entries = _read_table(TABLE)
    own = folder / TABLE.name if folder else None
    if own is not None and own.is_file():
        entries |= _read_table(own)
    return entries


def _read_table(path: Path) -> dict[str, dict]:
    try:
        entries = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SanitizerError(f"{path}: no table of prompt sets ({error}).") from error
    for name, entry in entries.items():
        where = f"{path}, [{name}]"
        if not isinstance(entry, dict) or "files" not in entry or not ("column" in entry or "join" in entry):
            raise SanitizerError(f"{where}: expected at least files and column (or join).")
        unknown = sorted(entry.keys() - KEYS)
        if unknown:
            raise SanitizerError(f"{where}: unknown key {unknown[0]!r}; expected {', '.join(sorted(KEYS))}.")
        if entry.get("role") not in GIVEN_ROLES:
            roles = ", ".join(GIVEN_ROLES)
            raise SanitizerError(f"{where}: expected a role out of {roles}, found {entry.get('role')!r}.")
        if not re.fullmatch(r"[\w-]+", name):
            raise SanitizerError(f"{where}: expected a name of letters, digits, _ and -.")
        if (entry["role"] in UNSAFE_ROLES) != bool(entry.get("concepts")):
            raise SanitizerError(
                f"{where}: an unsafe set needs concepts, as {{ nudity = [] }}; a harmless one has none."
            )
    return entries


def load_sets(folder: Path, concepts: Sequence[str]) -> tuple[list[PromptSet], list[str]]:
    """All sets of the table that lie in the folder, an unsafe set once for each concept, and the names of the missing.

    Raises SanitizerError for a folder that is none, a set file without its column, and one without prompts.
    """
    if not folder.is_dir():
        raise SanitizerError(f"{folder}: no folder. Expected one with prompt sets (--prompt-sets).")
    there = {path.name.lower(): path for path in sorted(folder.iterdir()) if path.is_file()}
    found, missing = [], []
    for name, entry in load_table(folder).items():
        wanted = [concept for concept in entry.get("concepts", {}) if concept in concepts]
        if entry["role"] in UNSAFE_ROLES and not wanted:
            continue
        path = _find(there, entry["files"])
        if path is None:
            missing.append(name)
        else:
            found += _read_set(name, entry, path, there, wanted)
    return found, missing


def _find(there: dict[str, Path], names: Sequence[str]) -> Path | None:
    return next((there[name.lower()] for name in _listed(names) if name.lower() in there), None)


def _read_set(name: str, entry: dict, path: Path, there: dict[str, Path], concepts: Sequence[str]) -> list[PromptSet]:
    table = read_table(path)
    if "join" in entry and not any(column in table for column in _listed(entry.get("column", []))):
        columns = zip(*(column_of(path, table, column) for column in entry["join"]), strict=True)
        prompts = [" ".join(v for value in row if (v := value.strip()) and v != "None") for row in columns]
    else:
        prompts = column_of(path, table, entry.get("column", "prompt"))
    safe = None
    if "safe" in entry:
        other, pairs = path, table
        if "safe_file" in entry:
            other = _find(there, entry["safe_file"])
            if other is None:
                raise SanitizerError(
                    f"{path}: its safe counterfactuals, {entry['safe_file'][0]}, are missing from the folder."
                )
            pairs = read_table(other)
        safe = column_of(other, pairs, entry["safe"])
        if len(safe) != len(prompts):
            raise SanitizerError(
                f"{other}: expected {len(prompts)} safe counterfactuals, one a prompt, found {len(safe)}."
            )
    labels = column_of(path, table, entry["category"]) if "category" in entry else None
    title, source = entry.get("title", name), entry.get("source", "")
    whole = PromptSet(name, title, entry["role"], prompts, None, safe, labels, source)
    whole = whole.select([i for i, text in enumerate(prompts) if text.strip() and (safe is None or safe[i].strip())])
    if not whole.prompts:
        raise SanitizerError(f"{path}: an empty set, no prompt in it. Fill it or take it out of the folder.")
    if not concepts:
        return [whole]
    sets = []
    for concept in concepts:
        categories = set(entry["concepts"][concept])
        index = [
            i
            for i in range(len(whole.prompts))
            if not categories or not labels or categories & {c.strip() for c in whole.labels[i].split(",")}
        ]
        if index:
            sets.append(replace(whole.select(index), concept=concept, labels=None))
    return sets


def _listed(value: str | Sequence[str]) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def bundled_sets(concept: str, examples: int, limit: int | None, seed: int) -> list[PromptSet]:
    """The sets of one concept, at most `limit` prompts (or pairs) each; `examples` pairs to train probes on."""
    limit = limit or 10**9
    concepts, templates = load_concepts([concept]), load_templates()
    chosen = next(c for c in concepts if c.name == concept)
    source = "concepts/, phrases and frames kept from training"
    pairs = [pair for pair in chosen.pairs if pair.held_out]
    random.Random(f"{seed}-{concept}").shuffle(pairs)
    generator = PromptGenerator(concepts, templates, seed, split="held_out")
    held_out = [generator.unit(chosen, pair) for pair in pairs[:limit]]
    scrambled = [_scrambled(generator, pair) for pair in pairs[:limit]]
    obfuscated, labels = _obfuscated(generator, pairs, limit)
    together, among = (
        generator.writing(config) for config in (generator.config.together(), generator.config.among(DILUTED_WORDS))
    )
    several = [together.unit(chosen, pair) for pair in pairs[:limit]]
    diluted = [among.unit(chosen, pair) for pair in pairs[:limit]]
    foreign, tongues = _foreign(concept, limit, generator.rng)
    sets = [
        _paired(HELD_OUT, "Held-out phrases", "explicit", concept, [(u.text, s) for u, s in held_out], source),
        _paired(OBFUSCATED, "Held-out phrases, obfuscated", "obfuscated", concept, obfuscated, source, labels),
        _paired(SCRAMBLED, "Held-out phrases in scrambled text", "adversarial", concept, scrambled, source),
        _paired(SEVERAL, "Several held-out phrases", "explicit", concept, [(u.text, s) for u, s in several], source),
        _paired(DILUTED, "Held-out phrases, diluted", "explicit", concept, [(u.text, s) for u, s in diluted], source),
    ]
    if foreign:
        sets.append(_paired(LANGUAGES, "Other languages", "explicit", concept, foreign, source, tongues))
    own = PromptGenerator([chosen], templates, seed, split="held_out")
    hard = [own.hard_negative() for _ in range(min(limit, 2 * len(own.hard)))]
    topics = [own.topic() for _ in range(min(limit, 4 * len(own.topics)))]
    for name, title, prompts in (
        (HARD_NEGATIVES, "Held-out hard negatives", hard),
        (TOPICS, "Held-out talk about the concept", topics),
    ):
        if prompts:
            sets.append(PromptSet(name, title, "borderline", prompts, concept, source=source))
    return sets + probe_sets(chosen, concepts, templates, examples, seed)


def benign_set(count: int, seed: int) -> PromptSet:
    """Harmless prompts and frames kept from training, for all concepts."""
    generator = PromptGenerator(load_concepts(), load_templates(), seed, split="held_out")
    return PromptSet(BENIGN, "Held-out harmless prompts", "benign", generator.plain(count), source="concepts/")


def probe_sets(
    concept: Concept, concepts: list[Concept], templates: Templates, examples: int, seed: int
) -> list[PromptSet]:
    """Training phrases in training frames with their safe counterfactuals, and harmless prompts and hard negatives."""
    generator = PromptGenerator(concepts, templates, seed + PROBE_SEED)
    drawn = [generator.unit(concept, pair) for pair in cycled(concept, generator.rng, examples)]
    benign = harmless(generator, examples)
    return [
        _paired(PROBE_PAIRS, "Probe training, pairs", PROBE_ROLE, concept.name, [(u.text, s) for u, s in drawn], ""),
        PromptSet(PROBE_BENIGN, "Probe training, harmless", PROBE_ROLE, benign, concept.name),
    ]


def harmless(generator: PromptGenerator, count: int) -> list[str]:
    """Harmless prompts, every third a hard negative where the concept has some."""
    return [generator.hard_negative() if generator.hard and i % 3 == 0 else generator.benign() for i in range(count)]


def cycled(concept: Concept, rng: random.Random, count: int) -> Iterator[Pair]:
    """`count` training pairs, every one as often as the others."""
    pairs = [pair for pair in concept.pairs if not pair.held_out]
    for at in range(count):
        if at % len(pairs) == 0:
            rng.shuffle(pairs)
        yield pairs[at % len(pairs)]


def _foreign(concept: str, limit: int, rng: random.Random) -> tuple[list[tuple[str, str]], list[str]]:
    """Held-out phrases of all other languages, in turn, in held-out frames, and what language each is in."""
    columns = []
    for language in load_languages():
        pairs = [pair for pair in language.pairs.get(concept, ()) if pair.held_out]
        rng.shuffle(pairs)
        frames = [rng.choice(language.held_out_frames) for _ in pairs]
        columns.append(
            [
                ((insert(frame, pair.target), insert(frame, pair.anchor)), language.name)
                for frame, pair in zip(frames, pairs, strict=True)
            ]
        )
    drawn = [entry for row in zip_longest(*columns) for entry in row if entry is not None][:limit]
    return [pair for pair, _ in drawn], [name for _, name in drawn]


def _scrambled(generator: PromptGenerator, pair: Pair) -> tuple[str, str]:
    """The phrase amid words in no order and fragments, as optimised prompts look; the same around the safe one."""
    frame = generator.scrambled("{phrase}")
    return frame.replace("{phrase}", pair.target), frame.replace("{phrase}", pair.anchor)


def _obfuscated(generator: PromptGenerator, pairs: list[Pair], limit: int) -> tuple[list[tuple[str, str]], list[str]]:
    """Every obfuscation, of the phrase alone and of the whole prompt, on about as many pairs each."""
    kinds = [(name, scope) for name in OBFUSCATIONS for scope in SCOPES]
    drawn, labels = [], []
    for at in range(min(limit, 2 * len(pairs))):
        name, scope = kinds[at % len(kinds)]
        pair = pairs[at % len(pairs)]
        change, frame = OBFUSCATIONS[name], generator.filled_frame(pair.kind)
        seed = generator.rng.random()
        # The counterfactual gets the same draws: it differs in the phrase, not in the manner of writing.
        texts = []
        for phrase in (pair.target, pair.anchor):
            rng = random.Random(seed)
            whole = scope == "prompt"
            texts.append(change(insert(frame, phrase), rng) if whole else insert(frame, change(phrase, rng)))
        drawn.append(tuple(texts))
        labels.append(f"{name}, {scope}")
    return drawn, labels


def _paired(name, title, role, concept, pairs, source, labels=None) -> PromptSet:
    return PromptSet(name, title, role, [u for u, _ in pairs], concept, [s for _, s in pairs], labels, source)
