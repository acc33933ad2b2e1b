"""Re-encoding: what it finds at fault, what it writes in its place, and when it stops."""

import importlib.util
from pathlib import Path

import pytest
import torch

from evaluation.methods.re_encoding import Anchors, find_spans, put, re_encode
from evaluation.methods.substitution import encode
from sanitizer.concepts import Concept, Pair
from sanitizer.heatmap import Word


def handmade(encoder):
    path = Path(__file__).resolve().parent.parent / "core" / "handmade.py"
    spec = importlib.util.spec_from_file_location("handmade_for_re_encoding", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.handmade(encoder, "nudity")


PAIRS = (
    Pair("crimson", "olive", "plain", "adjective"),
    Pair("a wooden chair", "a wooden table", "a thing", "noun"),
    Pair("crimson light", "kept", "kept", "noun", held_out=True),
)


@pytest.fixture(params=["tiny", "tiny_causal"])
def setting(request):
    encoder = request.getfixturevalue(request.param)
    sanitizer = handmade(encoder)
    concept = Concept("nudity", "Red", "Red words.", "CC0-1.0", PAIRS)
    return encoder, sanitizer, Anchors.build(encoder, sanitizer, [concept], held_out=False)


def scored(text, scores):
    found, at = [], 0
    for word, score in zip(text.split(), scores, strict=True):
        at = text.index(word, at)
        found.append(Word(word, at, at + len(word), {"nudity": score}))
        at += len(word)
    return found


def test_spans_are_neighbouring_words_without_their_punctuation():
    text = "a stark, red dress (and blue) shoes"
    found = scored(text, [0.1, 0.6, 0.95, 0.2, 0.0, 0.7, 0.1])
    assert [text[a:b] for a, b in find_spans(found, text, 0.5)] == ["stark, red", "blue"]
    assert [text[a:b] for a, b in find_spans(found, text, 0.9)] == ["red"]
    assert [text[a:b] for a, b in find_spans(found, text, 0.99)] == ["red"], "the highest where none reaches it"
    assert find_spans([], "", 0.5) == []


@pytest.mark.parametrize(
    ("text", "phrase", "anchor", "wanted"),
    [
        ("a red dress", "red", "olive", "an olive dress"),
        ("an olive dress", "olive", "red", "a red dress"),
        ("a red dress", "red", "", "a dress"),
        ("a dress, red", "red", "", "a dress,"),
        ("red", "red", "", ""),
        ("red, blue", "red", "", ", blue"),
        ("the red red dress", "red red", "plain", "the plain dress"),
    ],
)
def test_anchors_are_put_in_place_of_spans(text, phrase, anchor, wanted):
    start = text.index(phrase)
    assert put(text, [(start, start + len(phrase))], [anchor]) == wanted


def test_several_spans_are_put_at_once():
    assert put("red boats and red cars", [(0, 3), (14, 17)], ["olive", ""]) == "olive boats and cars"


def test_held_out_pairs_are_left_out(setting):
    _, _, anchors = setting
    assert [pair.target for pair in anchors.pairs] == ["crimson", "a wooden chair"]
    assert anchors.vectors.norm(dim=-1) == pytest.approx([1.0, 1.0], abs=1e-5)


def test_the_nearest_target_comes_first(setting):
    encoder, sanitizer, anchors = setting
    everything = Anchors.build(encoder, sanitizer, [Concept("nudity", "", "", "", PAIRS)])
    assert len(everything.pairs) == 3
    assert everything.nearest(anchors.vectors[:1], 2)[0][0].target == "crimson"


def test_flagged_prompts_are_rewritten_and_the_others_are_not(setting):
    encoder, sanitizer, anchors = setting
    prompts = ["a crimson dress", "an old door in the garden", "light on a crimson boat"]
    encoding = encoder.encode(prompts)
    out = re_encode(encoder, sanitizer, anchors, prompts, encoding, concepts=["nudity"])
    assert out.flagged.tolist() == [True, False, True]
    assert out.prompts[1] == prompts[1] and out.rows.shape[0] == 2
    for text, original in ((out.prompts[0], prompts[0]), (out.prompts[2], prompts[2])):
        assert "crimson" not in text and set(original.split()) - {"a", "crimson"} <= set(text.split())
    again = encode(encoder, [out.prompts[0], out.prompts[2]])
    assert torch.equal(out.encoding.rows, again.rows)
    verdict = sanitizer.sanitize(again.rows, again.mask, again.pooled, strength=0.0)
    assert not verdict.flagged.any(), "checked"
    kept = ~out.left
    assert torch.equal(out.rows[kept], again.rows[kept]), "what needs no erasing is the encoder's own output"


def test_nothing_flagged_costs_nothing(setting):
    encoder, sanitizer, anchors = setting
    prompts = ["an old door", "a garden"]
    encoding = encoder.encode(prompts)
    before = encoder.prompts
    out = re_encode(encoder, sanitizer, anchors, prompts, encoding)
    assert encoder.prompts == before and not out.flagged.any() and len(out.rows) == 0 and out.prompts == prompts


def test_what_remains_is_erased(setting):
    """With no round to rewrite in, the erase net does it all."""
    encoder, sanitizer, anchors = setting
    prompts = ["a crimson dress"]
    encoding = encoder.encode(prompts)
    out = re_encode(encoder, sanitizer, anchors, prompts, encoding, rounds=0)
    ours = sanitizer.sanitize(encoding.rows, encoding.mask, encoding.pooled, threshold=0.001)
    assert out.left.all() and out.prompts == prompts and torch.equal(out.rows, ours.rows)


def test_a_prompt_of_nothing_but_the_phrase(setting):
    encoder, sanitizer, anchors = setting
    encoding = encoder.encode(["crimson"])
    out = re_encode(encoder, sanitizer, anchors, ["crimson"], encoding)
    assert out.flagged.all() and out.prompts[0] in ("olive", "plain", "a wooden table")


def test_a_sanitizer_is_found_for_the_encoder_or_refused(tiny):
    from evaluation.base import Development
    from evaluation.methods import METHODS
    from sanitizer.errors import SanitizerError

    with pytest.raises(SanitizerError, match="no sanitizer for"):
        METHODS["re_encode"]().fit(Development(tiny, "nudity", [], [], [], [], [], []))
