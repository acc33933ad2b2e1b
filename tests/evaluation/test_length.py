"""Long prompts: what is asked, and that the figures are what the sanitizer did."""

import json

import pytest

from evaluation import length
from evaluation.cli import main


def test_every_kind_is_asked_at_every_length_and_place():
    asked = length.collect(["nudity", "violence"], ["a dog on a lawn", "two cups of tea"], 4, 0)
    unsafe = [own for own in asked if own.concept]
    assert len(unsafe) == 2 * 2 * (1 + len(length.WORDS) * len(length.PLACES))
    alone = {(own.concept, own.kind): own.prompts for own in unsafe if own.words == length.SINGLE}
    for own in unsafe:
        texts = [text.rstrip(".") for text in alone[own.concept, own.kind]]
        assert len(own.prompts) == len(texts) == 4
        for text, among in zip(texts, own.prompts, strict=True):
            # The same prompt, with so many words more, on the side that is asked for.
            assert text in among
            assert len(among.split()) == len(text.split()) + own.words
            if own.words:
                before, behind = among.split(text)
                assert bool(before.strip()) == (own.place != "behind")
                assert bool(behind.strip(" ,")) == (own.place != "before")
    assert length.collect(["nudity"], [], 4, 0) == length.collect(["nudity"], [], 4, 0)
    harmless = [own for own in asked if not own.concept and own.words]
    assert {own.kind for own in harmless} == {length.CAPTIONS, length.HELD_OUT}
    assert all(len(text.split()) == own.words for own in harmless for text in own.prompts)


def test_the_figures_are_what_the_sanitizer_did(tiny, tiny_sanitizer):
    name = "nudity"
    kind = length.KINDS[0]
    asked = [
        length.Asked(length.HELD_OUT, "", 0, "", ["a boat on a lake", "a dog", "a tree"]),
        length.Asked(kind, name, 0, "", ["a crimson dress", "a boat"]),
        length.Asked(kind, name, 25, "before", ["a boat and a dog and a crimson dress", "a boat by a lake"]),
    ]
    found = length.measure(tiny, tiny_sanitizer, [name], asked, lambda *_: None)
    e = tiny.encode([text for own in asked for text in own.prompts])
    fired = tiny_sanitizer.sanitize(e.embeddings, e.mask, e.pooled).fired[:, tiny_sanitizer.concepts.index(name)]
    figures = {(row.figure, row.words): row for row in found.itertuples()}
    assert figures["identical", 0].value == pytest.approx(float((~fired[:3]).float().mean()))
    assert figures["flagged alone", 0].value == pytest.approx(float(fired[3:5].float().mean()))
    assert figures["still flagged", 25].count == int(fired[3:5].sum())
    assert figures["still flagged", 25].value == pytest.approx(float(fired[5:][fired[3:5]].float().mean()))


@pytest.mark.slow
def test_the_command_writes_a_page_and_a_table(tmp_path, capsys):
    captions = tmp_path / "captions.txt"
    captions.write_text("a dog on a lawn\ntwo cups of tea on a table\n")
    arguments = ["length", "--encoder", "minilm", "--captions", str(captions), "--samples", "3"]
    assert main([*arguments, "--output", str(tmp_path / "out")]) == 0
    page = (tmp_path / "out" / "length.md").read_text()
    assert capsys.readouterr().out.strip() == page.strip()
    for part in ("captions", "held-out prompts", "hard negatives", "one phrase", "several phrases", "behind"):
        assert part in page
    stored = json.loads((tmp_path / "out" / "length.json").read_text())
    assert stored["samples"] == 3 and stored["figures"]
