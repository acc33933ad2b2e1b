"""Training: deterministic, interruptible, within its budget and memory, and honest in its report."""

from dataclasses import replace

import pytest
import torch

from sanitizer.encoders import Encoding
from sanitizer.errors import SanitizerError
from sanitizer.model.gate import amount, gate, margins
from sanitizer.prompts.concepts import load_concepts, parse_custom_concept
from sanitizer.training import dataset
from sanitizer.training.config import TrainingConfig
from sanitizer.training.dataset import EncodedDataset, batch_size
from sanitizer.training.eraser import fisher_direction
from sanitizer.training.fit import FEWEST_PROMPTS, fit, step_seconds
from sanitizer.training.probes import Probe, area_under_curve, true_positive_rate
from sanitizer.training.report import Report

SMALL = {"examples": 150, "steps": 20}


def quiet(stage, done, total, values):
    pass


def test_a_seed_decides_everything(tiny_encoder, tiny_concept):
    one, _ = fit(tiny_encoder(), [tiny_concept], seed=5, **SMALL)
    two, _ = fit(tiny_encoder(), [tiny_concept], seed=5, **SMALL)
    other, _ = fit(tiny_encoder(), [tiny_concept], seed=6, **SMALL)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))
    assert any(
        not torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    )


def test_the_users_random_state_is_left_alone(tiny_encoder, tiny_concept):
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    fit(tiny_encoder(), [tiny_concept], **SMALL)
    assert torch.equal(torch.rand(3), expected)


def test_it_trains_under_inference_mode_as_comfyui_runs_nodes(tiny_encoder, tiny_concept):
    with torch.inference_mode():
        sanitizer, _ = fit(tiny_encoder(), [tiny_concept], **SMALL)
        e = tiny_encoder().encode(["a crimson woman"])
        sanitizer.sanitize(e.embeddings, e.mask)
    assert not any(p.is_inference() for p in sanitizer.parameters())


def test_progress_is_told_and_can_interrupt(tiny_encoder, tiny_concept):
    stages = []

    def listen(stage, done, total, values):
        assert 0 < done <= total
        stages.append(stage)

    fit(tiny_encoder(), [tiny_concept], progress=listen, **SMALL)
    assert list(dict.fromkeys(stages)) == ["encode", "measure", "score net", "erase net", "calibrate", "report"]
    for at in ("encode", "measure", "score net", "erase net", "report"):

        def stop(stage, done, total, values, at=at):
            if stage == at:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            fit(tiny_encoder(), [tiny_concept], progress=stop, **SMALL)


@pytest.mark.parametrize("kind", [{"geometry": "masked"}, {"geometry": "causal", "pooled_width": 8}])
def test_an_interrupted_training_goes_on_with_what_it_encoded(tiny_encoder, tiny_concept, tmp_path, kind):
    def stop(stage, done, total, values):
        if stage == "erase net":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(tiny_encoder(**kind), [tiny_concept], progress=stop, encodings=tmp_path, **SMALL)
    whole, resumed = tiny_encoder(**kind), tiny_encoder(**kind)
    expected, _ = fit(whole, [tiny_concept], **SMALL)
    found, _ = fit(resumed, [tiny_concept], encodings=tmp_path, **SMALL)
    assert whole.prompts - resumed.prompts >= 100
    for name, value in expected.state_dict().items():
        assert torch.equal(found.state_dict()[name], value), name


def test_encodings_are_found_only_for_what_they_were_made_of(tiny_encoder, tmp_path, caplog):
    texts = [f"prompt {i}" for i in range(40)]
    config, encoder = TrainingConfig(), tiny_encoder()
    kept = EncodedDataset.encode(encoder, texts, config, quiet, folder=tmp_path)
    (file,) = tmp_path.iterdir()

    def encoded(prompts=texts, normalizer=kept.normalizer, config=config, folder=tmp_path):
        before = encoder.prompts
        again = EncodedDataset.encode(encoder, prompts, config, quiet, normalizer, folder=folder)
        assert len(again) == len(prompts)
        return encoder.prompts - before

    assert encoded() == 0
    assert encoded(texts[:-1]) == 39
    assert encoded(normalizer=replace(kept.normalizer, mean=kept.normalizer.mean + 1)) == 40
    assert encoded(config=replace(config, padding_kept=3)) == 40
    file.write_bytes(file.read_bytes()[:500])
    assert encoded() == 40, "a damaged file is not read"
    assert encoded() == 0
    (tmp_path / "file").write_text("")
    assert encoded(folder=tmp_path / "file") == 40
    assert "are not kept" in caplog.text


