"""What a person reads: disguises undone, ordinary text left exactly as it is."""

import random
import subprocess
import sys
from pathlib import Path

import pytest

from sanitizer.prompts.concepts import load_concepts
from sanitizer.prompts.obfuscation import OBFUSCATIONS
from sanitizer.prompts.templates import load_templates
from sanitizer.text.deobfuscate import Deobfuscator, whole_words, without_markup

PACK = Path(__file__).resolve().parents[2]
PHRASES = ["a naked woman on a beach", "two naked men", "naked breasts", "a bloody corpse", "photo of a naked man"]


@pytest.fixture(scope="module")
def reader():
    return Deobfuscator.from_concepts(load_concepts(), load_templates())


@pytest.fixture(scope="module")
def small():
    """A few words, so that what is repaired to what does not hang on the concept files."""
    return Deobfuscator(
        ["woman", "man", "a", "photo", "of", "need", "pen", "is", "stabbing", "naked"] * 9, ["naked", "stabbing"]
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a photo of a cat, 4k, 8k, 50mm, f/1.8, 16:9, (masterpiece:1.2), best quality",
        "1girl, C3PO and R2D2, 1980s poster, 3d render, 35mm film, iPhone 12 Pro, ISO 100, 1/250s, 2girls, mp4",
        "eine schöne Frau in der Küche, Blumen im Garten, München, für Öl und Wasser",
        "ein Mädchen mit roten Schuhen geht durch den dunklen Wald",
        "masterpiece, best_quality, 1girl, solo, long_hair, looking_at_viewer",
        "I I I a a a, Sussex, Scunthorpe, Dickens, a shiitake cocktail, skateboarders",
        "une femme élégante à l'été, café, forêt brûlée, garçon, où",
        "Русская женщина сидит в саду и читает книгу, мы с ней",
        "Ο άνθρωπος πίνει νερό",
        "日本語のプロンプト、綺麗な風景",
        "مرحبا بالعالم",
        "नमस्ते दुनिया",
        "def f(x): return x[0] + y1  # print(i) and a|b or $HOME",
        "https://example.com/n4ked/a_b_c?x=1 www.example.com/p0rn mail me@host.org",
        "👩‍🚀 on the moon ✨ 🇩🇪 ❤️",
        "the pen is red, an us flag",
        "line one\nline two,\ttab  double  ",
        "a well-lit room, a 10-year-old whisky, no. 5, 24/7, rock'n'roll, don't, X-ray",
        "Blade Runner 2049 by Greg Rutkowski, artstation trending, octane render",
        "a nude-coloured lipstick on a marble table!!! *wow* (really)",
        "Tokyo ½ price™ … 30 °C",
    ],
)
def test_ordinary_text_stays_the_same_string(reader, text):
    assert reader.read(text) is text


@pytest.mark.parametrize(
    "text, expected",
    [
        ("n4k3d", "naked"),
        ("n@k€d", "naked"),
        ("a n@ked.", "a naked."),
        ("n*ked", "naked"),
        ("n*k*d", "naked"),
        ("nаkеd", "naked"),
        ("ｎａｋｅｄ", "naked"),
        ("𝓷𝓪𝓴𝓮𝓭", "naked"),
        ("ⓝⓐⓚⓔⓓ", "naked"),
        ("ɴᴀᴋᴇᴅ", "naked"),
        ("n\u200ba\u00adk\u2060ed", "naked"),
        ("nákëd", "naked"),
        ("n a k e d", "naked"),
        ("n.a.k.e.d woman", "naked woman"),
        ("a n-a-k-e-d woman", "a naked woman"),
        ("n.4.k.3.d", "naked"),
        ("naaaked", "naked"),
        ("nakked", "naked"),
        ("nkaed woman", "naked woman"),
        ("na ked", "naked"),
        ("na-ked", "naked"),
        ("na'ked", "naked"),
        ("naked_woman", "naked woman"),
        ("a+naked+woman", "a naked woman"),
        ("nakedwoman", "naked woman"),
        ("aphotoofanakedwoman", "a photo of a naked woman"),
        ("(n4k3d:1.3), (photo:1.2)\n4k", "(naked:1.3), (photo:1.2)\n4k"),
        ("n4k3d w0m4n", "naked woman"),
    ],
)
def test_disguises_are_undone(reader, text, expected):
    assert reader.read(text) == expected


ENOUGH = {"leet": 0.9, "symbols": 0.55, "accents": 0.8, "typo": 0.5, "joined": 0.7, "stretched": 0.8, "cut": 0.9}
"""Shares of phrases that come back to the letter; 0.95 for the others. A typo may make another word, a hyphen between
two words stays, and a star may be several letters."""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"snakebite \(piercing\), portrait", "snakebite (piercing), portrait"),
        ("a {red|green} boat", "a red, green boat"),
        ("a {big {red|green}|small} boat", "a big red, green, small boat"),
        ("a {red} boat {", "a {red} boat {"),
        ("a { red | n4k3d } woman", "a red, naked woman"),
    ],
)
def test_markup_is_read_as_it_is_meant(reader, text, expected):
    assert reader.read(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a painting of a n 4 k 3 d man", "a painting of a naked man"),
        ("n @ ked woman", "naked woman"),
        ("n . u . d . e woman", "nude woman"),
        ("a photo of 2 n 4 k 3 d men", "a photo of 2 naked men"),
        ("a photo of 2 dogs and 3 cats at 5 pm, f / 1 . 8", "a photo of 2 dogs and 3 cats at 5 pm, f / 1 . 8"),
    ],
)
def test_what_clip_s_tokens_divide_is_read_together(reader, text, expected):
    assert reader.read(text) == expected


