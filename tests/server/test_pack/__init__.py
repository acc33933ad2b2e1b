"""Test-only ComfyUI pack: gives every checkpoint a trained text encoder in place of its random one, so that words
mean something, and the checkpoint PICTURES the small picture model of evaluation/pictures, so that pictures do.
Installed by the server tests only, never shipped.

The encoder is the embedded MiniLM, which the pack's `weights` hold a sanitizer for; ES_TEST_ENCODER names the variant.
"""

import importlib.util
import os
import sys
from dataclasses import replace
from pathlib import Path

import folder_paths
import torch

import nodes

SOURCE = Path(__file__).resolve().parents[3]
ENCODER = os.environ.get("ES_TEST_ENCODER", "minilm-causal")
PICTURES = "pictures.safetensors"
NODE_CLASS_MAPPINGS = {}


def _load(path: Path, name: str, **options):
    spec = importlib.util.spec_from_file_location(name, path, **options)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


_load(SOURCE / "__init__.py", "es_test_source", submodule_search_locations=[str(SOURCE)])
_clips = _load(SOURCE / "tests" / "nodes" / "minilm_clip.py", "es_test_minilm_clip")
_encoders = importlib.import_module("es_test_source.sanitizer.encoders")
_artifact = importlib.import_module("es_test_source.sanitizer.model.artifact")


def load_clip():
    """The CLIP, and, on first use, the shipped sanitizer of its encoder put into the model folder under the name of
    the CLIP's class, so that `auto` finds it."""
    encoder = _encoders.load_encoder(ENCODER)
    clip = _clips.make_clip(encoder)
    folder = Path(folder_paths.get_folder_paths("sanitizers")[0])
    shipped = _artifact.find(encoder.fingerprint, [SOURCE / "weights"])
    target = folder / "minilm.safetensors"
    if shipped and not target.exists():
        adapter = importlib.import_module("es_test_source.nodes.adapter.clip")
        sanitizer = _artifact.load(shipped)
        sanitizer.header = replace(sanitizer.header, encoder=adapter.ComfyTextEncoder(clip).fingerprint)
        _artifact.save(sanitizer, target)
    return clip


def widen(apply_model, arguments):
    """MiniLM has half of the channels that the tiny UNet reads."""
    given = dict(arguments["c"])
    rows = given["c_crossattn"]
    given["c_crossattn"] = torch.cat([rows, rows], dim=-1)
    return apply_model(arguments["input"], arguments["timestep"], **given)


class TrainedCheckpointLoader(nodes.CheckpointLoaderSimple):
    def load_checkpoint(self, ckpt_name):
        if ckpt_name == PICTURES:
            # The harness imports the core by its own name. At the end of the path it hides nothing of ComfyUI's.
            if str(SOURCE) not in sys.path:
                sys.path.append(str(SOURCE))
            pictures = _load(Path(__file__).with_name("pictures.py"), "es_test_pictures")
            model, vae = pictures.load(ENCODER)
            return model, load_clip(), vae
        model, _, vae = super().load_checkpoint(ckpt_name)[:3]
        model = model.clone()
        model.set_model_unet_function_wrapper(widen)
        return model, load_clip(), vae


class ExtraText:
    """Puts text where no sanitizer looks, as the encoders of some models do."""

    INPUT_TYPES = classmethod(lambda cls: {"required": {"conditioning": ("CONDITIONING",)}})
    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "add"

    def add(self, conditioning):
        return ([[c, {**extras, "conditioning_of_another_encoder": c}] for c, extras in conditioning],)


NODE_CLASS_MAPPINGS["ESTestExtraText"] = ExtraText


class Elsewhere:
    """Stands for the nodes that send a prompt to another host: gives it back."""

    API_NODE = True
    INPUT_TYPES = classmethod(lambda cls: {"required": {"prompt": ("STRING",)}})
    RETURN_TYPES = ("STRING",)
    FUNCTION = "send"

    def send(self, prompt):
        return (prompt,)


NODE_CLASS_MAPPINGS["ESTestElsewhere"] = Elsewhere

# ComfyUI lets no pack replace a core node, so this one goes around the mappings.
nodes.NODE_CLASS_MAPPINGS["CheckpointLoaderSimple"] = TrainedCheckpointLoader
