"""A prompt's graph, looked through and guarded before it is queued. Plain data; nothing of ComfyUI is imported.

Wherever a MODEL goes into a node that may sample with it, a guard node is set on the wire; it is given a sanitizer for
every CLIP that something was encoded with on the way to that node, by nodes that find one or fail. On the wires of
those CLIPs stand nodes that hear what is encoded.
"""

import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NamedTuple

from ...sanitizer.errors import SanitizerError
from ...sanitizer.guard.setting import REFUSE, SCORE, Setting

GUARD, FINDER, HEARER = "ESGuardModel", "ESGuardSanitizer", "ESGuardCLIP"
TEXT, REFUSAL = "ESGuardText", "ESGuardRefusal"
OWN_NODES = (GUARD, FINDER, HEARER, TEXT, REFUSAL)
PREFIX = "embedding_sanitizer_guard:"
"""Of the ids of inserted nodes."""
MODEL, CLIP, STRING = "MODEL", "CLIP", "STRING"
COMFYUI = ("nodes", "comfy_extras")
"""Where ComfyUI's own nodes come from; API nodes have a setting of their own."""
PASSIVE = {MODEL, CLIP, "VAE", STRING, "INT", "FLOAT", "BOOLEAN"}
"""What comes out of nodes that load, patch, join or choose. A node that gives nothing else makes no picture."""
PASSED_ON = {GUARD: "model", HEARER: "clip", TEXT: "text"}
"""Own nodes that stand on a wire, with the input that goes through them."""
NEGATIVE = "negative"
"""Input of ComfyUI's own samplers and guiders that becomes the conditioning of that name and no other."""

Link = tuple[str, int]


class Kind(NamedTuple):
    """What is known of a node's class."""

    inputs: Mapping[str, str]
    """Name -> type; inputs that come and go with others are not in it."""
    outputs: tuple[str, ...]
    """Types."""
    module: str
    """`nodes`, `comfy_extras.nodes_sd3`, `custom_nodes.SomePack`."""
    api: bool = False
    """Whether it sends what it is given to another host."""

    @property
    def stock(self) -> bool:
        """Whether it is ComfyUI's own."""
        return self.module.split(".")[0] in COMFYUI

    @property
    def passive(self) -> bool:
        """Whether it only loads, patches or chooses; a chooser of ComfyUI's has outputs of any type."""
        return bool(self.outputs) and all(
            (self.stock and wild(out)) or set(_parts(out)) <= PASSIVE for out in self.outputs
        )


def guarded(
    graph: Mapping[str, dict], kind_of: Callable[[str], Kind | None], setting: Setting, own: str
) -> dict[str, dict]:
    """A prompt as the server runs it, with guards on its wires; nothing of the one given is changed.

    graph: see :func:`checked`. kind_of: None for a class that is not installed. own: the module of this pack. Raises
    SanitizerError, for the user to read, for a prompt that cannot be guarded."""
    kinds = {name: _kind(name, node, kind_of, setting, own) for name, node in graph.items()}
    done = {name: {**node, "inputs": dict(node["inputs"])} for name, node in graph.items()}
    inserted: dict[str, dict] = {}
    names: dict[str, str] = {}

    def insert(what: str, type_: str, inputs: dict) -> list:
        """A link to the node of that type with those inputs."""
        name = names.setdefault(json.dumps([type_, inputs], sort_keys=True), f"{PREFIX}{what}{len(names)}")
        inserted[name] = {"class_type": type_, "inputs": inputs}
        return [name, 0]

    def wires(type_: str) -> dict[str, list[tuple[str, Link]]]:
        """Node -> inputs by which that type may come into it; none of nodes that make no picture."""
        found = {
            name: [(field, link) for field, link in _links(node) if _carries(kinds, name, field, link, type_)]
            for name, node in graph.items()
            if not kinds[name].passive
        }
        return {name: some for name, some in found.items() if some}

    encoding, sampling = wires(CLIP), wires(MODEL)
    keys: dict[str, str] = {}  # node that encodes for a sampling -> key of its texts
    given: dict[str, dict[str, Any]] = {}  # node that may sample -> inputs of its guards
    for name in sampling:
        ways = [each for each in before(graph, name) if each in encoding]
        keys |= {each: _key(graph, each) for each in ways if each not in keys}
        positive = [field for field in graph[name]["inputs"] if field != NEGATIVE or not kinds[name].stock]
        drawn = before(graph, name, positive)
        found: dict[str, list] = {}  # the last of a chain of finders
        for clip in dict.fromkeys(link for each in ways for _, link in encoding[each]):
            found = {"sanitizers": insert("clip", FINDER, {"clip": list(clip), **found})}
        given[name] = {
            **found,
            "texts": " ".join(keys[each] for each in ways if each in drawn),
            "others": " ".join(keys[each] for each in ways if each not in drawn),
        }
    for name, key in keys.items():
        for field, link in encoding[name]:
            finder = insert("clip", FINDER, {"clip": list(link)})
            inputs = {"clip": list(link), "sanitizers": finder, "texts": key}
            done[name]["inputs"][field] = insert("text", HEARER, inputs)
    for name, inputs in given.items():
        for field, _ in sampling[name]:
            done[name]["inputs"][field] = insert("model", GUARD, {"model": done[name]["inputs"][field], **inputs})
    for name, node in graph.items():
        if kinds[name].api and setting.api_nodes == SCORE:
            for field in _texts(name, node, kinds):
                done[name]["inputs"][field] = insert("text", TEXT, {"text": node["inputs"][field]})
    return done | inserted


