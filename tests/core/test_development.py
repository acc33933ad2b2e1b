"""The development figures: counted right, by category, and with clear errors."""

import json

import pytest

from evaluation.development import cost, main, read_set, untouched
from sanitizer.artifact import save
from sanitizer.errors import SanitizerError


def test_untouched_is_counted_by_category(masked):
    encoder, sanitizer, _ = masked
    rows = [("a crimson woman", "red"), ("a photo of a woman", "other"), ("a scarlet man", "red"), ("two dogs", "red")]
    counted = untouched(encoder, sanitizer, rows, None)
    assert counted["other"] == (1.0, 1)
    assert counted["red"] == (pytest.approx(1 / 3), 3)


def test_cost_is_a_ratio(masked):
    encoder, sanitizer, _ = masked
    assert cost(encoder, sanitizer, ["a crimson woman", "a dog"], None) > 0


def test_a_missing_column_names_the_file(tmp_path):
    (tmp_path / "x.csv").write_text("text\na\n")
    with pytest.raises(SanitizerError, match=r"x\.csv.*prompt"):
        read_set(tmp_path / "x.csv", None)


def test_the_command_prints_json_and_names_missing_sets(masked, tmp_path, capsys, monkeypatch):
    encoder, sanitizer, _ = masked
    save(sanitizer, tmp_path / "s.safetensors")
    (tmp_path / "mine.csv").write_text("prompt,category\na dog,animal\na crimson woman,red\n")
    monkeypatch.setattr("evaluation.development.load_encoder", lambda name: encoder)
    arguments = ["--encoder", "tiny", "--sanitizer", str(tmp_path / "s.safetensors"), "--prompt-sets", str(tmp_path)]
    assert main([*arguments, "--sets", "mine,none"]) == 0
    out = capsys.readouterr()
    assert json.loads(out.out)["untouched"]["mine, all concepts"] == {"animal": [1.0, 1], "red": [0.0, 1]}
    assert "none.csv" in out.err
    assert main([*arguments[:3], str(tmp_path / "no.safetensors"), *arguments[4:]]) == 1
