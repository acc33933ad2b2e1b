"""Phrases in other languages: the files, what is joined with the concepts, and which languages an encoder knows."""

from dataclasses import replace

import pytest

from sanitizer.errors import SanitizerError
from sanitizer.prompts.concepts import FOLDER, Pair, any_word, available, load_concepts, parse_custom_concept
from sanitizer.prompts.generator import training_prompts
from sanitizer.prompts.languages import LANGUAGES, SPACELESS, load_language, load_languages, with_languages
from sanitizer.prompts.templates import load_templates
from sanitizer.training.dataset import measure
from sanitizer.training.fit import fit
from sanitizer.training.known_languages import known_languages

TEN = ["ar", "de", "es", "fr", "it", "ja", "ko", "pt", "ru", "zh"]
GOOD = """language = "Toy"
licence = "CC0"
guard_words = ["kid"]
frames = ["foto {phrase}"]
held_out_frames = ["bild {phrase}"]
harmless = ["ein haus"]
held_out_harmless = ["ein baum"]

[redness]
pairs = ["rotes ding -> gruenes ding"]
held_out = ["rote sache -> gruene sache"]
hard_negatives = ["rotkehlchen"]
"""


@pytest.fixture
def toy(tmp_path):
    path = tmp_path / "xx.toml"
    path.write_text(GOOD)
    return path


@pytest.fixture(scope="module")
def shipped():
    return load_languages()


def test_ten_languages_hold_every_concept(shipped):
    assert [own.code for own in shipped] == TEN
    for own in shipped:
        assert set(own.pairs) == set(available())
        assert all(sum(not p.held_out for p in pairs) >= 24 for pairs in own.pairs.values())
        assert all(sum(p.held_out for p in pairs) >= 8 for pairs in own.pairs.values())
        assert len(own.harmless) >= 100 and len(own.held_out_harmless) >= 40
        assert not set(own.harmless) & set(own.held_out_harmless)
        assert not set(own.frames) & set(own.held_out_frames)


def test_no_prompt_in_any_language_pairs_young_people_with_anything_unsafe(shipped):
    concepts, templates = with_languages(load_concepts(), load_templates(), shipped, TEN)
    guards = {own.code: any_word(own.guard_words, alone=own.code not in SPACELESS) for own in shipped}
    own_words = {p.target: p.kind for c in concepts if not c.context for p in c.pairs if p.kind in guards}
    seen = 0
    for prompt in training_prompts(concepts, templates, 12_000, seed=1):
        assert "youth" not in prompt.concepts or len(prompt.concepts) == 1
        if not prompt.concepts or prompt.concepts == ("youth",):
            continue
        for target, code in own_words.items():
            if target in prompt.text and len(target) > 3:
                seen += 1
                part = prompt.text[prompt.text.index(target) :][: len(target)]
                assert not guards[code].search(part)
    assert seen > 500


def test_a_good_file_loads(toy):
    own = load_language(toy)
    assert own.code == "xx" and own.name == "Toy"
    assert [(p.target, p.anchor, p.kind, p.held_out) for p in own.pairs["redness"]] == [
        ("rotes ding", "gruenes ding", "xx", False),
        ("rote sache", "gruene sache", "xx", True),
    ]
    assert [(p.text, p.kind) for p in own.hard_negatives["redness"]] == [("rotkehlchen", "xx")]


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ('"rotes ding ->', '"rotes kid ->', 10, "'kid' is a word for young people"),
        ("foto {phrase}", "foto", 4, "{phrase} once"),
        ("foto {phrase}", "foto {thing}", 4, "unknown slot {thing}"),
        ('language = "Toy"\n', "", 1, "language"),
        ("pairs =", "pears =", 9, "lacks the key 'pairs'"),
        ("rotes ding -> gruenes ding", "rotes ding", 10, "target -> anchor"),
        ('"rote sache ->', '"rotes ding ->', 11, "twice"),
        ('["ein haus"]', '["ein {haus}"]', 6, "braces"),
    ],
)
def test_errors_name_file_and_line(toy, old, new, line, words):
    toy.write_text(GOOD.replace(old, new))
    with pytest.raises(SanitizerError, match=words) as caught:
        load_language(toy)
    assert f"xx.toml, line {line}:" in str(caught.value), caught.value


def test_an_unknown_language_teaches_only_what_is_harmless(toy):
    concept, templates = parse_custom_concept("redness\ncrimson -> green"), load_templates()
    own = load_language(toy)
    for known in ([], ["xx"]):
        (joined,), texts = with_languages([concept], templates, [own], known)
        targets = {p.target for p in joined.pairs}
        assert ("rotes ding" in targets) == bool(known)
        assert ("gruenes ding" in {p.text for p in joined.hard_negatives}) == (not known)
        assert "rotkehlchen" in {p.text for p in joined.hard_negatives}
        assert "ein haus" in texts.benign_prompts and "ein baum" in texts.held_out_benign_prompts
        assert texts.frames["xx"] == ("foto {phrase}",) and texts.held_out_frames["xx"] == ("bild {phrase}",)
    prompts = training_prompts([joined], texts, 200, seed=0)
    assert any("rotes ding" in p.text and p.concepts for p in prompts)
    assert not any("rote sache" in p.text or "ein baum" in p.text for p in prompts)


def test_an_encoder_knows_the_language_in_which_unsafe_phrases_are_alike(toy, tiny_encoder):
    """Red words are alike to the tiny encoder; of words that it does not know each is a random vector."""
    reds, count = ["crimson", "scarlet", "ruby", "maroon"], range(32)
    known = replace(
        load_language(toy),
        harmless=tuple(f"a house of number{i}" for i in count),
        pairs={"redness": tuple(Pair(f"{reds[i % 4]} thing{i}", f"stone thing{i}", "stone", "xx") for i in count)},
    )
    pairs = tuple(Pair(f"w{7 * i} v{i}", f"u{i} t{3 * i}", "stone", "yy") for i in count)
    unknown = replace(known, code="yy", pairs={"redness": pairs})
    concept, encoder = parse_custom_concept("redness\ncrimson -> green"), tiny_encoder()
    normalizer = measure([encoder.encode(["a crimson house", "a green thing", "stone number1"])])
    found = known_languages(encoder, normalizer, [known, unknown], [concept], phrases=60, seed=0)
    assert found["xx"] > 0.9 > 0.75 > found["yy"]


def test_the_header_says_how_well_each_language_is_told_apart(tiny_encoder):
    sanitizer, _ = fit(tiny_encoder(), load_concepts(["nudity"]), examples=2000, steps=20)
    found = sanitizer.header.training["languages"]
    assert list(found) == TEN and all(0 <= value <= 1 for value in found.values())
    sanitizer, _ = fit(tiny_encoder(), load_concepts(["nudity"]), examples=150, steps=20, languages=[])
    assert sanitizer.header.training["languages"] == {}


def test_the_files_lie_with_the_concepts():
    assert LANGUAGES == FOLDER / "languages" and not {path.stem for path in LANGUAGES.glob("*")} & set(available())
