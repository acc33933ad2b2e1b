"""The rules of the house, read from the source of all files at once."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("sanitizer", "nodes", "evaluation", "benchmarks")
COMFYUI = {"comfy", "comfy_api", "folder_paths", "server"}
FORBIDDEN = {"pickle", "marshal", "shelve", "dill", "requests", "urllib", "socket", "http"}
ALLOWED = {
    # Room -> rooms of the core that it may import. What stands in no list stays inside its own.
    "sanitizer.encoders": set(),
    "sanitizer.prompts": set(),
    "sanitizer.model": {"encoders", "prompts"},
    "sanitizer.training": {"model", "prompts", "encoders"},
    "sanitizer.text": {"model", "prompts", "encoders"},
    "sanitizer.guard": {"model"},
    "sanitizer.audit": {"training", "model", "prompts", "encoders"},
    "sanitizer.render": {"audit", "text", "model"},
    "sanitizer.cli": {"exits", "guard", "render", "text", "training", "model", "prompts", "encoders"},
}
SHARED = {"sanitizer.errors", "sanitizer.files", "sanitizer.tensor_files"}


def modules() -> dict[str, Path]:
    """Dotted name -> file, of every module of the project."""
    files = (file for package in PACKAGES for file in (ROOT / package).rglob("*.py"))
    return {".".join(f.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): f for f in files}


MODULES = modules()


def imported(name: str) -> set[str]:
    """Everything that a module imports anywhere in it, by its absolute name."""
    path, found = MODULES[name], set()
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            # One dot more than there are packages leads to the pack's root.
            base = parts[: len(parts) - node.level + 1] if node.level else []
            whole = ".".join([*base, *([node.module] if node.module else [])])
            found |= {whole, *(f"{whole}.{alias.name}" for alias in node.names)}
    return found


def arrows() -> dict[str, set[str]]:
    """Module -> modules of the project that it imports. A package's own door is no arrow of what is in it."""
    own = {name: {other for other in imported(name) if other in MODULES and other != name} for name in MODULES}
    return {name: {o for o in others if not name.startswith(f"{o}.")} for name, others in own.items()}


ARROWS = arrows()


def room(name: str) -> str:
    """`sanitizer.model.config` -> `sanitizer.model`; a module outside every room is its own."""
    parts = name.split(".")
    return ".".join(parts[:2]) if parts[0] == "sanitizer" and len(parts) > 1 else parts[0]


def test_the_arrows_between_rooms_point_one_way():
    wrong = []
    for name, others in ARROWS.items():
        for other in others - SHARED:
            here, there = room(name), room(other)
            if here == there or name in ("sanitizer", "sanitizer.__main__"):
                continue
            if here in ALLOWED:
                fine = there in {f"sanitizer.{allowed}" for allowed in ALLOWED[here]}
            else:
                fine = there.startswith("sanitizer") and there != "sanitizer.cli" and here != "sanitizer"
                fine |= {here, there} == {"benchmarks", "evaluation"}
            if not fine:
                wrong.append(f"{name} -> {other}")
    assert not wrong, wrong


def test_there_is_no_import_circle():
    # What is left when modules that import nothing more are taken away, again and again.
    left = {name: set(others) for name, others in ARROWS.items()}
    while done := {name for name, others in left.items() if not others}:
        left = {name: others - done for name, others in left.items() if name not in done}
    assert not left, f"in circles, or behind one: {sorted(left)}"


def test_only_the_nodes_know_comfyui_and_only_the_door_knows_the_nodes():
    for name in MODULES:
        found = {module.split(".")[0] for module in imported(name)}
        if not name.startswith("nodes"):
            assert not found & COMFYUI, name
            assert "nodes" not in found, name


def test_imports_inside_the_pack_are_relative():
    """ComfyUI loads the pack by path, and pip installs the core under another name."""
    for name, path in MODULES.items():
        if name.startswith(("sanitizer", "nodes")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                absolute = isinstance(node, ast.ImportFrom) and not node.level and node.module.split(".")[0] in PACKAGES
                assert not absolute, f"{name}: from {node.module} import …"


def test_nothing_can_run_what_a_file_says_or_reach_a_network():
    for name, path in MODULES.items():
        assert not {module.split(".")[0] for module in imported(name)} & FORBIDDEN, name
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                assert getattr(node.func, "id", None) not in ("eval", "exec", "compile", "__import__"), name


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("sanitizer, sanitizer.model.artifact, sanitizer.training.fit, sanitizer.encoders", "transformers scipy"),
        ("sanitizer.cli.app", "torch transformers numpy"),
        ("evaluation.cli", "torch transformers matplotlib pandas"),
    ],
)
def test_importing_is_light_and_does_nothing(module, heavy):
    code = f"import sys; import {module}; found = set({heavy.split()}) & set(sys.modules); assert not found, found"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=120)
