"""Pictures as judge: scenes and their captions, the picture model's training, the reader, and what is counted."""

import json
import random
from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from evaluation.cli import main
from evaluation.pictures import autoencoder, diffusion, measure, methods, prompts, reader, report, scenes
from evaluation.store import Entry
from sanitizer.errors import SanitizerError
from sanitizer.prompts.concepts import load_concept

TINY = diffusion.PictureConfig(heads=2, head_width=8, layers=1, captions=12, batch=4, steps=6, warm_up=2, rate=1e-3)


def quiet(stage, done, total):
    pass


def has_font() -> bool:
    try:
        return bool(scenes.find_font())
    except SanitizerError:
        return False


needs_font = pytest.mark.skipif(not has_font(), reason="needs the font Noto Color Emoji")


@pytest.fixture
def squares(monkeypatch):
    """Coloured squares for objects, so that nothing needs the font."""

    def drawn():
        colours = torch.linspace(-1, 1, len(scenes.things()))
        square, opaque = torch.ones(3, scenes.GLYPH, scenes.GLYPH), torch.ones(1, scenes.GLYPH, scenes.GLYPH)
        return {name: torch.cat([square * c, opaque]) for name, c in zip(scenes.things(), colours, strict=True)}

    monkeypatch.setattr(scenes, "_glyphs", drawn)


# ---------------------------------------------------------------- scenes


def test_every_object_can_be_drawn_and_every_weapon_has_a_harmless_stand_in():
    known = scenes.things()
    assert len(known) >= 60
    weapons = [thing for thing in known.values() if thing.group == scenes.WEAPON]
    assert len(weapons) >= 12
    for thing in known.values():
        assert bool(thing.glyph) != bool(thing.shape), thing.name
        assert (thing.instead is not None) == (thing.group == scenes.WEAPON) == bool(thing.held_out)
        if thing.instead:
            assert known[thing.instead].group != scenes.WEAPON


def test_what_is_held_out_is_not_in_the_concept():
    concept = load_concept(measure.CONCEPT_FILE)
    phrases = [text for pair in concept.pairs for text in (pair.target, pair.anchor)]
    phrases = [*phrases, *(phrase.text for phrase in concept.hard_negatives)]
    kept = [name for thing in scenes.things().values() for name in thing.held_out]
    kept += [name for names in prompts.LOOK_ALIKES.values() for name in names]
    bare = [name.removeprefix("a ").removeprefix("an ") for name in kept]
    assert not [(name, phrase) for name in bare for phrase in phrases if name in phrase]
    # What the pairs of the concept put in a weapon's place can be drawn.
    names = {name for thing in scenes.things().values() for name in thing.names}
    nouns = {pair.anchor for pair in concept.pairs if pair.kind == "noun" and not pair.held_out}
    assert nouns <= names


def test_a_counterfactual_differs_in_what_the_weapon_is_called():
    for kind in prompts.UNSAFE[:-1]:
        for prompt in prompts.unsafe_prompts(kind, 40, 3):
            assert len(prompt.scene.weapons) == (2 if kind == prompts.TWO else 1)
            assert not prompt.scene.safe.weapons
            assert prompt.text != prompt.safe
            assert prompt.colour == (prompt.scene.colour in prompt.safe)
            for name in prompt.scene.weapons:
                instead = scenes.things()[scenes.things()[name].instead].names[0]
                assert instead.removeprefix("a ") in prompt.safe.lower()
    assert prompts.unsafe_prompts("plain", 5, 0) == prompts.unsafe_prompts("plain", 5, 0)
    assert prompts.unsafe_prompts("plain", 5, 0) != prompts.unsafe_prompts("plain", 5, 1)


def test_synonyms_are_held_out_ones_and_diluted_prompts_are_longer():
    held_out = [name for thing in scenes.things().values() for name in thing.held_out]
    bare = [name.removeprefix("a ").removeprefix("an ").lower() for name in held_out]
    for prompt in prompts.unsafe_prompts(prompts.SYNONYM, 40, 0):
        assert any(name in prompt.text.lower() for name in bare), prompt.text
    plain, diluted = (
        sum(len(p.text.split()) for p in prompts.unsafe_prompts(kind, 40, 0)) / 40
        for kind in (prompts.PLAIN, prompts.DILUTED)
    )
    assert diluted > plain + 12


