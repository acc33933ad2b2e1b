"""Which words are at fault, and what a prompt becomes with others in their place."""

import pytest

from sanitizer.text.rewrite import find_spans, put
from sanitizer.text.words import Word


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
