"""The file sanitizer_guard.toml: what is done with every prompt that reaches a host's ComfyUI.

It is read whole or not at all: an unknown key, or a value out of its range, is an error that names it.
"""

import tomllib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from ..errors import SanitizerError
from ..model.config import MAX_STRENGTH, THRESHOLD, check_number

NAME = "sanitizer_guard.toml"
SANITIZE, REFUSE, ALLOW, SCORE = "sanitize", "refuse", "allow", "score"
DENIED = (
    "CheckpointSave", "CLIPSave", "ESTrainSanitizer", "LoadTrainingDataset", "LoraSave", "ModelSave", "SaveLoRA",
    "SaveTrainingDataset", "TrainLoraNode", "VAESave",
)  # fmt: skip
"""Nodes that write what a later prompt loads as a model, or load tensors that a prompt wrote."""


@dataclass(frozen=True)
class Rule:
    """What is done with a concept."""

    mode: str = SANITIZE
    """:data:`SANITIZE` rewrites what is flagged, :data:`REFUSE` refuses the prompt."""
    strength: float = 1.0
    threshold: float = THRESHOLD

    def check(self, where: str) -> None:
        """Raises SanitizerError for a value that cannot be."""
        one_of(f"{where}mode", self.mode, (SANITIZE, REFUSE))
        check_number(f"{where}strength", self.strength, 0, MAX_STRENGTH)
        check_number(f"{where}threshold", self.threshold, 0, 1)


@dataclass(frozen=True)
class Log:
    """What is written down of each prompt, and where."""

    file: str = "sanitizer_guard.jsonl"
    """Its path, which begins at the folder of the setting; "" for no log."""
    words: bool = False
    """Whether the words at fault are written down."""
    prompts: bool = False
    """Whether the prompts are."""
    megabytes: float = 10.0
    """Size at which a new file is begun."""
    files: int = 5
    """Older files that are kept."""

    def check(self, where: str) -> None:
        """As :meth:`Rule.check`."""
        check_number(f"{where}megabytes", self.megabytes, 0.001, 100_000)
        check_number(f"{where}files", self.files, 0, 1000)


@dataclass(frozen=True)
class Setting:
    """A host's setting; the defaults are those of an empty file."""

    concepts: tuple[str, ...] = ()
    """To be erased; empty: all that a sanitizer erases."""
    rule: Rule = field(default_factory=Rule)
    """For every concept that has none of its own."""
    rules: Mapping[str, Rule] = field(default_factory=dict)
    """Concept -> its own."""
    never: tuple[tuple[str, str], ...] = (("youth", "nudity"),)
    """Concepts that refuse a prompt when they are found together, whatever their rules say."""
    sanitizers: tuple[str, ...] = ()
    """Files of the model folder `sanitizers` that may be used; empty: any that serves the encoder."""
    api_nodes: str = REFUSE
    """What is done with nodes that send prompts to other hosts: :data:`ALLOW`, :data:`SCORE` or :data:`REFUSE`."""
    allow: tuple[str, ...] = ()
    """Folders of custom node packs, and names of nodes, that may run beside ComfyUI's own."""
    deny: tuple[str, ...] = DENIED
    """Names of nodes that may not."""
    log: Log = field(default_factory=Log)

    def by_rule(self, concepts: Iterable[str]) -> list[tuple[Rule, tuple[str, ...]]]:
        """Concepts by what is done with them: first what is refused, by the prompt as it came, then the strongest."""
        found: dict[Rule, list[str]] = {}
        for name in concepts:
            found.setdefault(self._of(name), []).append(name)
        order = sorted(found.items(), key=lambda item: (item[0].mode != REFUSE, -item[0].strength))
        return [(rule, tuple(names)) for rule, names in order]

    def refused(self, fired: Collection[str], present: Collection[str]) -> tuple[str, ...]:
        """Concepts for which a prompt is refused, none where it is not. fired: those that reach their rule's threshold;
        present: all that are there."""
        for pair in self.never:
            if set(pair) <= {*fired, *present}:
                return pair
        return tuple(name for name in fired if self._of(name).mode == REFUSE)

    def _of(self, concept: str) -> Rule:
        return self.rules.get(concept, self.rule)


