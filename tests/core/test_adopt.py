"""Adoption: a sanitizer for an encoder with slightly other weights, kept only where it is as good as it was."""

from dataclasses import replace

import pytest
import torch

from sanitizer.encoders import Fingerprint
from sanitizer.errors import SanitizerError
from sanitizer.model.artifact import best, load, read_info, save
from sanitizer.model.header import ADOPTED
from sanitizer.training.adopt import adopt
from sanitizer.training.fit import fit


@pytest.fixture(scope="module")
def changed(tiny_encoder):
    """`changed(like, share)`: an encoder whose output a low-rank change of that share has turned, as a LoRA does."""

    class Changed(tiny_encoder):
        def __init__(self, like, share, weights="1" * 64):
            super().__init__(like.geometry, like.width, like.pooled_width, like.length)
            draw = torch.Generator().manual_seed(5)
            turn = torch.randn(self.width, 4, generator=draw) @ torch.randn(4, self.width, generator=draw)
            self.turn, self.weights = share * self.width**0.5 * turn / turn.norm(), weights

        @property
        def fingerprint(self):
            return Fingerprint(self.name, self.width, self.pooled_width, self.weights)

        def encode(self, prompts):
            found = super().encode(prompts)
            return replace(found, embeddings=found.embeddings + found.embeddings @ self.turn)

    return Changed


@pytest.fixture(scope="module")
def adopted(masked, changed, tiny_concept, small_templates):
    """(encoder, adoption) after a small change."""
    encoder = changed(masked[0], 0.05)
    return encoder, adopt(encoder, masked[1], [tiny_concept], templates=small_templates)


def test_a_small_change_is_adopted_with_new_statistics_and_the_same_networks(masked, adopted):
    encoder, adoption = adopted
    assert adoption.kept and adoption.near
    before, after = masked[1], adoption.sanitizer
    assert after.fingerprint == encoder.fingerprint != before.fingerprint
    assert not torch.equal(after.mean, before.mean) and not torch.equal(after.provenance_mean, before.provenance_mean)
    for own, other in zip(after.parameters(), before.parameters(), strict=True):
        assert torch.equal(own, other)
    assert torch.equal(after.vote_bias, before.vote_bias)
    # The figures are of the new encoder, of as many prompts as the file's own.
    assert [c.phrases for c in adoption.after.concepts] == [c.phrases for c in adoption.before.concepts]
    assert after.header.report == adoption.after.to_dict()
    assert after.header.training[ADOPTED]["found"] == pytest.approx(adoption.before.found(before.erasable), abs=1e-4)
    e = encoder.encode(["a crimson woman at a desk", "a dog in the garden"])
    assert after.sanitize(e.embeddings, e.mask).flagged.tolist() == [True, False]


def test_it_works_for_a_causal_encoder_with_a_pooled_vector(causal, changed, tiny_concept, small_templates):
    encoder = changed(causal[0], 0.02)
    adoption = adopt(encoder, causal[1], [tiny_concept], templates=small_templates)
    assert adoption.kept, adoption.reasons
    e = encoder.encode(["a crimson woman at a desk"])
    assert adoption.sanitizer.sanitize(e.embeddings, e.mask, e.pooled).flagged.all()


def test_another_encoder_is_refused_and_no_start(masked, changed, tiny_concept, small_templates, tiny_encoder):
    class Shuffled(changed):
        def encode(self, prompts):
            # Each word gets another one's vector: the same statistics, no meaning.
            return super().encode([" ".join(f"{word}x" for word in prompt.split()) for prompt in prompts])

    adoption = adopt(Shuffled(masked[0], 0.0), masked[1], [tiny_concept], templates=small_templates)
    assert not adoption.kept and not adoption.near
    before = replace(adoption, sanitizer=older(masked[1]), after=adoption.before)
    assert replace(before, sanitizer=masked[1]).near and not before.near, "networks of other sizes are no start"
    assert "unseen phrases are found, and not" in adoption.reasons[0]


def test_an_adopted_file_is_small_and_reads_as_the_whole_one(masked, adopted, tmp_path):
    _, adoption = adopted
    base, small = tmp_path / "base.safetensors", tmp_path / "adopted" / "small.safetensors"
    save(masked[1], base)
    save(adoption.sanitizer, small, base)
    assert small.stat().st_size < base.stat().st_size / 10
    again = load(small, folders=[tmp_path])
    for name, value in adoption.sanitizer.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    assert again.header.base.name == "base.safetensors" and again.header.report == adoption.sanitizer.header.report
    # Saved again without a base, it is a file of its own.
    save(replace_header(again, base=None), tmp_path / "whole.safetensors")
    assert load(tmp_path / "whole.safetensors").fingerprint == again.fingerprint


def older(sanitizer):
    from sanitizer.model.sanitizer import EmbeddingSanitizer

    return EmbeddingSanitizer(replace(sanitizer.config, score_width=96))


