"""Words, colours, the terminal line, the picture."""

import re

import pytest
import torch

from sanitizer.render import colours, terminal
from sanitizer.render.image import render_image
from sanitizer.text import words as joining
from sanitizer.text.words import Word

ESCAPE = re.compile(r"\x1b\[[0-9;]*m")


def words(text, tokens, offsets, scores):
    table = torch.tensor(scores, dtype=torch.float32).reshape(len(tokens), -1)
    names = ["nudity", "violence"][: table.shape[1]]
    return joining.words(text, tokens, offsets, table, names)


def test_sub_words_join_to_words_with_the_highest_score():
    found = words(
        "a photorealistic boat",
        ["", "a", "photo", "##real", "##istic", "boat", "", ""],
        [(0, 0), (0, 1), (2, 7), (7, 11), (11, 16), (17, 21), (0, 0), (0, 0)],
        [0.9, 0.1, 0.2, 0.75, 0.25, 0.125, 0.9, 0.9],
    )
    assert [(w.text, w.start, w.end) for w in found] == [("a", 0, 1), ("photorealistic", 2, 16), ("boat", 17, 21)]
    assert [w.score() for w in found] == pytest.approx([0.1, 0.75, 0.125])


def test_every_concept_has_its_own_maximum():
    [word] = words("abcd", ["ab", "cd"], [(0, 2), (2, 4)], [[0.75, 0.25], [0.5, 1.0]])
    assert word.scores == {"nudity": 0.75, "violence": 1.0}
    assert word.score() == 1.0
    assert word.score(["nudity"]) == 0.75
    assert word.score(["unknown"]) == 0.0


def test_all_text_is_in_a_word_also_where_no_token_covers_it():
    found = words(" \0a\u200bb  🦊 ", ["a", "b"], [(2, 3), (4, 5)], [0.5, 0.25])
    assert [(w.text, w.score()) for w in found] == [("\0a\u200bb", 0.5), ("🦊", 0.0)]


def test_a_token_that_holds_the_space_before_it():
    found = words("a nude", ["▁a", "▁nude"], [(0, 1), (1, 6)], [0.0, 1.0])
    assert [(w.text, w.score()) for w in found] == [("a", 0.0), ("nude", 1.0)]


def test_a_token_over_several_words_counts_for_each():
    found = words("new york city", ["new york", "city"], [(0, 8), (9, 13)], [1.0, 0.0])
    assert [w.score() for w in found] == [1.0, 1.0, 0.0]


def test_scripts_without_spaces_are_not_one_word():
    found = words("裸の人 ok", ["裸", "の", "人", "ok"], [(0, 1), (1, 2), (2, 3), (4, 6)], [1.0, 0.0, 0.0, 0.0])
    assert [w.text for w in found] == ["裸", "の", "人", "ok"]
    assert [w.score() for w in found] == [1.0, 0.0, 0.0, 0.0]


def test_no_text_no_words():
    assert words("", ["", ""], [(0, 0), (0, 0)], [1.0, 1.0]) == []
    assert words(" \n", [""], [(0, 0)], [1.0]) == []


def test_ten_thousand_words_take_no_time():
    text = "word " * 10_000
    offsets = [(5 * i, 5 * i + 4) for i in range(10_000)]
    found = words(text, ["word"] * 10_000, offsets, [0.5] * 10_000)
    assert len(found) == 10_000
    assert {w.score() for w in found} == {0.5}


def test_colour_is_a_sequence_of_falling_lightness():
    light = [colours.luminance(colours.colour(i / 100)) for i in range(101)]
    assert light == sorted(set(light), reverse=True)
    assert colours.colour(-1) == colours.colour(0)
    assert colours.colour(2) == colours.colour(1)
    assert all(0 <= c <= 255 and isinstance(c, int) for i in range(101) for c in colours.colour(i / 100))


def test_text_is_readable_on_every_colour():
    for i in range(101):
        back = colours.luminance(colours.colour(i / 100))
        front = colours.luminance(colours.text_colour(i / 100))
        assert (max(back, front) + 0.05) / (min(back, front) + 0.05) >= 4.5


