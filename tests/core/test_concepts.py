"""Concept files: the ones we ship, and errors that name file and line."""

import random
import re
from collections import Counter
from dataclasses import replace

import pytest

from sanitizer.errors import SanitizerError
from sanitizer.prompts.concepts import FOLDER, TOPIC, available, load_concept, load_concepts, parse_custom_concept
from sanitizer.prompts.generator import PromptConfig, PromptGenerator, full_size, training_prompts
from sanitizer.prompts.obfuscation import OBFUSCATIONS
from sanitizer.prompts.templates import fix_articles, insert, load_templates

SEVEN = {"nudity", "violence", "self_harm", "hate", "harassment", "shocking", "illegal_activity"}
GOOD = """name = "bad"
title = "T"
description = "D"
licence = "CC0"

[[group]]
kind = "noun"
anchor = "a tree"
pairs = [
  "a weed -> a flower",
]
held_out = ["a thistle -> a rose"]

[[hard_negatives]]
kind = "tag"
phrases = ["seaweed"]
"""


def test_all_shipped_concepts_are_there_and_rich():
    concepts = {c.name: c for c in load_concepts()}
    assert concepts.keys() == SEVEN | {"youth"}
    for concept in concepts.values():
        assert len(concept.pairs) >= 200 and len(concept.hard_negatives) >= 70, concept.name
        held = sum(p.held_out for p in concept.pairs) / len(concept.pairs)
        assert 0.15 <= held <= 0.25, f"{concept.name}: a fifth is held out, found {held:.2f}"
        assert {p.kind for p in concept.pairs} == {"adjective", "noun", "action", "detail", "tag", "sentence"}
        assert concept.licence and concept.description
    assert [c.name for c in concepts.values() if c.context] == ["youth"]


def test_youth_comes_along_with_the_concepts_that_it_concerns():
    assert [c.name for c in load_concepts(["nudity"])] == ["nudity", "youth"]
    assert [c.name for c in load_concepts(["hate"])] == ["hate"]
    assert len(load_concepts(["all"])) == len(available())


@pytest.mark.parametrize("names", [["nudty"], ["youth"], []])
def test_unknown_or_unerasable_concepts_are_refused(names):
    with pytest.raises(SanitizerError):
        load_concepts(names)


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ('"a weed -> a flower"', '"a weed = a flower"', 10, "target -> anchor"),
        ('"a weed -> a flower"', '"a weed -> "', 10, "target -> anchor|phrase"),
        ('"a weed -> a flower"', '"a {weed} -> a flower"', 10, "braces"),
        ('"a weed -> a flower"', "17", 10, "target -> anchor"),
        ('"a weed -> a flower"', '"a schoolboy -> a man"', 10, "young people"),
        ('kind = "noun"', 'kind = "verb"', 7, "verb"),
        ('"seaweed"', '"a weed"', 16, "twice"),
        ('title = "T"\n', "", 1, "title"),
        ('title = "T"', "title = 3", 2, "expected str"),
        ('title = "T"', 'titel = "T"\ntitle = "T"', 2, "titel"),
        ('name = "bad"', 'name = "good"', 1, "like the file"),
        ('licence = "CC0"', "licence = ", 4, "TOML"),
    ],
)
def test_errors_name_file_and_line(tmp_path, old, new, line, words):
    (tmp_path / "youth.toml").write_text('guard_words = ["schoolboy"]')
    path = tmp_path / "bad.toml"
    path.write_text(GOOD.replace(old, new))
    with pytest.raises(SanitizerError, match=words) as caught:
        load_concept(path)
    assert f"bad.toml, line {line}:" in str(caught.value) or f"at line {line}" in str(caught.value), caught.value


def test_a_good_file_loads(tmp_path):
    path = tmp_path / "bad.toml"
    path.write_text(GOOD)
    concept = load_concept(path)
    assert [p.target for p in concept.pairs] == ["a weed", "a thistle"]
    assert [p.held_out for p in concept.pairs] == [False, True]