def read(path: Path) -> Setting:
    """The setting of a file. Raises SanitizerError that names the file and what is wrong with it."""
    try:
        return parse(path.read_bytes(), str(path))
    except OSError as error:
        raise SanitizerError(f"{path}: cannot be read ({error.strerror or error}).") from error


def parse(text: bytes, where: str) -> Setting:
    """The setting of TOML in UTF-8; where it stands, for errors. Raises SanitizerError for what is none, for an unknown
    key and a value that cannot be."""
    try:
        return _setting(tomllib.loads(text.decode("utf-8")))
    except UnicodeDecodeError as error:
        raise SanitizerError(f"{where}: no UTF-8. Save the file as UTF-8.") from error
    except tomllib.TOMLDecodeError as error:
        raise SanitizerError(f"{where}: no valid TOML ({error}).") from error
    except SanitizerError as error:
        raise SanitizerError(f"{where}: {error}") from error


def _setting(values: Mapping[str, Any]) -> Setting:
    ruled = {f.name for f in fields(Rule)}
    own = {"concepts", "concept", "never", "sanitizers", "api_nodes", "allow", "deny", "log"}
    _known("", values, ruled | own)
    rule = _table(Rule, "", {key: values[key] for key in ruled & values.keys()}, Rule())
    rules = {
        name: _table(Rule, f"concept.{name}.", table, rule)
        for name, table in _typed("concept", values.get("concept", {}), dict).items()
    }
    never = _typed("never", values.get("never", Setting.never), (list, tuple))
    if any(len(_names("never", pair)) != 2 for pair in never):
        raise SanitizerError(f"never: expected pairs of concepts, found {never!r:.200}.")
    api_nodes = values.get("api_nodes", Setting.api_nodes)
    one_of("api_nodes", api_nodes, (ALLOW, SCORE, REFUSE))
    return Setting(
        concepts=_names("concepts", values.get("concepts", ())),
        rule=rule,
        rules=rules,
        never=tuple((one, other) for one, other in never),
        sanitizers=_names("sanitizers", values.get("sanitizers", ())),
        api_nodes=api_nodes,
        allow=_names("allow", values.get("allow", ())),
        deny=_names("deny", values.get("deny", Setting.deny)),
        log=_table(Log, "log.", values.get("log", {}), Log()),
    )


def one_of(where: str, value: Any, names: tuple[str, ...]) -> None:
    """Raises SanitizerError for anything but these names."""
    if value not in names:
        raise SanitizerError(f"{where}: expected one of {', '.join(names)}, found {value!r:.80}.")


def _table(kind: type, where: str, table: Any, base: Any) -> Any:
    """A table's values over those of `base`, as a Rule or a Log."""
    table = _typed(where.rstrip("."), table, dict)
    _known(where, table, {f.name for f in fields(kind)})
    for name, value in table.items():
        wanted = type(getattr(base, name))
        _typed(where + name, value, (int, float) if wanted is float else wanted)
    made = replace(base, **table)
    made.check(where)
    return made


def _typed(where: str, value: Any, kind: type | tuple[type, ...]) -> Any:
    # True is an int to Python and no number to anybody else.
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        names = {dict: "a table", list: "a list", bool: "true or false", str: "text", int: "a whole number"}
        wanted = names.get(kind[0] if isinstance(kind, tuple) and float not in kind else kind, "a number")
        raise SanitizerError(f"{where}: expected {wanted}, found {value!r:.80}.")
    return value


def _names(where: str, value: Any) -> tuple[str, ...]:
    found = _typed(where, value, (list, tuple))
    return tuple(_typed(where, name, str) for name in found)


def _known(where: str, table: Mapping[str, Any], names: set[str]) -> None:
    for key in table:
        if key not in names:
            raise SanitizerError(f"{where}{key}: no such key. Expected one of {', '.join(sorted(names))}.")
