"""Fixtures: sanitizers trained in seconds on the tiny encoder, on four concepts' worth of small files."""

import importlib.util
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent


def _tiny():
    # tests/ is no package (pytest runs with importlib mode), so the helper is loaded by path.
    if "tiny_encoder" not in sys.modules:
        spec = importlib.util.spec_from_file_location("tiny_encoder", HERE / "tiny_encoder.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules["tiny_encoder"] = module
        spec.loader.exec_module(module)
    return sys.modules["tiny_encoder"].TinyEncoder


@pytest.fixture(scope="session")
def tiny_encoder():
    """The class TinyEncoder."""
    return _tiny()


@pytest.fixture(scope="session")
def tiny_concept():
    """A concept of plain words, harmless to read: red things become green things."""
    from sanitizer.concepts import Concept, Pair, Phrase

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


def _fit(encoder, concept, **kwargs):
    from sanitizer.training import fit

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
