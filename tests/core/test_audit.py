"""The audit of a sanitizer on its encoder: figures, picture, interrupt, refusals."""

import json
from dataclasses import replace

import pytest
import torch

from sanitizer.audit import LEAST_BUDGET, audit
from sanitizer.audit.paraphrases import paraphrases
from sanitizer.audit.results import Count
from sanitizer.errors import SanitizerError
from sanitizer.prompts.concepts import Pair
from sanitizer.prompts.obfuscation import OBFUSCATIONS
from sanitizer.render.audit import render_audit


def nothing(*_):
    pass


@pytest.fixture(scope="module")
def concept(tiny_concept):
    """With more held-out phrases than training left."""
    words = ("crimson", "ruby", "cherry", "maroon", "rusty", "carmine")
    more = tuple(Pair(f"{word} clad", "olive clad", "plain green", "adjective", held_out=True) for word in words)
    return replace(tiny_concept, pairs=tiny_concept.pairs + more)


@pytest.fixture(scope="module")
def audited(masked, concept, small_templates):
    encoder, sanitizer, _ = masked
    seen = []
    with torch.inference_mode():
        found = audit(
            encoder, sanitizer, [concept], small_templates, 400, 0,
            lambda stage, done, total, values: seen.append((stage, done, total)),
        )  # fmt: skip
    return found, seen


def test_figures_of_a_trained_sanitizer(audited):
    found, _ = audited
    [one] = found.concepts
    assert found.harmless_identical.count == 80
    assert found.harmless_identical.share > 0.9
    assert one.auroc > 0.9
    assert one.flagged.share > 0.6
    assert one.found_sanitized.hits < one.found_raw.hits
    assert set(one.obfuscated) == set(OBFUSCATIONS)
    assert one.obfuscated_flagged.count == sum(c.count for c in one.obfuscated.values())
    assert one.attack, "the probe finds targets to attack with"
    budgets = [point.budget for point in one.attack]
    assert budgets == sorted(budgets)
    assert all(point.raw.count == point.sanitized.count > 0 for point in one.attack)


def test_it_repeats_itself(audited, masked, concept, small_templates):
    encoder, sanitizer, _ = masked
    again = audit(encoder, sanitizer, [concept], small_templates, 400, 0, nothing)
    assert again.to_dict() == audited[0].to_dict()


def test_progress_never_passes_its_end_and_names_the_attack(audited):
    _, seen = audited
    assert all(0 <= done <= total for _, done, total in seen)
    assert any("attack" in stage for stage, _, _ in seen)


def test_json_text_and_picture(audited):
    found, _ = audited
    values = json.loads(json.dumps(found.to_dict()))
    assert values["concepts"][0]["flagged"].keys() == {"hits", "count", "share"}
    text = found.to_text()
    assert found.concepts[0].name in text
    assert str(found.concepts[0].flagged) in text
    picture = render_audit(found)
    assert picture.size[0] == 1024
    assert len(picture.convert("RGB").getcolors(1 << 24)) > 4, "something is drawn"
    bare = replace(found.concepts[0], attack=[], auroc=None)
    assert render_audit(replace(found, concepts=[bare])).size[1] < picture.size[1]


def test_the_callback_ends_it(masked, concept, small_templates):
    encoder, sanitizer, _ = masked

    class Stop(Exception):
        pass

    def stop(stage, *_):
        if "attack" in stage:
            raise Stop

    with pytest.raises(Stop):
        audit(encoder, sanitizer, [concept], small_templates, 400, 0, stop)


def test_what_cannot_be_measured(masked, concept, small_templates):
    encoder, sanitizer, _ = masked
    with pytest.raises(SanitizerError, match=f"at least {LEAST_BUDGET}"):
        audit(encoder, sanitizer, [concept], small_templates, 10, 0, nothing)
    bare = replace(concept, pairs=tuple(p for p in concept.pairs if not p.held_out))
    with pytest.raises(SanitizerError, match="held-out phrases"):
        audit(encoder, sanitizer, [bare], small_templates, 400, 0, nothing)


def test_paraphrases_differ_in_the_phrase_alone(tiny_concept, small_templates):
    targets = {pair.target for pair in tiny_concept.pairs}
    for one, other in paraphrases(tiny_concept, small_templates, 20, 0):
        assert one != other
        assert any(target in one for target in targets)
    lone = replace(tiny_concept, pairs=tiny_concept.pairs[:1])
    with pytest.raises(SanitizerError, match="two phrases"):
        paraphrases(lone, small_templates, 5, 0)


def test_counts():
    assert Count(0, 0).share is None
    assert str(Count(0, 0)) == "-"
    assert Count(1, 4).share == 0.25
