"""The pack loaded as ComfyUI loads it, against the stand-in or, with COMFYUI_PATH set, against the real modules."""

import importlib.util
import os
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

PACK = Path(__file__).resolve().parents[2]
STANDIN = Path(__file__).resolve().parent / "standin"
COMFYUI_PATH = os.environ.get("COMFYUI_PATH")


def _load(path: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path / "__init__.py", submodule_search_locations=[str(path)])
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _import(name: str) -> ModuleType:
    return importlib.import_module(name)


@pytest.fixture(scope="session")
def comfy_modules():
    """Puts ComfyUI's modules, real or stand-in, on the path."""
    sys.path.insert(0, COMFYUI_PATH or str(STANDIN))
    if COMFYUI_PATH:
        # ComfyUI reads its options from the command line: no GPU, and none of pytest's own.
        kept, sys.argv = sys.argv, [sys.argv[0], "--cpu"]
        _import("comfy.options").enable_args_parsing()
        # As in main.py: before nodes.py puts comfy/ with its own utils.py on the path.
        _import("utils.extra_config")
        _import("comfy.model_management")
        sys.argv = kept
    return SimpleNamespace(real=bool(COMFYUI_PATH), folder_paths=_import("folder_paths"))


@pytest.fixture(scope="session")
def pack(comfy_modules):
    """The pack under a name that is no import path, as in ComfyUI; `pack("nodes")` gives a module of it."""
    name = "/custom_nodes/embedding sanitizer"
    name = name.replace(".", "_x_")
    _load(PACK, name)

    def module(path: str) -> ModuleType:
        return _import(f"{name}.{path}")

    return module


@pytest.fixture
def models(pack, comfy_modules, tmp_path, monkeypatch):
    """An empty model folder `sanitizers`, and nothing shipped."""
    folders = pack("nodes.adapter.folders")
    monkeypatch.setattr(comfy_modules.folder_paths, "models_dir", str(tmp_path))
    monkeypatch.setattr(comfy_modules.folder_paths, "temp_directory", str(tmp_path / "temp"))
    monkeypatch.setattr(folders, "SHIPPED", tmp_path / "weights")
    monkeypatch.setitem(comfy_modules.folder_paths.folder_names_and_paths, folders.KIND, ([], set()))
    folders.register()
    folder = tmp_path / folders.KIND
    folder.mkdir()
    return folder


@pytest.fixture(scope="session")
def run():
    """Executes a node as ComfyUI does: under inference mode, with a hidden node id."""

    def execute(node, **inputs):
        clone = type(node.__name__, (node,), {"hidden": SimpleNamespace(unique_id=None)})
        with torch.inference_mode():
            return clone.execute(**inputs)

    return execute


@pytest.fixture(scope="session")
def make_sanitizer(pack):
    """An untrained sanitizer whose score net says what the test wants: `logit` for every prompt."""
    config_of, header_of = pack("sanitizer.model.config"), pack("sanitizer.model.header")
    base = pack("sanitizer.encoders.base")

    def make(width=8, pooled=4, logit=4.0, concepts=("nudity", "violence"), fingerprint=None):
        specs = tuple(config_of.ConceptSpec(name) for name in concepts)
        config = config_of.SanitizerConfig(concepts=specs, width=width, pooled_width=pooled, gated=True)
        torch.manual_seed(0)
        sanitizer = pack("sanitizer.model.sanitizer").EmbeddingSanitizer(config)
        with torch.no_grad():
            for parameter in sanitizer.parameters():
                parameter.copy_(torch.randn_like(parameter) * 0.2)
            sanitizer.vote_mix.zero_()
            sanitizer.vote_bias.fill_(-8.0)
            sanitizer.vote_bias[0, 0] = logit
            # No word scores more than the prompt.
            sanitizer.token_scale.zero_()
            sanitizer.token_bias.copy_(sanitizer.vote_bias[0])
        fingerprint = fingerprint or base.Fingerprint("ToyModel", width, pooled, "0" * 64)
        sanitizer.header = header_of.Header(fingerprint, licence="MIT")
        return sanitizer.eval().requires_grad_(False)

    return make


@pytest.fixture
def loaded(pack, models, make_sanitizer):
    """`loaded(**options)`: such a sanitizer, saved and loaded as the Load Sanitizer node does."""

    def load(name="toy", concepts=None, **options):
        path = models / f"{name}.safetensors"
        pack("sanitizer.model.artifact").save(make_sanitizer(**options), path)
        return pack("nodes.adapter.handle").LoadedSanitizer.load(path, concepts)

    return load


@pytest.fixture(scope="session")
def helper(comfy_modules):
    """`helper("minilm_clip")`: a module of this folder that is no test."""

    def module(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
        loaded = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(loaded)
        return loaded

    return module


@pytest.fixture(scope="session")
def stock(comfy_modules):
    """ComfyUI's own nodes: `stock("nodes")`, `stock("comfy_extras.nodes_flux")`. There is no stand-in for them."""
    if not comfy_modules.real:
        pytest.skip("COMFYUI_PATH is not set")
    return _import


@pytest.fixture(scope="session")
def clip(pack, helper):
    """A CLIP object around the embedded trained encoder."""
    return helper("minilm_clip").make_clip(pack("sanitizer.encoders").load_encoder("minilm-causal"))


@pytest.fixture(scope="session")
def trained(pack, clip):
    """The shipped sanitizer of that encoder, for nudity, as if it had been trained on the CLIP."""
    path = PACK / "weights" / "minilm-causal.safetensors"
    own = pack("nodes.adapter.handle").LoadedSanitizer.load(path, ["nudity"])
    model = own.patcher.model
    model.header = replace(model.header, encoder=pack("nodes.adapter.clip").ComfyTextEncoder(clip).fingerprint)
    return own


@pytest.fixture(scope="session")
def encoded(clip):
    """`encoded(prompt)`: the conditioning that a text encode node gives."""

    def encode(prompt, through=clip):
        with torch.inference_mode():
            return through.encode_from_tokens_scheduled(through.tokenize(prompt))

    return encode
