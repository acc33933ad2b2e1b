"""Whatever stands in a sanitizer's file, reading it ends in one clear refusal or in a sanitizer that behaves.

ES_FUZZ=20000 tries so many mutated files in place of a few hundred.
"""

import copy
import json
import os

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save as to_bytes

from sanitizer.cli.inspect import describe
from sanitizer.encoders import Fingerprint
from sanitizer.errors import SanitizerError
from sanitizer.model.artifact import best, load, read_info, save
from sanitizer.model.config import ConceptSpec, SanitizerConfig
from sanitizer.model.header import Header, Replacement
from sanitizer.model.quality import judge, own_lists
from sanitizer.model.sanitizer import EmbeddingSanitizer
from sanitizer.training.config import TrainingConfig

CASES = int(os.environ.get("ES_FUZZ", "300"))
FINGERPRINT = Fingerprint("fuzzed", 6, 4, "0" * 64)
DEEP = json.loads('{"a":' * 200 + "[]" + "}" * 200)
ODD = [
    None, True, False, 0, 1, -1, 2, 64, 10**9, 10**18, 10**400, -(10**400), 0.0, -0.0, 0.5, 1e-300, 1e300,
    float("nan"), float("inf"), float("-inf"), "", "x", "redness", "nudity", "1", "NaN", "a\nb", "\x1b[2J", "\ud800",
    "x" * 100_000, [], [[]], [1], ["redness"], [None] * 70, {}, {"": {}},
    {"redness": 1.0}, {"nudity": float("nan")}, DEEP,
]  # fmt: skip


@pytest.fixture(scope="module")
def valid(tmp_path_factory):
    """(header, tensors) of a small file that holds all that a header can."""
    config = SanitizerConfig(
        (ConceptSpec("redness"), ConceptSpec("nudity"), ConceptSpec("youth", True, {"redness": 2.0})),
        width=6, pooled_width=4, window=16, constant_embeddings=1, heads=2, score_width=8, erase_width=8,
        rank=3, pooled_rank=2, concept_rank=1, pooled_concept_rank=1,
    )  # fmt: skip
    figures = {"phrases": 30, "auroc": 0.9, "true_positive_rate": 0.5, "flagged": 0.5, "nearness_after": 0.7}
    header = Header(
        FINGERPRINT,
        {"examples": 9, "steps": 9, "seed": 0, "config": TrainingConfig().to_dict(), "concepts": {"nudity": "0" * 16}},
        {"concepts": [{"name": name, **figures} for name in ("redness", "youth")], "benign": 9, "seconds": 1.5},
        "CC0",
        {"redness": [Replacement("crimson", "green", "green")]},
    )
    torch.manual_seed(0)
    sanitizer = EmbeddingSanitizer(config, header).eval().requires_grad_(False)
    for parameter in sanitizer.parameters():
        parameter.copy_(torch.randn_like(parameter) * 0.3)
    sanitizer.constant.fill_(2.0)
    path = tmp_path_factory.mktemp("valid") / "valid.safetensors"
    save(sanitizer, path)
    return read_info(path).to_dict(), sanitizer.state_dict()


def mutate(data, header):
    """Change one place: another value, a missing or an unknown key, an item once more."""
    place, key = header, data.draw(st.sampled_from(sorted(header)))
    while isinstance(place[key], dict | list) and place[key] and data.draw(st.integers(0, 3)):
        place = place[key]
        key = data.draw(st.sampled_from(sorted(place)) if isinstance(place, dict) else st.integers(0, len(place) - 1))
    kind = data.draw(st.sampled_from(["value", "value", "value", "missing", "unknown", "again"]))
    if kind == "value":
        place[key] = copy.deepcopy(data.draw(st.sampled_from(ODD)))
    elif kind == "missing":
        del place[key]
    elif isinstance(place, dict):
        place["unknown" if kind == "unknown" else f"{key} again"] = copy.deepcopy(place[key])
    else:
        place.append(copy.deepcopy(place[key]))


def damaged(data, content):
    """Bytes flipped, cut off or added."""
    content = bytearray(content)
    for _ in range(data.draw(st.integers(0, 3))):
        # Half of them in the first bytes, where the length and the shapes stand.
        at = data.draw(st.integers(0, len(content) - 1) | st.integers(0, 400))
        content[at] ^= 1 << data.draw(st.integers(0, 7))
    if data.draw(st.integers(0, 4)) == 0:
        content = content[: data.draw(st.integers(0, len(content)))]
    return bytes(content) + data.draw(st.sampled_from([b"", b"", b"", b"x" * 100]))


def check(path):
    """Refused by one line, or good for all that is done with a file."""
    try:
        info = read_info(path)
    except SanitizerError as error:
        assert "\n" not in str(error) and len(str(error)) < 1000
        with pytest.raises(SanitizerError):
            load(path)
        assert best(FINGERPRINT, [path]) is None
        return
    assert "encoder" in describe(path, info)
    json.dumps(info.to_dict(), allow_nan=False)
    judge(info.header, info.erasable)
    own_lists(info.header)
    best(info.header.encoder, [path], info.erasable)
    try:
        sanitizer = load(path)
        x = torch.randn(2, 20, sanitizer.width, generator=torch.Generator().manual_seed(0))
        pooled = torch.randn(2, sanitizer.pooled_width) if sanitizer.pooled_width else None
        for strength, threshold in ((1.0, None), (2.0, 0.0)):
            out = sanitizer.sanitize(x, None, pooled, strength=strength, threshold=threshold)
            assert torch.isfinite(out.embeddings).all()
            assert ((out.scores.prompt >= 0) & (out.scores.prompt <= 1)).all()
            assert ((out.scores.tokens >= 0) & (out.scores.tokens <= 1)).all()
    except SanitizerError as error:
        assert "\n" not in str(error) and len(str(error)) < 1000


@given(data=st.data())
@settings(
    max_examples=CASES, deadline=None, database=None, suppress_health_check=[*HealthCheck], derandomize=CASES < 1000
)
def test_a_mutated_file_is_refused_or_behaves(valid, tmp_path_factory, data):
    header, tensors = valid
    header = copy.deepcopy(header)
    for _ in range(data.draw(st.integers(0, 4))):
        if header:
            mutate(data, header)
    text = json.dumps(header)
    if data.draw(st.integers(0, 9)) == 0:
        text = text[: data.draw(st.integers(0, len(text)))]
    path = tmp_path_factory.getbasetemp() / "fuzzed.safetensors"
    content = to_bytes(tensors, {"embedding-sanitizer": text})
    path.write_bytes(damaged(data, content) if data.draw(st.booleans()) else content)
    check(path)


def test_the_file_that_is_mutated_is_a_good_one(valid, tmp_path):
    header, tensors = valid
    path = tmp_path / "valid.safetensors"
    path.write_bytes(to_bytes(tensors, {"embedding-sanitizer": json.dumps(header)}))
    assert load(path).header.report == header["report"]
    check(path)