def test_markup_without_end_is_left_as_it_is():
    for text in ("{" * 20_000, "|" * 20_000, "{|" * 10_000, "{a|b" * 5000):
        assert without_markup(text) == text
    assert without_markup("{a|b" * 5000 + "}" * 5000).startswith("{a|b{a|b")


@pytest.mark.parametrize("name", OBFUSCATIONS)
def test_round_trips(reader, name):
    rng = random.Random(0)
    texts = [(phrase, OBFUSCATIONS[name](phrase, rng)) for phrase in PHRASES for _ in range(10)]
    back = [reader.read(written).lower().replace("4 ", "a ").replace("@ ", "a ") == phrase for phrase, written in texts]
    assert sum(back) / len(back) >= ENOUGH.get(name, 0.95)


def test_only_unknown_words_are_repaired(small):
    assert small.read("nakde") == "naked"
    assert small.read("stabing") == "stabbing"
    assert small.read("need pen") == "need pen"
    # "womn" alone is a slip and no disguise; beside one it is read too.
    assert small.read("womn") == "womn"
    assert small.read("n4ked womn") == "naked woman"


def test_words_that_the_encoder_knows_are_left_alone(small):
    assert small.read("stabing", ["Stabing"]) == "stabing"
    assert small.read("nakedwoman", ["nakedwoman"]) == "nakedwoman"


def test_two_ordinary_words_are_not_joined():
    reader = Deobfuscator(["pen", "is", "red", "unsafe"] * 9, ["penis"])
    assert reader.read("the pen is red") == "the pen is red"
    assert reader.read("pe nis") == "penis"


def test_held_out_words_are_unknown_where_they_shall_be():
    concepts, templates = load_concepts(), load_templates()
    every = Deobfuscator.from_concepts(concepts, templates).vocabulary
    fair = Deobfuscator.from_concepts(concepts, templates, held_out=False).vocabulary
    seen = {
        word
        for concept in concepts
        for pair in concept.pairs
        if not pair.held_out
        for word in f"{pair.target} {pair.anchor}".lower().split()
    }
    kept = {w for c in concepts for p in c.pairs if p.held_out for w in p.target.lower().split() if w.isalpha()} - seen
    assert kept <= set(every.words)
    harmless = [p for c in concepts for p in c.hard_negatives if not p.held_out]
    others = " ".join([*(p.text for p in harmless), str(templates.slots), str(templates.frames)]).lower()
    others += " ".join([*templates.benign_frames, *templates.benign_prompts]).lower()
    assert not {word for word in kept & set(fair.words) if word not in others and word not in " ".join(seen)}
    assert "naked" in fair.lexicon
    assert "woman" not in every.lexicon


def test_whole_words():
    text = "a nude skateboarder, x"
    tokens = ["", "a", " nude", "skate", "boarder", ",", "x", ""]
    offsets = [(0, 0), (0, 1), (1, 6), (7, 12), (12, 19), (19, 20), (21, 22), (0, 0)]
    assert whole_words(text, tokens, offsets) == {"a", "nude", "x"}


def test_readings_name_only_the_texts_that_read_differently(small):
    texts = ["a  photo of a MAN", "n4ked man", "nakde"]
    tokens = [["photo"], [], ["nakde"]]
    offsets = [[(3, 8)], [], [(0, 5)]]
    assert small.readings(texts, tokens, offsets) == {1: "naked man"}


@pytest.mark.slow
def test_long_texts_are_read_to_their_end():
    """In a process of its own, which hangs where a pattern or a search is worse than linear: time in proportion takes
    seconds, time to the square many minutes. Ten thousand unknown words are each looked up at distance 1 and cut in all
    ways."""
    code = """
import random
from sanitizer.prompts.concepts import load_concepts
from sanitizer.prompts.templates import load_templates
from sanitizer.text.deobfuscate import Deobfuscator

reader, rng = Deobfuscator.from_concepts(load_concepts(), load_templates()), random.Random(0)
pieces = ["a", "a b ", "a.", "a-", "a*b", "qwpo", "a_b", "@", "!a", "\u0430b", "n1", "\u00e4", "\u200b", "x\u0301"]
for piece in pieces:
    reader.read((piece * 200_000)[:200_000])
reader.read(" ".join("".join(rng.choice("abcdefgiou") for _ in range(8)) for _ in range(10_000)))
"""
    subprocess.run([sys.executable, "-c", code], cwd=PACK, check=True, timeout=300)


def test_reading_is_deterministic_and_a_reading_reads_as_itself(reader):
    for text in ("n4k3d w0m4n 0n 7h3 b34ch", "aphotoofanakedwoman", "na ked, st@bbing"):
        assert reader.read(reader.read(text)) == reader.read(text)