def texts(graph: Mapping[str, dict], kind_of: Callable[[str], Kind | None]) -> tuple[str, ...]:
    """The texts on the way to whatever is encoded with a CLIP or sent to another host, each once."""
    known = {name: kind_of(node["class_type"]) for name, node in graph.items()}
    kinds = {name: kind for name, kind in known.items() if kind is not None}
    ends = [name for name, kind in kinds.items() if kind.api or CLIP in kind.inputs.values()]
    ways = dict.fromkeys(each for end in ends for each in before(graph, end) if each in kinds)
    found = (
        value
        for name in ways
        for field, value in graph[name]["inputs"].items()
        if isinstance(value, str) and value.strip() and kinds[name].inputs.get(field) == STRING
    )
    return tuple(dict.fromkeys(found))


def checked(prompt: Any) -> dict[str, dict]:
    """The prompt, of the form that ComfyUI runs and no other; guards that stand in it already, as in a picture that was
    made on a guarded host, are taken out. Raises SanitizerError for any other."""
    if not isinstance(prompt, dict):
        raise SanitizerError("Guard: the prompt is no graph of nodes.")
    graph: dict[str, dict] = {}
    for name, node in prompt.items():
        good = isinstance(name, str) and isinstance(node, dict) and isinstance(node.get("class_type"), str)
        if not good or not isinstance(node.get("inputs"), dict):
            raise SanitizerError(f"Guard: node {name!r:.80} has no class_type or no inputs.")
        if name.startswith(PREFIX) and node["class_type"] not in OWN_NODES:
            raise SanitizerError(f"Guard: node {name!r:.80} has an id that only the guard itself may give.")
        inputs = {field: _value(name, field, value) for field, value in node["inputs"].items()}
        graph[name] = {**node, "inputs": inputs}
    return {
        name: {**node, "inputs": {field: _past_guards(graph, value) for field, value in node["inputs"].items()}}
        for name, node in graph.items()
        if node["class_type"] not in OWN_NODES
    }


def before(graph: Mapping[str, dict], name: str, only: Collection[str] | None = None) -> Collection[str]:
    """A node and all that it depends on; only: by these inputs of it."""
    found, open_ = {name: None}, [name]
    while open_:
        here = open_.pop()
        for field, (source, _) in _links(graph[here]):
            if source in graph and source not in found and (only is None or here != name or field in only):
                found[source] = None
                open_.append(source)
    return found


def _key(graph: Mapping[str, dict], name: str) -> str:
    """Of a node with all that it depends on: another one for other texts."""
    some = {each: [graph[each]["class_type"], graph[each]["inputs"]] for each in before(graph, name)}
    return hashlib.sha256(json.dumps([name, some], sort_keys=True).encode()).hexdigest()[:32]


