"""Which keys ComfyUI's own nodes and text encoders put into a conditioning, read from a checkout's source."""

import ast
from collections.abc import Iterator
from pathlib import Path

SETTERS = ("conditioning_set_values", "conditioning_set_values_with_timestep_range", "_conditioning_set_extras")


def stock_keys(checkout: Path) -> dict[str, str]:
    """Key -> one place that sets it."""
    files = [checkout / "nodes.py", checkout / "comfy/hooks.py", *(checkout / "comfy_extras").glob("nodes_*.py")]
    encoders = [checkout / "comfy/sd1_clip.py", *(checkout / "comfy/text_encoders").glob("*.py")]
    found: dict[str, str] = {}
    for path in files + encoders:
        of_file = _of_encoder if path in encoders else _of_nodes
        for function in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(function, ast.FunctionDef):
                for key in of_file(function):
                    found.setdefault(key, f"{path.relative_to(checkout)}:{function.lineno} {function.name}")
    return found


def _of_nodes(function: ast.FunctionDef) -> Iterator[str]:
    named = _dicts(function)
    extras = {name for name, value in _assigned(function) if ast.unparse(value).endswith("[1].copy()")}
    for node in ast.walk(function):
        if isinstance(node, ast.Call):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            given = [word.value for word in node.keywords if word.arg == "add_dict"]
            given += node.args[1:2] if name in SETTERS else []
            for value in given:
                yield from named.get(ast.unparse(value), ()) if isinstance(value, ast.Name) else _keys(value, named)
        # [[cond, {…}]] and [[cond, extras]]
        if isinstance(node, ast.List) and len(node.elts) == 1 and isinstance(node.elts[0], ast.List):
            inner = node.elts[0].elts
            if len(inner) == 2:
                yield from (
                    named.get(ast.unparse(inner[1]), ()) if isinstance(inner[1], ast.Name) else _keys(inner[1], named)
                )
        # t[1]["key"] = … and d["key"] = … of a copied d
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store):
            of = ast.unparse(node.value)
            if (of.endswith("[1]") and "." not in of) or of in extras:
                yield from _constant(node.slice)


def _of_encoder(function: ast.FunctionDef) -> Iterator[str]:
    """What a text encoder puts into the third item of what it returns."""
    if function.name not in ("encode_token_weights", "forward", "encode"):
        return
    names = ("extra", "extra_out", "out[2]", "out")
    for node in ast.walk(function):
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) in names:
            yield from _constant(node.slice)
    for name, value in _assigned(function):
        if name in names:
            yield from _keys(value, {})
    for node in ast.walk(function):
        if isinstance(node, ast.Return) and isinstance(node.value, ast.Tuple) and len(node.value.elts) == 3:
            yield from _keys(node.value.elts[2], {})


def _assigned(function: ast.FunctionDef) -> Iterator[tuple[str, ast.expr]]:
    for node in ast.walk(function):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                yield ast.unparse(target), node.value


def _dicts(function: ast.FunctionDef) -> dict[str, set[str]]:
    """Keys of the dicts that a function builds, by the name of the variable."""
    named: dict[str, set[str]] = {}
    for name, value in _assigned(function):
        if isinstance(value, ast.Dict):
            named.setdefault(name, set()).update(_keys(value, named))
    for node in ast.walk(function):
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store):
            named.get(ast.unparse(node.value), set()).update(_constant(node.slice))
    return named


def _keys(value: ast.expr, named: dict[str, set[str]]) -> Iterator[str]:
    if isinstance(value, ast.Dict):
        for key, inner in zip(value.keys, value.values, strict=True):
            if key is None:  # {**other}
                yield from named.get(ast.unparse(inner), ())
            else:
                yield from _constant(key)


def _constant(node: ast.expr) -> Iterator[str]:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
