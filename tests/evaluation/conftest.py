"""A tiny encoder and small methods, so that a whole run takes seconds."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest
import torch

CORE = Path(__file__).resolve().parent.parent / "core"


def _load(name: str):
    # tests/ is no package (pytest runs with importlib mode), so helpers are loaded by path.
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, CORE / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


@pytest.fixture
def tiny():
    """A bidirectional encoder of 32 channels."""
    return _load("tiny_encoder").TinyEncoder("masked", width=32)


@pytest.fixture
def tiny_causal():
    """One with a start token, visible padding and a pooled vector."""
    return _load("tiny_encoder").TinyEncoder("causal", width=32, pooled_width=8)


@pytest.fixture
def tiny_sanitizer(tiny):
    """For `tiny`, of one concept, nudity; its weights are set by hand."""
    return _load("handmade").handmade(tiny, "nudity")


class Nothing:
    """Changes nothing, detects nothing."""

    name, title, source = "none", "No method", "-"

    def fit(self, development):
        self.development = development

    def score(self, batch):
        return None

    def token_scores(self, batch):
        return None

    def apply(self, batch, strength=1.0):
        from evaluation.types import Treated

        e = batch.encoding
        return Treated(e.embeddings, e.mask, e.pooled, torch.zeros(len(batch.prompts), dtype=torch.bool))


class Words(Nothing):
    """Knows the words of the development phrases, and halves towards zero the embeddings of a prompt that holds one."""

    name, title, source = "ours", "Words", "this test"

    def fit(self, development):
        benign = {word for text in development.benign + development.safe for word in self.words(text)}
        self.known = {word for text in development.phrases for word in self.words(text)} - benign

    @staticmethod
    def words(text):
        return re.findall(r"\w{4,}", text.lower())

    def score(self, batch):
        return torch.tensor([float(sum(w in self.known for w in self.words(p))) for p in batch.prompts])

    def token_scores(self, batch):
        return torch.tensor([[float(t.lower() in self.known) for t in own] for own in batch.encoding.tokens])

    def apply(self, batch, strength=1.0):
        from evaluation.types import Treated

        e, hit = batch.encoding, self.score(batch) > 0
        amount = (hit * strength / 2)[:, None, None]
        embeddings = torch.where(amount > 0, e.embeddings * (1 - amount), e.embeddings)
        return Treated(embeddings, e.mask, e.pooled, hit if strength else torch.zeros_like(hit))


@pytest.fixture
def nothing():
    return Nothing()


@pytest.fixture
def words():
    return Words()


@pytest.fixture
def harness(monkeypatch, tiny, tiny_sanitizer, tmp_path):
    """The command line with the tiny encoder, its sanitizer and two methods in place of the real ones: call it with the
    arguments after `run`; `.encoder` counts its prompts; `.sets` is an empty folder for prompt sets."""
    import evaluation.methods
    from evaluation import cli, run

    methods = {"none": Nothing, "ours": lambda sanitizer: Words()}
    monkeypatch.setattr(evaluation.methods, "METHODS", methods)
    weights = tmp_path / "tiny.safetensors"
    weights.write_bytes(b"weights")
    monkeypatch.setattr(run, "load", lambda _, name: (tiny, tiny_sanitizer, weights) if name else (tiny, None, None))
    sets = tmp_path / "sets"
    sets.mkdir()

    def call(*arguments, output="out", small=True):
        extra = ["--limit", "10", "--examples", "24", "--concepts", "nudity"] if small else []
        fixed = ["run", "--encoder", "tiny", "--prompt-sets", str(sets), "--output", str(tmp_path / output)]
        return cli.main([*fixed, *extra, *arguments])

    call.encoder, call.sets, call.methods, call.folder = tiny, sets, methods, tmp_path
    return call