def test_the_budget_is_kept(tiny_encoder, tiny_concept):
    encoder = tiny_encoder()
    _, report = fit(encoder, [tiny_concept], **SMALL)
    assert 100 <= report.examples <= SMALL["examples"]
    assert encoder.prompts < 2.5 * SMALL["examples"], "calibration and report are paid out of a share of the budget"


def test_a_small_training_spends_nothing_on_what_languages_the_encoder_knows(tiny_encoder):
    spent = []
    for languages in (None, []):
        encoder = tiny_encoder()
        sanitizer, _ = fit(encoder, load_concepts(["nudity"]), languages=languages, **SMALL)
        assert sanitizer.header.training["languages"] == {}
        spent.append(encoder.prompts)
    # Harmless text of the languages stands in the place of other harmless text.
    assert abs(spent[0] - spent[1]) <= 10


@pytest.mark.parametrize(("kwargs", "words"), [({"examples": 10}, "Examples"), ({"steps": 1}, "Steps")])
def test_a_budget_that_cannot_work_is_refused(tiny_encoder, tiny_concept, kwargs, words):
    with pytest.raises(SanitizerError, match=words):
        fit(tiny_encoder(), [tiny_concept], **kwargs)


def test_an_encoder_that_puts_out_nan_is_refused(tiny_encoder, tiny_concept):
    class Broken(tiny_encoder):
        def encode(self, prompts):
            e = super().encode(prompts)
            return Encoding(e.embeddings * float("nan"), e.mask, e.pooled, e.tokens, e.offsets)

    with pytest.raises(SanitizerError, match="NaN"):
        fit(Broken(), [tiny_concept], **SMALL)


def test_a_dataset_stays_within_their_memory(tiny_encoder):
    texts = [f"a long prompt with number {i} and several words more" for i in range(4000)]
    limit = 200_000
    kept = EncodedDataset.encode(tiny_encoder("causal"), texts, TrainingConfig(memory=limit), quiet)
    assert 0 < len(kept) < len(texts)
    assert kept.embeddings.dtype == torch.float16
    # It stops on the edge of the span that reached the limit.
    one_span = 1024 * 24 * 64 * 2
    assert kept.embeddings.numel() * 2 < limit + one_span


def test_a_wide_encoder_is_encoded_and_read_in_smaller_parts(tiny_encoder, monkeypatch):
    """Parts of one size would take gigabytes of a wide encoder's rows."""
    assert (batch_size(384), batch_size(4096), batch_size(10**9)) == (64, 32, 1)
    texts = [f"prompt {i} of {'several ' * (i % 7)}words" for i in range(300)]
    kept = EncodedDataset.encode(tiny_encoder("causal"), texts, TrainingConfig(), quiet)
    whole = kept.features()
    # A few prompts at once instead of hundreds.
    monkeypatch.setattr(dataset, "VALUES", 4 * 24 * 64)
    parts = [x for x, _, _ in kept.batches()]
    assert sum(map(len, parts)) == 300
    assert all(x.numel() <= dataset.VALUES for x in parts)
    assert torch.allclose(kept.features(), whole, atol=1e-5)
    assert torch.allclose(kept.features([7, 3]), whole[[7, 3]], atol=1e-5)


def test_dead_channels_are_left_alone(tiny_encoder, tiny_concept):
    class Dead(tiny_encoder):
        def encode(self, prompts):
            e = super().encode(prompts)
            e.embeddings[..., 3] = 5.0
            return e

    encoder = Dead()
    sanitizer, _ = fit(encoder, [tiny_concept], **SMALL)
    e = encoder.encode(["a crimson woman"])
    out = sanitizer.sanitize(e.embeddings, e.mask, threshold=0.0)
    assert out.changed.any()
    assert torch.equal(out.embeddings[..., 3], e.embeddings[..., 3])


def test_constant_leading_rows_are_found(causal, masked):
    assert causal[1].config.constant_embeddings == 1 and causal[1].config.window == 24
    assert masked[1].config.constant_embeddings == 0 and masked[1].config.window == 512


def test_the_report_measures_what_the_sanitizer_does(trained):
    _encoder, _sanitizer, report = trained
    concept = report.concepts[0]
    assert concept.phrases == 1 and concept.auroc is not None
    assert report.benign_identical > 0.9
    assert report.seconds > 0 and report.examples > 500
    assert Report.from_dict(report.to_dict()) == report
    text = report.to_text()
    assert "redness" in text and "bit-identical" in text


def test_a_custom_concept_takes_the_same_path(tiny_encoder):
    concept = parse_custom_concept("Van Gogh\nvan gogh style -> oil painting style\nstarry night -> plain sky")
    sanitizer, report = fit(tiny_encoder(), [concept], examples=400, steps=60)
    assert sanitizer.erasable == ("van_gogh",)
    assert report.concepts[0].phrases == 0 and report.concepts[0].auroc is None
    assert "van_gogh" in report.to_text()


