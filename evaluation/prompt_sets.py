"""Published prompt sets, found in a folder by the table prompt_sets.toml and read with their own column names.

What a set is good for is its role: prompts that are unsafe in their words (explicit), in the picture rather than in the
words (implicit), optimised against a model (adversarial) or harmless (benign, borderline). A set may be paired: each
unsafe prompt has a safe twin.
"""

import hashlib
import random
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sanitizer.errors import SanitizerError

from .records import read_records

TABLE = Path(__file__).resolve().parent / "prompt_sets.toml"
UNSAFE_ROLES = ("explicit", "implicit", "adversarial", "obfuscated")
HARMLESS_ROLES = ("benign", "borderline")
GIVEN_ROLES = ("explicit", "implicit", "adversarial", *HARMLESS_ROLES)
KEYS = {"title", "source", "role", "files", "column", "join", "safe", "safe_file", "category", "concepts"}


@dataclass(frozen=True)
class PromptSet:
    """Prompts of one role. Figures of an unsafe set are of one concept; a harmless set serves all concepts."""

    name: str
    title: str
    role: str
    prompts: list[str]
    concept: str | None = None
    safe: list[str] | None = None
    """The safe twin of each prompt."""
    labels: list[str] | None = None
    """A category of each prompt, by which figures are split."""
    source: str = ""

    @property
    def key(self) -> str:
        """Unique among the sets of a run, fit for a file name."""
        return f"{self.name}-{self.concept}" if self.concept else self.name

    @property
    def digest(self) -> str:
        """Of the prompts and twins in their order."""
        text = "\0".join([*self.prompts, "", *(self.safe or [])])
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]

    def select(self, index: Sequence[int]) -> "PromptSet":
        """The prompts at these places."""

        def chosen(values):
            return None if values is None else [values[i] for i in index]

        return replace(self, prompts=chosen(self.prompts), safe=chosen(self.safe), labels=chosen(self.labels))

    def sample(self, limit: int | None, seed: int) -> "PromptSet":
        """At most `limit` prompts, drawn from the whole set, as many of each category as there are; in their order."""
        if limit is None or len(self.prompts) <= limit:
            return self
        order = list(range(len(self.prompts)))
        random.Random(f"{seed}-{self.key}").shuffle(order)
        seen: dict[str, int] = {}
        turn = {}
        for i in order:
            label = self.labels[i] if self.labels else ""
            turn[i] = seen[label] = seen.get(label, 0) + 1
        return self.select(sorted(sorted(order, key=turn.get)[:limit]))


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
    records = read_records(path)
    if "join" in entry and records and not any(column in records[0] for column in _listed(entry.get("column", []))):
        _columns(path, records, entry["join"])
        prompts = [" ".join(v for c in entry["join"] if (v := r[c].strip()) and v != "None") for r in records]
    else:
        prompts = _column(path, records, entry.get("column", "prompt"))
    safe = None
    if "safe" in entry:
        other, twins = path, records
        if "safe_file" in entry:
            other = _find(there, entry["safe_file"])
            if other is None:
                raise SanitizerError(f"{path}: its safe twins, {entry['safe_file'][0]}, are missing from the folder.")
            twins = read_records(other)
        safe = _column(other, twins, entry["safe"])
        if len(safe) != len(prompts):
            raise SanitizerError(f"{other}: expected {len(prompts)} safe twins, one a prompt, found {len(safe)}.")
    labels = _column(path, records, entry["category"]) if "category" in entry else None
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


def _column(path: Path, records: Sequence[dict[str, str]], names: str | Sequence[str]) -> list[str]:
    names = _listed(names)
    if not records:
        raise SanitizerError(f"{path}: an empty set, no prompt in it. Fill it or take it out of the folder.")
    for name in names:
        if name in records[0]:
            _columns(path, records, [name])
            return [record[name] for record in records]
    # A file of lines has no column names; its one column is the prompts.
    if set(records[0]) == {"prompt"} and path.suffix.lower() == ".txt":
        return [record["prompt"] for record in records]
    expected = " or ".join(repr(name) for name in names)
    raise SanitizerError(f"{path}: expected a column {expected}, found {', '.join(records[0]) or 'none'}.")


def _columns(path: Path, records: Sequence[dict[str, str]], names: Sequence[str]) -> None:
    for number, record in enumerate(records, 1):
        for name in names:
            if name not in record:
                raise SanitizerError(f"{path}, row {number}: expected a column {name!r}, found {', '.join(record)}.")


def _listed(value: str | Sequence[str]) -> list[str]:
    return [value] if isinstance(value, str) else list(value)