def replace_header(sanitizer, **changes):
    sanitizer.header = replace(sanitizer.header, **changes)
    return sanitizer


def test_a_base_that_is_gone_or_changed_is_said_and_passed_over(masked, adopted, tmp_path):
    encoder, adoption = adopted
    base, small = tmp_path / "base.safetensors", tmp_path / "small.safetensors"
    save(masked[1], base)
    save(adoption.sanitizer, small, base)
    names = ["redness"]
    assert best(encoder.fingerprint, [small], names, [tmp_path]) == small
    data = base.read_bytes()
    for spoil in (lambda: base.write_bytes(data[:-1] + b"\x01"), base.unlink):
        spoil()
        with pytest.raises(SanitizerError, match=r"small\.safetensors: holds only what differs from base\.safetensors"):
            load(small, folders=[tmp_path])
        assert best(encoder.fingerprint, [small], names, [tmp_path]) is None


@pytest.mark.parametrize("name", ["../base.safetensors", "/base.safetensors", "base.pt", ""])
def test_a_base_outside_the_folders_is_no_base(masked, adopted, tmp_path, name):
    base = tmp_path / "base.safetensors"
    save(masked[1], base)
    sanitizer = adopted[1].sanitizer
    path = tmp_path / "small.safetensors"
    save(sanitizer, path, base)
    info = read_info(path)
    values = info.header.to_dict() | {"base": [name, info.header.base.sha256]}
    with pytest.raises(ValueError, match="expected the name of a"):
        type(info.header).from_dict(values, ["redness"])


def test_only_what_can_be_tried_is_akin(masked, tmp_path, changed, make_builtin):
    path = make_builtin(tmp_path / "nudity.safetensors")
    own, other = read_info(path).header.encoder, Fingerprint("tiny-masked", 64, 0, "9" * 64)
    assert best(other, [path], ["nudity"], akin=True) == path
    assert best(other, [path], ["nudity"]) is None
    assert best(own, [path], ["nudity"], akin=True) is None, "its own encoder's needs no adoption"
    assert best(replace(other, width=32), [path], akin=True) is None
    assert best(replace(other, architecture="tiny-causal"), [path], akin=True) is None
    # The user's own concepts stand in no file, so that there is nothing to try them with.
    save(masked[1], tmp_path / "own.safetensors")
    assert best(other, [tmp_path / "own.safetensors"], akin=True) is None


@pytest.fixture
def make_builtin(masked):
    """Saves an untrained sanitizer for the tiny encoder that claims to know nudity."""
    from sanitizer.model.config import ConceptSpec, SanitizerConfig
    from sanitizer.model.header import Header
    from sanitizer.model.sanitizer import EmbeddingSanitizer

    def make(path):
        config = SanitizerConfig((ConceptSpec("nudity"),), width=64, gated=True)
        save(EmbeddingSanitizer(config, Header(masked[0].fingerprint)), path)
        return path

    return make


def test_what_cannot_be_compared_is_refused(masked, causal, changed, tiny_concept, small_templates):
    encoder, known = changed(masked[0], 0.05), masked[1]
    with pytest.raises(SanitizerError, match="other word lists"):
        adopt(encoder, known, [replace(tiny_concept, pairs=tiny_concept.pairs[1:])], templates=small_templates)
    with pytest.raises(SanitizerError, match="window and constant embeddings"):
        adopt(changed(causal[0], 0.0), known, [tiny_concept], templates=small_templates)
    header = known.header
    try:
        known.header = replace(header, report={})
        with pytest.raises(SanitizerError, match="no figures to compare"):
            adopt(encoder, known, [tiny_concept], templates=small_templates)
    finally:
        known.header = header


def test_what_was_adopted_may_beat_what_was_trained_from_it(adopted):
    adoption = adopted[1]
    [own] = [concept for concept in adoption.after.concepts if concept.phrases]
    less = replace(adoption.after, concepts=[replace(own, flagged=own.flagged - 0.1)])
    assert adoption.beats(less)
    assert not adoption.beats(adoption.after)
    assert not adoption.beats(replace(less, benign_identical=adoption.after.benign_identical + 0.02))


def test_training_goes_on_from_another_sanitizer(masked, changed, tiny_concept, small_templates):
    encoder = changed(masked[0], 0.3)
    few = {"templates": small_templates, "examples": 400, "steps": 60, "seed": 3}
    _, warm = fit(encoder, [tiny_concept], start=masked[1], **few)
    _, cold = fit(encoder, [tiny_concept], **few)
    assert warm.concepts[0].nearness_after > cold.concepts[0].nearness_after + 0.05
    with pytest.raises(SanitizerError, match="Sanitizer to start from: its concepts are redness"):
        fit(encoder, [replace(tiny_concept, name="rouge")], start=masked[1], **few)