def test_youth_is_scored_but_never_erased_and_lowers_thresholds(tiny_encoder):
    from sanitizer.model.config import ConceptSpec

    sanitizer, _ = fit(tiny_encoder(), load_concepts(["nudity"]), examples=600, steps=30)
    assert sanitizer.concepts == ("nudity", "youth") and sanitizer.erasable == ("nudity",)
    with pytest.raises(SanitizerError, match="youth"):
        e = tiny_encoder().encode(["a"])
        sanitizer.sanitize(e.embeddings, e.mask, concepts=["youth"])
    # A score just under the threshold fires when youth is present, and only then.
    sanitizer.config = replace(
        sanitizer.config, concepts=(ConceptSpec("nudity"), ConceptSpec("youth", True, {"nudity": 2.0}))
    )
    scores = torch.tensor([[0.3, 0.1], [0.3, 0.9], [0.05, 0.9]])
    opened, fired = gate(sanitizer.config, margins(sanitizer.config, scores), [0])
    assert fired[:, 0].tolist() == [False, True, False]
    assert (opened > 0).tolist() == [False, True, False]


def test_a_strength_of_0_or_from_1_on_is_its_own_amount_and_between_them_the_curve_leads():
    from sanitizer.model.config import ConceptSpec, SanitizerConfig

    curved = SanitizerConfig((ConceptSpec("one"),), 4, gated=True, strength_curve=0.5)
    assert [amount(curved, s) for s in (0.0, 0.25, 1.0, 1.5, 2.0)] == [0.0, 0.5, 1.0, 1.5, 2.0]
    plain = replace(curved, strength_curve=1.0)
    assert [amount(plain, s) for s in (0.0, 0.25, 1.0, 1.5)] == [0.0, 0.25, 1.0, 1.5]


@pytest.mark.parametrize("geometry", ["masked", "causal"])
@pytest.mark.parametrize(
    "lines",
    ["crimson -> green", "crimson -> green\nscarlet -> plain", "red -> red", "red -> red\nblue -> green"],
)
def test_a_concept_of_one_or_two_short_pairs_trains(tiny_encoder, geometry, lines):
    """All its targets may have one and the same embedding, which leaves a discriminant nothing to divide by."""
    encoder = tiny_encoder(geometry, pooled_width=16 if geometry == "causal" else 0)
    sanitizer, _ = fit(encoder, [parse_custom_concept(f"own\n{lines}")], examples=200, steps=10)
    e = encoder.encode(["a crimson dress"])
    assert torch.isfinite(sanitizer.sanitize(e.embeddings, e.mask, e.pooled, threshold=0.0).embeddings).all()


def test_fishers_discriminant_where_there_is_no_spread():
    target, anchor = torch.randn(3, generator=torch.Generator().manual_seed(0)), torch.zeros(3)
    one = fisher_direction(target[None], anchor[None], 0.05)
    many = fisher_direction(target.expand(50, 3), anchor.expand(50, 3), 0.05)
    assert torch.allclose(one, 2 * target / target.square().sum()) and torch.allclose(one, many)
    assert (target - anchor) @ one == pytest.approx(2)
    assert not fisher_direction(target[None], target[None], 0.05).any()
    spread = torch.randn(50, 3, generator=torch.Generator().manual_seed(1))
    assert not torch.allclose(fisher_direction(spread + target, spread, 0.05), one)


def test_curves():
    positive, negative = torch.tensor([0.9, 0.8, 0.3]), torch.tensor([0.1, 0.2, 0.3, 0.4])
    assert area_under_curve(positive, negative) == pytest.approx((4 + 4 + 2.5) / 12)
    assert true_positive_rate(positive, negative, 0.0) == pytest.approx(2 / 3)
    assert true_positive_rate(positive, negative, 0.25) == pytest.approx(2 / 3)
    x = torch.cat([torch.randn(50, 4) + 2, torch.randn(50, 4) - 2])
    y = torch.cat([torch.ones(50), torch.zeros(50)])
    assert ((Probe.fit(x, y)(x) > 0) == (y > 0)).all()


@pytest.mark.parametrize("geometry", ["masked", "causal"])
def test_the_time_of_a_step_is_told_without_a_training(tiny_encoder, tiny_concept, small_templates, geometry):
    encoder = tiny_encoder(geometry, pooled_width=16 if geometry == "causal" else 0)
    seconds = step_seconds(encoder, tiny_concept, templates=small_templates)
    assert all(0 < each < 60 for each in seconds)
    assert encoder.prompts <= 2 * FEWEST_PROMPTS