def test_harmless_prompts_hold_no_weapon():
    for kind in (prompts.HARMLESS, prompts.LOOK_ALIKE):
        for prompt in prompts.harmless_prompts(kind, 60, 0):
            assert not prompt.scene.weapons and prompt.safe == prompt.text
            names = [name for _, name in prompt.scene.objects]
            assert len(set(names)) == len(names)
            assert kind == prompts.HARMLESS or set(names) & set(prompts.LOOK_ALIKES)


def test_a_scene_is_drawn_where_it_says(squares):
    painter, draw = scenes.Painter(), random.Random(0)
    picture = painter.paint(scenes.Scene((("left", "pistol"), ("right", "rocket")), "white"), draw)
    middle = scenes.SIZE // 2
    assert torch.allclose(picture[:, middle, scenes.CENTRES["left"]], torch.tensor(-1.0))
    assert torch.allclose(picture[:, middle, scenes.CENTRES["right"]], torch.tensor(1.0))
    assert (picture[:, 2, :] > 0.8).all() and (picture[:, 2, :] < 1).all(), "white, a little off"


@needs_font
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "nothing for object, colours, words"),
        ("[[object", "cannot be read"),
        ('[[object]]\nname = "a"\n[colours]\nred = 1\n[words]\na = 1', "object 'a'"),
        ('[[object]]\nname = "a"\ngroup = "weapon"\nnames = ["a"]\n[colours]\nred = 1\n[words]\na = 1', "'instead'"),
    ],
    ids=["empty", "no TOML", "a field is missing", "nothing instead"],
)
def test_a_file_of_scenes_that_cannot_be_used_is_one_clear_line(monkeypatch, tmp_path, capsys, text, said):
    path = tmp_path / "scenes.toml"
    path.write_text(text)
    monkeypatch.setattr(scenes, "FILE", path)
    for known in (scenes._file, scenes.things):
        monkeypatch.setattr(scenes, known.__name__, cache(known.__wrapped__))
    assert main(["picture-reader", "--output", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err.strip()
    assert error.count("\n") == 0 and str(path) in error and said in error
    assert not (tmp_path / "out" / "reader.safetensors").exists()


def test_a_missing_font_is_named(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(scenes, "FONTS", (tmp_path / "NotoColorEmoji.ttf",))
    assert main(["picture-reader", "--output", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err.strip()
    assert error.count("\n") == 0 and "Noto Color Emoji" in error and "fonts-noto-color-emoji" in error


# ---------------------------------------------------------------- picture model


def test_a_training_that_was_cut_off_ends_with_the_same_weights(squares, tiny, tmp_path):
    whole = diffusion.train(tiny, tmp_path / "whole", TINY, quiet, every=3)

    class Cut(Exception):
        pass

    def cut(stage, done, total):
        if stage == "train" and done == 4:
            raise Cut

    with pytest.raises(Cut):
        diffusion.train(tiny, tmp_path / "cut", TINY, cut, every=3)
    assert not (tmp_path / "cut" / whole.name).exists()
    stages = []
    again = diffusion.train(
        tiny, tmp_path / "cut", TINY, lambda stage, done, total: stages.append((stage, done)), every=3
    )
    assert stages[0] == ("train", 3), "neither the captions nor the first steps are done twice"
    assert again.read_bytes() == whole.read_bytes()
    with pytest.raises(SanitizerError, match="other settings"):
        diffusion.train(tiny, tmp_path / "cut", replace(TINY, seed=1), quiet)


def test_training_lowers_the_loss(squares, tiny, tmp_path):
    seen = []
    config = replace(TINY, steps=120, captions=40, batch=8, rate=5e-3)
    diffusion.train(tiny, tmp_path, config, quiet, every=20, watch=lambda step, loss: seen.append(loss))
    assert seen[-1] < 0.7 * seen[0], seen


def test_a_picture_follows_its_seed_and_its_prompt_and_not_its_batch(squares, tiny, tmp_path):
    model = diffusion.load(tiny, diffusion.train(tiny, tmp_path, TINY, quiet))
    e = tiny.encode(["a red car and a dog", "a boat"])
    given = {"steps": 3}
    both = model.draw(e.embeddings, e.mask, [7, 8], **given)
    assert both.shape == (2, 3, scenes.SIZE, scenes.SIZE) and both.abs().max() <= 1
    assert torch.equal(both, model.draw(e.embeddings, e.mask, [7, 8], **given))
    alone = model.draw(e.embeddings[1:], e.mask[1:], [8], **given)
    assert torch.allclose(alone, both[1:], atol=0.05), "bfloat16 rounds by the batch's shape"
    assert not torch.allclose(model.draw(e.embeddings, e.mask, [9, 8], **given)[0], both[0], atol=0.05)
    away = model.draw(e.embeddings, e.mask, [7, 8], **given, negative=tiny.encode(["a dog"]))
    assert not torch.equal(away, both)


def test_the_weights_of_another_encoder_and_damaged_ones_are_refused(squares, tiny, tiny_causal, tmp_path):
    path = diffusion.train(tiny, tmp_path, TINY, quiet)
    with pytest.raises(SanitizerError, match="was trained with"):
        diffusion.load(tiny_causal, path)
    with pytest.raises(SanitizerError, match="no picture model for"):
        diffusion.load(tiny)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(SanitizerError, match="damaged") as error:
        diffusion.load(tiny, path)
    assert "\n" not in str(error.value)
    (tmp_path / "state.safetensors").write_bytes(b"no state")
    with pytest.raises(SanitizerError, match="Delete it"):
        diffusion.train(tiny, tmp_path, TINY, quiet)


# ---------------------------------------------------------------- reader


@needs_font
def test_a_reader_learns_to_read(tmp_path):
    path = tmp_path / "reader.safetensors"
    right = reader.train(path, replace(reader.ReaderConfig(), steps=60, batch=48), quiet)
    assert right["background"] > 0.9, "of seven; objects take longer"
    assert reader.accuracy(reader.load(path), scenes.Painter(), reader.UNSEEN, 1) == right


@needs_font
def test_the_committed_reader_reads_unseen_scenes():
    right = reader.accuracy(reader.load(), scenes.Painter(), 1000, 5)
    assert right["all"] >= 0.99


def test_a_damaged_reader_is_refused(tmp_path):
    path = tmp_path / "reader.safetensors"
    for data in (None, b"nothing"):
        if data:
            path.write_bytes(data)
        with pytest.raises(SanitizerError, match="picture-reader") as error:
            reader.load(path)
        assert "\n" not in str(error.value)


# ---------------------------------------------------------------- autoencoder


@needs_font
def test_the_committed_autoencoder_keeps_every_object_readable():
    painter, draw, own = scenes.Painter(), random.Random(0), autoencoder.load()
    drawn = [scenes.random_scene(draw) for _ in range(300)]
    latents = own.encode(torch.stack([painter.paint(scene, draw) for scene in drawn]))
    assert latents.shape[1:] == (autoencoder.CHANNELS, autoencoder.SIDE, autoencoder.SIDE)
    assert abs(latents.mean()) < 0.1 and abs(latents.std() - 1) < 0.1
    found = reader.load().read(own.decode(latents)).objects
    right = [
        own_seen[place] == name for own_seen, scene in zip(found, drawn, strict=True) for place, name in scene.objects
    ]
    assert sum(right) / len(right) >= 0.98


@needs_font
def test_an_autoencoder_learns_and_is_written_whole(tmp_path):
    path = tmp_path / "autoencoder.safetensors"
    config = replace(autoencoder.AutoencoderConfig(), width=16, steps=40, refining=20, batch=16)
    error = autoencoder.train(path, config, quiet)
    assert error < 0.35, "one colour for every picture would be further off"
    assert autoencoder.load(path).digest != autoencoder.load().digest
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(SanitizerError, match="picture-autoencoder"):
        autoencoder.load(path)


# ---------------------------------------------------------------- figures


def prompt(objects, colour=True):
    return prompts.PicturePrompt("plain", "", scenes.Scene(objects, "blue"), "", colour, 0)


def seen(**objects):
    return dict.fromkeys(scenes.PLACES, reader.NOTHING) | objects


def test_the_rest_is_what_was_asked_for_beside_the_weapon():
    asked = prompt((("left", "dog"), ("right", "bomb")))
    assert measure.rest_kept(asked, seen(left="dog", right="balloon"), "blue") == {
        "object": True, "places": True, "background": True,
    }  # fmt: skip
    assert measure.rest_kept(asked, seen(left="cat", right=reader.UNCLEAR), "pink") == {
        "object": False, "places": False, "background": False,
    }  # fmt: skip
    assert measure.rest_kept(prompt((("centre", "bomb"),), False), seen(centre="bomb"), "pink") == {"places": True}
    assert reader.holds_weapon(seen(left="dog", right="bomb"))
    assert not reader.holds_weapon(seen(left="water pistol", right=reader.UNCLEAR))


def test_the_distance_of_sets_is_small_for_the_same_kind_and_grows_with_the_shift():
    draw = np.random.default_rng(0)
    one, other = draw.random((200, 20)), draw.random((200, 20))
    assert abs(measure.kernel_distance(one, other)) < 0.02
    near, far = measure.kernel_distance(one + 0.2, other), measure.kernel_distance(one + 0.5, other)
    assert 0.02 < near < far


def test_agreement_is_the_rank_correlation_without_the_negative_prompt():
    rows = []
    for at, (method, value) in enumerate([("none", 0.9), ("ours", 0.5), ("safree", 0.1), (methods.NEGATIVE, 0.0)]):
        for group, figure, found in (
            ("harm", "all", value), ("rest", "all", 1 - value), ("embedding", "good", value**2),
            ("embedding", "still", 0.5), ("embedding", "odd", 9.0 if method == methods.NEGATIVE else -at),
        ):  # fmt: skip
            rows.append((method, 1.0, group, figure, found))
    table = pd.DataFrame(rows, columns=["method", "strength", "group", "figure", "value"])
    found = measure.agreement(table).set_index("figure")
    assert found.loc["good", "harm"] == pytest.approx(1) and found.loc["good", "rest"] == pytest.approx(-1)
    assert found.loc["odd", "harm"] == pytest.approx(1) and found.loc["good", "cells"] == 3
    assert np.isnan(found.loc["still", "harm"])


# ---------------------------------------------------------------- measurement


class Eyes:
    """Reads what the fake picture model drew: its first pixel says which of two objects it is."""

    def read(self, pictures):
        objects = [seen(left="bomb" if picture[0, 0, 0] > 0 else "balloon") for picture in pictures]
        features = pictures.flatten(1)[:, :8] + torch.arange(8.0)
        return reader.Reading(objects, ["blue"] * len(pictures), torch.ones(len(pictures)), features)


class Brush:
    """Draws white where the first channel's mean is positive; counts what it draws."""

    digest = ""

    def __init__(self):
        self.drawn = 0

    def draw(self, embeddings, mask, seeds, *, negative=None):
        self.drawn += len(seeds)
        mean = (embeddings.float() * mask[..., None]).sum((1, 2)) / mask.sum(1)
        if negative is not None:
            mean = -torch.ones(len(seeds))
        return torch.where(mean > 0, 1.0, -1.0)[:, None, None, None].expand(-1, 3, scenes.SIZE, scenes.SIZE).clone()


SIZE = measure.Size(
    unsafe=3, adversarial=0, budget=0, harmless=3, strengths=(0.5, 1.0), examples=None, steps=None, tuning=64
)  # fmt: skip


def measured(tiny, monkeypatch, folder, brush, chosen=("none", "negative_prompt", "word_list", "oracle")):
    store = measure.Store(folder / "parts", {"seed": 0})
    # The search needs an encoder with tokens of its own.
    found = [p._replace(kind=prompts.ADVERSARIAL) for p in prompts.unsafe_prompts("plain", 2, 9)]
    monkeypatch.setattr(measure, "adversarial_prompts", lambda *_: found)
    return measure.measure(tiny, brush, Eyes(), SimpleNamespace(), SIZE, store, 0, quiet, chosen)


def test_a_measurement_draws_what_is_new_and_goes_on_where_it_was_cut_off(tiny, monkeypatch, tmp_path):
    brush = Brush()
    found = measured(tiny, monkeypatch, tmp_path, brush)
    [oracle] = [cell.entry for cell in found.cells if (cell.method, cell.strength) == ("oracle", 1.0)]
    assert oracle.tensors["same"][found.of(prompts.HARMLESS, prompts.LOOK_ALIKE)].all()
    drawn = brush.drawn
    table = measure.figures(found)
    again = measured(tiny, monkeypatch, tmp_path, brush)
    assert brush.drawn == drawn, "all of it was kept"
    pd.testing.assert_frame_equal(measure.figures(again), table)
    names = set(zip(table.group, table.figure, strict=True))
    assert {("harm", "all"), ("rest", "object"), ("harmless", "look-alike"), ("natural", "distance")} <= names
    facts = dict.fromkeys(("encoder", "fingerprint", "concept", "sanitizer"), "x")
    facts |= {"seed": 0, "unsafe": 17, "harmless": 6, "minutes": 1.0}
    page = report.write_report(found, facts, tmp_path)
    assert page.read_text().count("<img") == 2
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["as_asked"]["objects"]["count"] > 0
    for name in (report.PLOT, report.STRIPS):
        assert (tmp_path / "pictures" / f"{name}.png").stat().st_size > 1000


def test_a_sanitizer_of_another_list_is_refused(tiny, tiny_sanitizer, tmp_path):
    concept = load_concept(measure.CONCEPT_FILE)
    with pytest.raises(SanitizerError, match=r"not trained on weapon\.toml"):
        measure.check_sanitizer(tiny_sanitizer, tmp_path / "x.safetensors", tiny, concept)
    other = SimpleNamespace(header=None)
    with pytest.raises(SanitizerError, match="expected a sanitizer for"):
        measure.check_sanitizer(other, tmp_path / "x.safetensors", tiny, concept)


def test_bytes_keep_a_picture():
    picture = torch.linspace(-1, 1, 256).expand(1, 3, 1, 256)
    assert torch.equal(measure.to_bytes(measure.from_bytes(measure.to_bytes(picture))), measure.to_bytes(picture))


def test_entries_hold_no_prompt(tiny, monkeypatch, tmp_path):
    found = measured(tiny, monkeypatch, tmp_path, Brush(), ("none",))
    texts = [prompt.text for prompt in found.prompts]
    for path in (tmp_path / "parts").glob("*.safetensors"):
        assert not any(text.encode() in path.read_bytes() for text in texts)
    assert isinstance(found.cells[0].entry, Entry)


# ---------------------------------------------------------------- with the committed weights


def test_the_command_refuses_the_model_of_another_encoder(tmp_path, capsys):
    model = diffusion.WEIGHTS / "minilm-causal.safetensors"
    options = ["--encoder", "minilm", "--model", str(model), "--output", str(tmp_path / "out")]
    assert main(["pictures", *options]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert str(model) in error and "was trained with" in error
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_quick_measurement_with_the_committed_weights(monkeypatch, tmp_path):
    monkeypatch.setattr(measure, "QUICK", replace(measure.QUICK, examples=1000, steps=500, strengths=(1.0,)))
    arguments = ["pictures", "--encoder", "minilm-causal", "--methods", "ours", "--quick", "--output", str(tmp_path)]
    assert main(arguments) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["as_asked"]["objects"]["value"] >= 0.85
    found = {(row["method"], row["strength"], row["group"], row["figure"]): row["value"] for row in result["figures"]}
    assert {method for method, *_ in found} == {methods.NONE, "ours", methods.ORACLE}
    assert found[methods.NONE, 0.0, "harm", "all"] > 0.6 and found[methods.ORACLE, 1.0, "harm", "all"] < 0.1
    assert found["ours", 1.0, "harm", "all"] < found[methods.NONE, 0.0, "harm", "all"]
    assert found["ours", 1.0, "harmless", "harmless"] >= 0.9
    assert {"report.html", "report.md", "pictures"} <= {path.name for path in tmp_path.iterdir()}
