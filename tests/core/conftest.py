"""Fixtures: sanitizers trained in seconds on the tiny encoder, on four concepts' worth of small files."""

import importlib.util
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent


def _load(name):
    # tests/ is no package (pytest runs with importlib mode), so helpers are loaded by path.
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


@pytest.fixture(scope="session")
def tiny_encoder():
    """The class TinyEncoder."""
    return _load("tiny_encoder").TinyEncoder


@pytest.fixture(scope="session")
def handmade():
    """The function handmade."""
    return _load("handmade").handmade


@pytest.fixture(scope="session")
def handmade_file(handmade, tmp_path_factory):
    """The file of a sanitizer for minilm that is made by hand."""
    from sanitizer.encoders import load_encoder
    from sanitizer.model.artifact import save

    path = tmp_path_factory.mktemp("handmade") / "redness.safetensors"
    save(handmade(load_encoder("minilm")), path)
    return path


@pytest.fixture(scope="session")
def tiny_concept():
    """A concept of plain words, harmless to read: red things become green things."""
    from sanitizer.prompts.concepts import Concept, Pair, Phrase

    words = ["crimson", "scarlet", "ruby", "vermilion", "cherry", "carmine", "maroon", "rusty"]
    pairs = [
        Pair(word, f"{safe} tinted", "plain green", "adjective")
        for word, safe in zip(words, ["olive", "jade"] * 4, strict=True)
    ]
    pairs += [Pair("scarlet clad", "olive clad", "plain green", "adjective", held_out=True)]
    pairs += [Pair("a crimson ruby", "a jade bead", "a green stone", "noun"), Pair("crimson", "jade", "green", "tag")]
    return Concept(
        "redness",
        "Redness",
        "Test data.",
        "CC0",
        tuple(pairs),
        (Phrase("a stop sign", "noun"), Phrase("a fox", "noun")),
    )


def tiny_templates():
    """Few frames and words, so that what the tests expect does not hang on the shipped prompts."""
    from sanitizer.prompts.templates import Templates

    frames = {
        "adjective": (
            "a photo of a {phrase} {subject} {place}",
            "{phrase} {subject}",
            "a portrait of a {phrase} {subject}",
        ),
        "noun": ("a photo of {phrase}", "{phrase} {place}"),
        "tag": ("{phrase}", "portrait, {phrase}, light"),
        **dict.fromkeys(("action", "detail", "sentence"), ("{phrase}",)),
    }
    words = ["dog", "cat", "tree", "lamp", "boat", "garden", "table", "window", "river", "bread", "chair", "street"]
    return Templates(
        slots={
            "subject": ("woman", "man", "person", "couple"),
            "place": ("at a desk", "in the garden", "reading", "by the river", "at a window"),
            "adjective": ("old", "tall", "calm", "busy", "happy"),
            "thing": tuple(words),
            "style": ("oil painting", "film photo"),
            "quality": ("detailed", "sharp"),
        },
        frames=frames,
        held_out_frames=frames,
        benign_frames=(
            "a photo of a {subject} {place}",
            "an {adjective} {subject} {place}",
            "a {thing} {place}",
            "two {thing}s and a {thing}",
            "a {adjective} {thing}",
            "a portrait of an {adjective} {subject} {place}",
        )
        * 5,  # Every fifth is for calibration: so each frame serves both.
        benign_prompts=("a portrait of a man", "dogs", *(f"a {a} beside the {b}" for a in words for b in words[:4])),
        held_out_benign_frames=("a {adjective} {subject} and a {thing}",),
        held_out_benign_prompts=tuple(f"the {a} near a {b}" for a in words for b in words[4:8]),
    )


@pytest.fixture(scope="session")
def small_templates():
    """The templates that the tiny sanitizers were trained with."""
    return tiny_templates()


def _fit(encoder, concept, **kwargs):
    from sanitizer.training.config import TrainingConfig
    from sanitizer.training.fit import fit

    small = TrainingConfig(batch=48, erase_batch=24)
    kwargs = {"templates": tiny_templates(), "config": small, **kwargs}
    return fit(encoder, [concept], **{"examples": 1500, "steps": 450, "seed": 3, **kwargs})


@pytest.fixture(scope="session")
def masked(tiny_encoder, tiny_concept):
    """(encoder, sanitizer, report) for a bidirectional encoder without a pooled vector."""
    encoder = tiny_encoder("masked")
    return encoder, *_fit(encoder, tiny_concept)


@pytest.fixture(scope="session")
def causal(tiny_encoder, tiny_concept):
    """The same for a causal encoder with visible padding and a pooled vector, as Stable Diffusion's CLIP."""
    encoder = tiny_encoder("causal", pooled_width=16)
    return encoder, *_fit(encoder, tiny_concept)


@pytest.fixture(params=["masked", "causal"])
def trained(request):
    """Both, one after the other."""
    return request.getfixturevalue(request.param)
