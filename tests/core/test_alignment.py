"""Alignment of target and anchor rows, and the rows that training keeps."""

import pytest

from sanitizer.encoders.alignment import align
from sanitizer.training.dataset import kept_places


def test_equal_tokens_align_and_the_phrase_differs():
    places, differs = align(["", "a", "nude", "woman", "", ""], ["", "a", "clothed", "woman", "", ""])
    assert places == [0, 1, 2, 3, 4, 5]
    assert differs == [False, False, True, False, False, False]


def test_phrases_of_different_length_share_rows_and_the_end_token_stays_the_end_token():
    places, differs = align(["", "a", "bare", "woman", "", "", ""], ["", "a", "fully", "clothed", "woman", "", ""])
    assert places[:5] == [0, 1, 2, 4, 5]
    assert places[6] == 6, "padding aligns by position"
    assert differs == [False, False, True, False, False, False, False]


def test_a_phrase_that_only_the_target_has_still_has_a_counterpart():
    places, differs = align(["", "x", "y", "z", ""], ["", "z", ""])
    assert places == [0, 1, 1, 1, 2]
    assert differs == [False, True, True, False, False]


def test_sub_words_of_another_tokenizer():
    places, differs = align(["▁a", "▁nu", "de", "▁man", ""], ["▁a", "▁man", "▁in", "▁suit", ""])
    assert differs == [False, True, True, False, False]
    assert places[0] == 0 and places[3] == 1 and places[4] == 4


def test_padding_beyond_the_anchors_rows_has_no_counterpart():
    places, _ = align(["", "a", "", "", ""], ["", "a", "b", "c", ""])
    assert places[2] == 4, "end token with end token"
    assert places[3:] == [-1, -1]


def test_an_empty_prompt_does_not_break_the_alignment():
    places, _ = align(["", "", ""], ["", "a", ""])
    assert len(places) == 3


@pytest.mark.parametrize("words", [0, 1, 5, 75])
def test_kept_rows_stand_for_all_rows(words):
    tokens = ["", *["w"] * words, *[""] * (76 - words)]
    places, weights = kept_places(tokens, [True] * 77)
    assert places == sorted(set(places))
    assert 76 in places, "the last row carries the whole prompt"
    assert set(range(words + 1)) <= set(places), "all text rows are kept"
    assert sum(weights) == pytest.approx(77)
    assert len(places) <= words + 12


def test_padding_places_do_not_depend_on_the_prompt_so_that_pairs_align():
    one, _ = kept_places(["", *["w"] * 3, *[""] * 73], [True] * 77)
    two, _ = kept_places(["", *["w"] * 6, *[""] * 70], [True] * 77)
    assert [p for p in one if p > 10] == [p for p in two if p > 10]


def test_kept_rows_are_the_same_beside_a_longer_prompt():
    tokens, mask = ["", *["w"] * 30, *[""] * 46], [True] * 77
    assert kept_places(tokens + [""] * 77, mask + [False] * 77) == kept_places(tokens, mask)


def test_masked_rows_are_not_kept():
    places, weights = kept_places(["", "a", "", "", ""], [True, True, True, False, False])
    assert places == [0, 1, 2] and weights == [1, 1, 1]
