"""The house rules, read from the source."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
CORE = sorted((ROOT / "sanitizer").rglob("*.py"))
HEAVY = {"comfy", "comfy_api", "folder_paths", "server", "nodes", "evaluation"}


def imports(path):
    """(module, level, at import time) of every import in a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    top = set()
    for node in tree.body:
        top.update(
            ast.walk(node) if not isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef) else ()
        )
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, 0, node in top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or "", node.level, node in top


@pytest.mark.parametrize("path", CORE, ids=lambda p: str(p.relative_to(ROOT)))
def test_the_core_knows_nothing_of_comfyui_and_imports_relatively(path):
    for module, level, _ in imports(path):
        first = module.split(".")[0]
        assert level or first not in HEAVY, f"{path.name} imports {module}"
        assert level or first != "sanitizer", f"{path.name}: ComfyUI loads the pack by path, only relative imports work"
        assert level < 3 or path.parent.parent.name != "sanitizer", f"{path.name} reaches outside sanitizer/"


@pytest.mark.parametrize("path", CORE, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_stay_small_and_safe(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 300, "a file past 300 lines wants to be two"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call):
            name = getattr(node.func, "id", None)
            assert name not in ("eval", "exec", "compile", "__import__"), f"{path.name}: {name}"
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [a.name for a in node.names] + [getattr(node, "module", None) or ""]
            assert not {"pickle", "marshal", "shelve", "dill"} & {n.split(".")[0] for n in names}


def test_importing_the_core_is_light_and_does_nothing():
    """torch and safetensors, no transformers, no other package of ours outside sanitizer/."""
    code = (
        "import sys; import sanitizer, sanitizer.artifact, sanitizer.training, sanitizer.encoders; "
        "heavy = {'transformers', 'comfy', 'nodes', 'evaluation', 'sklearn', 'matplotlib'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=120)


def test_only_the_door_imports_the_nodes():
    for folder in ("sanitizer", "evaluation"):
        for path in (ROOT / folder).rglob("*.py"):
            assert not any("nodes" in module.split(".") for module, _, _ in imports(path)), path