def wild(type_: str | None) -> bool:
    """Whether anything may go through a socket of this type; None: a socket that is not known."""
    return type_ is None or any(part == "*" or part.startswith("COMFY_") for part in _parts(type_))


def _parts(type_: str) -> list[str]:
    return [part.strip() for part in type_.split(",")]


def _is_link(value: Any) -> bool:
    """As ComfyUI's own `is_link`, which takes 0.0 and False for places, too."""
    return (
        isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], int | float)
    )


def _value(name: str, field: str, value: Any) -> Any:
    """An input's value, a link with a whole number in it. ComfyUI takes a value out of its wrapping after the guard has
    seen the prompt, and would take a wrapped link for a link then."""
    inside = value
    while isinstance(inside, dict) and "__value__" in inside:
        inside = inside["__value__"]
    if inside is not value and _is_link(inside):
        raise SanitizerError(f"Guard: {field!r:.80} of node {name!r:.80} is a wrapped link.")
    if not _is_link(value):
        return value
    if not float(value[1]).is_integer() or value[1] < 0:
        raise SanitizerError(f"Guard: {field!r:.80} of node {name!r:.80} is linked to no output.")
    return [value[0], int(value[1])]


def _past_guards(graph: Mapping[str, dict], value: Any) -> Any:
    """What a link leads to behind guards that stand in its way."""
    for _ in graph:
        node = graph.get(value[0]) if _is_link(value) else None
        if node is None or node["class_type"] not in PASSED_ON:
            return value
        value = node["inputs"].get(PASSED_ON[node["class_type"]])
    raise SanitizerError("Guard: the prompt's guards lead in a circle.")


def _kind(name: str, node: dict, kind_of: Callable[[str], Kind | None], setting: Setting, own: str) -> Kind:
    """Of a node that may run."""
    type_ = node["class_type"]
    kind = kind_of(type_)
    if kind is None:
        raise SanitizerError(f"Guard: node {name!r:.80} is a {type_!r:.80}, which is not installed here.")
    if type_ in setting.deny:
        raise SanitizerError(f"Guard: the node {type_} may not be used on this host.")
    if kind.api:
        if setting.api_nodes == REFUSE:
            raise SanitizerError(f"Guard: the node {type_} sends prompts to another host, which this host does not.")
        return kind
    pack = kind.module.removeprefix("custom_nodes.")
    if not kind.stock and kind.module != own and not {type_, pack} & set(setting.allow):
        raise SanitizerError(
            f"Guard: the node {type_} of {pack} may not be used on this host. Its host can list {pack!r} or the node "
            "under 'allow'."
        )
    return kind


def _links(node: Mapping[str, Any]) -> Iterator[tuple[str, Link]]:
    """(input, what it is linked to)."""
    for field, value in node["inputs"].items():
        if _is_link(value):
            yield field, (value[0], value[1])


def _carries(kinds: Mapping[str, Kind], name: str, field: str, link: Link, wanted: str) -> bool:
    """Whether a wire may carry that type: by what comes out of one end, or goes into the other, or for want of both."""
    outputs = kinds[link[0]].outputs if link[0] in kinds else ()
    comes = outputs[link[1]] if link[1] < len(outputs) else None
    goes = kinds[name].inputs.get(field)
    known = [_parts(type_) for type_ in (comes, goes) if type_ is not None and not wild(type_)]
    return any(wanted in types for types in known) if known else True


def _texts(name: str, node: Mapping[str, Any], kinds: Mapping[str, Kind]) -> Iterator[str]:
    """Inputs of a node that hold text, or may. Raises SanitizerError for text that cannot be scored."""
    for field, value in node["inputs"].items():
        type_ = kinds[name].inputs.get(field)
        if _is_link(value):
            if _carries(kinds, name, field, (value[0], value[1]), STRING):
                yield field
        elif isinstance(value, str):
            if wild(type_) or STRING in _parts(type_ or ""):
                yield field
        elif isinstance(value, dict | list):
            raise SanitizerError(f"Guard: {field!r:.80} of node {name!r:.80} cannot be scored.")