def test_a_concept_of_the_users_own():
    concept = parse_custom_concept("Van Gogh\nvan gogh style -> oil painting style\n\nstarry night -> night sky")
    assert concept.name == "van_gogh"
    assert {p.target for p in concept.pairs} == {"van gogh style", "starry night"}


@pytest.mark.parametrize("text", ["", "name", "a -> b", "name\na - b", "name\n -> b", "name\na{x} -> b"])
def test_a_custom_concept_that_cannot_be_read_names_the_line(text):
    with pytest.raises(SanitizerError, match="Custom concept"):
        parse_custom_concept(text)


def test_no_prompt_pairs_young_people_with_anything_unsafe():
    concepts = load_concepts()
    import re
    import tomllib

    words = tomllib.loads((FOLDER / "youth.toml").read_text())["guard_words"]
    pattern = re.compile(r"\b(" + "|".join(words) + r")\b", re.IGNORECASE)
    for prompt in training_prompts(concepts, load_templates(), 6000, seed=1):
        if prompt.concepts and prompt.concepts != ("youth",):
            assert not pattern.search(prompt.text), prompt.text
        assert "youth" not in prompt.concepts or len(prompt.concepts) == 1


def test_prefixes_cover_all_phrases_and_are_deterministic():
    concepts = load_concepts(["self_harm"])
    templates = load_templates()
    size = full_size(concepts)
    prompts = training_prompts(concepts, templates, size, seed=0)
    assert prompts == training_prompts(concepts, templates, size, seed=0)
    assert prompts != training_prompts(concepts, templates, size, seed=1)
    short = training_prompts(concepts, templates, size // 3, seed=0)
    assert short == prompts[: len(short)]
    generator = PromptGenerator(concepts, templates, 0)
    rounds = generator.rounds()
    phrases = sum(not p.held_out for p in concepts[0].pairs)
    first = [next(rounds)[0] for _ in range(phrases)]
    assert len(first) == phrases and all(u.concepts == ("self_harm",) or len(u.concepts) == 2 for u in first)


PLAIN = PromptConfig(obfuscated=0.0, scrambled=0.0, several=0.0, in_context=0.0, topics=0.0)
"""Every phrase as it is."""


@pytest.fixture
def plain_frames():
    """The one frame "seen: {phrase} there"."""
    templates = load_templates()
    return replace(templates, frames=dict.fromkeys(templates.frames, ("seen: {phrase} there",)))


def test_one_round_holds_every_training_phrase_once(plain_frames):
    concept = load_concepts(["self_harm"])[0]
    trained = [pair.target for pair in concept.pairs if not pair.held_out]
    texts: list[str] = []
    for unit in PromptGenerator([concept], plain_frames, 0, config=PLAIN).rounds():
        texts += [prompt.text for prompt in unit if prompt.concepts]
        if len(texts) >= len(trained):
            break
    assert sorted(texts) == sorted(insert("seen: {phrase} there", target) for target in trained)


def test_phrases_that_share_a_frame_share_an_anchor_prompt_of_their_group(plain_frames):
    concept = load_concepts(["self_harm"])[0]
    anchors = {
        insert("seen: {phrase} there", text): p.canonical for p in concept.pairs for text in (p.anchor, p.canonical)
    }
    canonical = {insert("seen: {phrase} there", pair.target): pair.canonical for pair in concept.pairs}
    shared = 0
    for unit, _ in zip(PromptGenerator([concept], plain_frames, 0, config=PLAIN).rounds(), range(100), strict=False):
        targets = [prompt for prompt in unit if prompt.concepts]
        assert all(prompt.anchor == len(targets) for prompt in targets) and not unit[len(targets)].concepts
        assert {canonical[prompt.text] for prompt in targets} == {anchors[unit[len(targets)].text]}
        shared += len(targets) == PLAIN.sharing
    assert shared > 50


def test_further_phrases_stand_beside_the_first_and_their_anchors_in_its_anchor_prompt(plain_frames):
    concepts = [
        parse_custom_concept(f"{name}\n" + "\n".join(f"{name}{i} -> safe{name}{i}" for i in range(9)))
        for name in ("red", "blue")
    ]
    config = replace(PLAIN, several=1.0, framed=0.0)
    counts, mixed = Counter(), 0
    for unit, _ in zip(PromptGenerator(concepts, plain_frames, 0, config=config).rounds(), range(100), strict=False):
        anchor = next(prompt.text for prompt in unit if not prompt.concepts)
        for prompt in (p for p in unit if p.concepts):
            found, safe = (re.findall(r"(?:safe)?(?:red|blue)\d", text) for text in (prompt.text, anchor))
            assert len(found) == len(safe) and sum(f"safe{f}" != s for f, s in zip(found, safe, strict=True)) <= 1
            assert {name.rstrip("0123456789") for name in found} == set(prompt.concepts)
            counts[len(found)] += 1
            mixed += len(prompt.concepts) == 2
    assert set(counts) == {2, 3, 4, 5} and 0 < mixed < 100


def test_talk_about_a_concept_is_told_from_what_shows_it_in_the_same_formats():
    """And it has draws of its own: with it, every other prompt is as without."""
    concepts, templates = load_concepts(["violence"]), load_templates()
    topics = [p.text for p in concepts[0].hard_negatives if p.kind == TOPIC and not p.held_out]
    nouns = [p.target for p in concepts[0].pairs if p.kind == "noun" and not p.held_out]
    config = replace(PLAIN, obfuscated_negatives=0.0)
    with_topics = replace(config, topics=0.5)
    without, both = (
        training_prompts(concepts, templates, count, 0, own) for own, count in ((config, 900), (with_topics, 1500))
    )
    others = {p.text for p in without}
    apart = [p for p in both if p.text not in others]
    talk = [p for p in apart if any(topic in p.text for topic in topics)]
    shown = [p for p in apart if p.anchor is not None and any(noun in p.text for noun in nouns)]
    assert others <= {p.text for p in both} and len(talk) > 50 and len(shown) > 50
    assert not any(p.concepts for p in talk) and all(p.concepts == ("violence",) for p in shown)
    held_out, calibration = (PromptGenerator(concepts, templates, 0, split) for split in ("held_out", "calibration"))
    trained = set(PromptGenerator(concepts, templates, 0).topics)
    for own in (held_out, calibration):
        assert own.topics and not set(own.topics) & trained
    assert not set(templates.frames[TOPIC]) & set(templates.held_out_frames[TOPIC])


def test_concepts_take_turns():
    prompts = training_prompts(load_concepts(), load_templates(), 1500, seed=0)
    counts = Counter(name for p in prompts for name in p.concepts)
    assert counts.keys() == SEVEN | {"youth"} and min(counts.values()) >= 10


def test_held_out_phrases_frames_and_prompts_are_not_trained_on():
    concepts, templates = load_concepts(["hate"]), load_templates()
    held = {p.target for p in concepts[0].pairs if p.held_out}
    generator = PromptGenerator(concepts, templates, 0)
    assert not held & {p.target for _, p in generator.pairs}
    assert not set(templates.held_out_benign_prompts) & set(generator.benign_prompts)
    calibration = PromptGenerator(concepts, templates, 0, split="calibration")
    assert not set(calibration.benign_prompts) & set(generator.benign_prompts)
    assert not set(calibration.benign_frames) & set(generator.benign_frames)


def test_articles_follow_the_phrase():
    assert fix_articles("a old man, An cat, a umbrella") == "an old man, A cat, an umbrella"
    assert insert("a photo of a {phrase} man", "angry") == "a photo of an angry man"


@pytest.mark.parametrize("name", OBFUSCATIONS)
def test_obfuscations_change_the_text_and_survive_anything(name):
    rng = random.Random(0)
    texts = [OBFUSCATIONS[name]("a photo of something special", rng) for _ in range(8)]
    assert any(text != "a photo of something special" for text in texts)
    for text in ("", "a", "é 😀", "ab cd"):
        OBFUSCATIONS[name](text, rng)
