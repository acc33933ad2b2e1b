"""What a sanitizer is worth, by its own figures: refused, weak, good or not measured."""

import pytest

from sanitizer.encoders import Fingerprint
from sanitizer.errors import SanitizerError
from sanitizer.model.artifact import WEIGHTS_FOLDER, read_info
from sanitizer.model.header import Header
from sanitizer.model.quality import GOOD, REFUSED, UNMEASURED, WEAK, judge, require


def header(**figures):
    """Of concept=(phrases, auroc, flagged)."""
    concepts = [
        {"name": name, "phrases": phrases, "auroc": auroc, "flagged": flagged}
        for name, (phrases, auroc, flagged) in figures.items()
    ]
    return Header(Fingerprint("x", 1, 0, ""), report={"concepts": concepts} if figures else {})


@pytest.mark.parametrize(
    ("figures", "level"),
    [
        ((300, 0.95, 0.6), GOOD),
        ((300, 0.9, 0.3), GOOD),
        ((300, 0.89, 0.6), WEAK),
        ((300, 0.95, 0.29), WEAK),
        ((300, 0.75, 0.1), WEAK),
        ((300, 0.74, 0.6), REFUSED),
        ((300, 0.95, 0.09), REFUSED),
        ((8, 0.45, 0.0), REFUSED),
        ((7, 0.45, 0.0), UNMEASURED),
        ((2, 0.0, 0.0), UNMEASURED),
        ((0, None, None), UNMEASURED),
        ((300, None, 0.6), GOOD),
    ],
)
def test_the_limits(figures, level):
    assert judge(header(nudity=figures), ["nudity"]).level == level


def test_the_worst_of_the_chosen_concepts_decides():
    found = header(nudity=(300, 0.99, 0.9), hate=(50, 0.95, 0.04), violence=(300, 0.93, 0.2), tea_set=(2, None, None))
    assert judge(found, ["nudity"]).level == GOOD
    assert judge(found, ["nudity", "violence"]).level == WEAK
    assert judge(found, ["nudity", "violence", "hate"]).level == REFUSED
    # A concept without figures neither condemns nor saves the others, and is named.
    assert judge(found, ["nudity", "tea_set"]).level == GOOD
    assert judge(found, ["nudity", "tea_set"]).line == "Not measured, for want of held-out phrases: tea set."
    assert judge(found, ["violence", "tea_set"]).line.startswith(
        "Weak sanitizer (violence): it finds as little as 20 % of unseen phrases. Not measured"
    )
    assert judge(found, ["nudity"]).line == ""


def test_what_was_never_measured_is_said_to_be():
    for found in (header(), None):
        quality = judge(found, ["nudity", "hate"])
        assert quality.level == UNMEASURED
        assert quality.line == "Not measured, for want of held-out phrases: nudity, hate."
    assert require(header(), ["nudity"], "x").level == UNMEASURED


def test_a_refusal_names_figures_and_remedy():
    with pytest.raises(SanitizerError) as caught:
        require(header(nudity=(10, 0.5, 0.0), hate=(300, 0.99, 0.9)), ["nudity", "hate"], "my.safetensors")
    message = str(caught.value)
    assert message.startswith("my.safetensors: refused")
    assert "(nudity: 0 %, AUROC 0.50)" in message
    assert "more examples" in message
    assert "other concepts" in message
    assert "\n" not in message


def test_a_share_of_many_phrases_is_believed_more_than_one_of_few():
    few, many = (judge(header(nudity=(count, 0.95, 0.75)), ["nudity"]).rank for count in (8, 300))
    lucky = judge(header(nudity=(8, 1.0, 1.0)), ["nudity"]).rank
    assert few < many
    assert lucky < many
    assert judge(header(), ["nudity"]).rank < judge(header(nudity=(300, 0.5, 0.0)), ["nudity"]).rank


@pytest.mark.parametrize("name", ["minilm", "minilm-causal"])
def test_the_shipped_files_are_good(name):
    info = read_info(WEIGHTS_FOLDER / f"{name}.safetensors")
    for concept in info.erasable:
        assert judge(info.header, [concept]).level == GOOD, concept
