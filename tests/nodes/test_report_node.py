"""Sanitizer Report: picture, JSON, progress, interrupt, and what cannot be measured."""

import json

import pytest
import torch


@pytest.fixture(scope="module")
def node(pack):
    return pack("nodes.sanitizer_report").SanitizerReport


@pytest.fixture(scope="module")
def error(pack):
    return pack("sanitizer.errors").SanitizerError


@pytest.fixture
def sanitizer(pack, loaded, clip):
    def make(**options):
        fingerprint = pack("nodes.adapter.clip").ComfyTextEncoder(clip).fingerprint
        return loaded(width=fingerprint.width, pooled=fingerprint.pooled_width, fingerprint=fingerprint, **options)

    return make


@pytest.fixture
def small(pack, monkeypatch):
    """A budget that no user is offered, so that the test takes seconds."""
    monkeypatch.setattr(pack("sanitizer.audit.audit"), "LEAST_BUDGET", 1)


def test_picture_and_figures(run, node, sanitizer, clip, small):
    out = run(node, clip=clip, sanitizer=sanitizer(concepts=["nudity"]), budget=60, seed=0)
    picture, report = out.args
    assert picture.shape[0] == 1
    assert picture.shape[3] == 3
    assert picture.dtype == torch.float32
    assert 0 <= picture.min() < picture.max() <= 1
    found = json.loads(report)
    assert found["sanitizer"] == "toy.safetensors"
    [concept] = found["concepts"]
    assert concept["name"] == "nudity"
    assert concept["flagged"]["share"] == 1.0, "this sanitizer flags everything"
    assert concept["twins_untouched"]["share"] == 0.0
    assert found["harmless_identical"]["share"] == 0.0
    assert concept["attack"][-1]["budget"] > 1
    [message] = out.ui["embedding_sanitizer"]
    assert message["kind"] == "report"
    assert "nudity" in message["report"]


def test_interrupt(run, node, sanitizer, clip, small, pack, monkeypatch):
    management = pack("nodes.adapter.ui").comfy.model_management
    calls = []

    def interrupt(*_args):
        calls.append(1)
        if len(calls) == 3:
            management.interrupt_current_processing(True)

    monkeypatch.setattr(pack("nodes.adapter.ui").Progress, "say", interrupt)
    with pytest.raises(management.InterruptProcessingException):
        run(node, clip=clip, sanitizer=sanitizer(concepts=["nudity"]), budget=60, seed=0)
    assert len(calls) == 3


def test_what_cannot_be_measured(run, node, sanitizer, loaded, clip, error):
    with pytest.raises(error, match="no held-out phrases"):
        run(node, clip=clip, sanitizer=loaded_of(sanitizer, ("tea_set",)), budget=1000, seed=0)
    with pytest.raises(error, match=r"Sanitizer Report: .*trained on ToyModel"):
        run(node, clip=clip, sanitizer=loaded(), budget=1000, seed=0)
    with pytest.raises(error, match="at least 200"):
        run(node, clip=clip, sanitizer=sanitizer(concepts=["nudity"]), budget=10, seed=0)


def loaded_of(sanitizer, names):
    """A sanitizer of a concept that stands in no file."""
    from dataclasses import replace

    return replace(sanitizer(), concepts=names)