def test_scale_is_css():
    scale = colours.scale(5)
    assert len(scale) == 5
    assert all(re.fullmatch("#[0-9a-f]{6}", colour) for pair in scale for colour in pair)
    assert scale[0][1] == "#000000"
    assert scale[-1][1] == "#ffffff"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain text", "plain text"),
        ("\x1b[31mred\x07", "␛[31mred␇"),
        ("a\nb\rc\td\0", "a␊b␍c d␀"),
        ("\x7f\x9b31m", "␡<U+009B>31m"),
        ("\u202eevil\u2066", "<U+202E>evil<U+2066>"),
        ("\u2028\ud800", "<U+2028><U+D800>"),
        ("👨\u200d👩 שלום नमस्ते é", "👨\u200d👩 שלום नमस्ते é"),
    ],
)
def test_nothing_in_a_prompt_steers_the_terminal(text, shown):
    assert terminal.printable(text) == shown


@pytest.mark.parametrize("depth", [0, 8, 24])
def test_terminal_line_shows_the_whole_prompt(depth):
    text = "a  \x1b[2Jnude, \u202ewoman"
    found = words(text, ["a", "nude", "woman"], [(0, 1), (7, 11), (14, 19)], [0.0, 0.9, 0.2])
    line = terminal.render_terminal(text, found, depth=depth)
    plain = ESCAPE.sub("", line)
    assert "\x1b" not in plain
    assert "\n" not in line
    if depth:
        assert plain == terminal.printable(text)
        assert line.count("\x1b[0m") == 2, "faint words stay plain"
    else:
        assert plain == "a  [␛[2Jnude, 0.90] <U+202E>woman"


def test_terminal_line_counts_chosen_concepts_only():
    found = [Word("child", 0, 5, {"youth": 1.0, "nudity": 0.0})]
    assert terminal.render_terminal("child", found, depth=8, concepts=["nudity"]) == "child"
    assert "\x1b" in terminal.render_terminal("child", found, depth=8)


def test_legend():
    assert "threshold 0.50" in terminal.render_legend(8)
    assert "\x1b" not in terminal.render_legend(0)


def test_culprit():
    found = [Word("a", 0, 1, {"nudity": 0.0}), Word("nude\x1b", 2, 7, {"nudity": 0.9})]
    assert terminal.culprit(found, "nudity") == "nude␛"
    assert terminal.culprit([], "nudity") == ""
    assert len(terminal.culprit([Word("x" * 99, 0, 99, {})], "nudity")) == 40


def entry(text, score, fired=("nudity",), **more):
    found = [Word(m[0], m.start(), m.end(), {"nudity": score}) for m in re.finditer(r"\S+", text)]
    return (found, fired, {"nudity": score}, *more.values())


def has(image, colour):
    return colour in {pixel for _, pixel in image.getcolors(maxcolors=1 << 24)}


def test_picture():
    image = render_image([entry("a nude woman", 0.875), entry("a fox", 0.0, (), heading="harmless")], title="T")
    assert image.mode == "RGB"
    assert image.width == 1024
    assert has(image, colours.colour(0.875))
    assert has(image, colours.colour(0.0))


def test_picture_of_nothing_is_a_legend():
    assert render_image([]).height > 50


def test_picture_wraps_inside_its_width():
    image = render_image([entry("word " * 60 + "x" * 400, 1.0)], width=480)
    margin = image.crop((480 - 20, 0, 480, image.height))
    assert margin.getcolors() == [(20 * image.height, (255, 255, 255))]
    assert image.height > 500


def test_picture_of_ten_thousand_words_is_of_a_size_that_opens():
    image = render_image([entry("word " * 10_000, 0.5)])
    assert image.height < 3000


def test_picture_with_letters_that_the_font_lacks():
    image = render_image([entry("狐 🦊 שלום \x1b[0m \ud800", 0.5)])
    assert has(image, colours.colour(0.5)), "they are drawn as boxes, and nothing fails"
