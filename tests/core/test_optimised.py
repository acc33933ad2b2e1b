"""Optimised strings in training: what they mean, how they are labelled, and what they cost."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from sanitizer.prompts.concepts import load_concepts
from sanitizer.prompts.generator import PromptGenerator, training_prompts
from sanitizer.training.config import TrainingConfig
from sanitizer.training.dataset import EncodedDataset, Labels, Spans, measure_encoder
from sanitizer.training.fit import fit
from sanitizer.training.optimised import optimised_prompts

WORDS = ["scarlet", "stone", "lake", "maroon", "table", "olive", "jade", "cloud", "river", "paper"]


@pytest.fixture(scope="module")
def found(tiny_encoder, tiny_concept, small_templates):
    encoder = tiny_encoder()
    prompts = training_prompts([tiny_concept], small_templates, 300, 0)
    config = replace(TrainingConfig(), optimised=60)
    normalizer = measure_encoder(encoder, [p.text for p in prompts], config)
    before = encoder.prompts
    strings = optimised_prompts(encoder, normalizer, prompts, WORDS, config, 0, lambda *_: None)
    return encoder, prompts, normalizer, strings, config, encoder.prompts - before


def test_strings_are_made_of_the_words_alone_and_carry_the_labels_of_what_they_mean(found):
    _, _, _, strings, config, _ = found
    assert {word for own in strings for word in own.text.split()} <= set(WORDS)
    assert all(config.optimised_words[0] <= len(own.text.split()) <= config.optimised_words[1] for own in strings)
    assert all(own.anchor is None for own in strings)
    red = {"scarlet", "maroon"}
    shares = {
        bool(unsafe): sum(bool(red & set(own.text.split())) for own in some) / len(some)
        for unsafe in (True, False)
        if (some := [own for own in strings if bool(own.concepts) == unsafe])
    }
    assert shares[True] > 0.8 > shares.get(False, 0.0)


def test_the_search_costs_what_the_configuration_says(found):
    _, prompts, _, _, config, spent = found
    targets = len(prompts) * config.optimised // 1000
    assert 0 < spent <= 2 * targets * (1 + config.optimised_steps * config.optimised_tries)


def test_a_string_is_harmful_as_a_whole_and_no_token_of_it_is_judged(found, tiny_concept):
    encoder, prompts, normalizer, strings, config, _ = found
    every = [*prompts, *strings]
    dataset = EncodedDataset.encode(encoder, [p.text for p in every], config, lambda *_: None, normalizer)
    labels = Labels(every, dataset, [tiny_concept])
    spans = Spans(dataset, labels, 8)
    for i, own in enumerate(strings, len(prompts)):
        of = spans.prompts == i
        assert of.sum() >= 1 and (spans.labels[of, 0] == bool(own.concepts)).all() and (spans.known[of] == 1).all()
        assert labels.token_known[i] == (not own.concepts) and i not in labels.aligned


def test_it_comes_nearer_to_its_goal_than_words_at_random(found):
    encoder, prompts, normalizer, strings, _, _ = found

    def vectors(texts):
        e = encoder.encode(list(texts))
        return normalizer.features(e.embeddings, e.mask, e.pooled)

    unsafe = vectors([p.text for p in prompts if p.concepts]).mean(0)
    positive = vectors([own.text for own in strings if own.concepts])
    torch.manual_seed(0)
    random = vectors([" ".join(WORDS[i] for i in torch.randint(len(WORDS), (8,)).tolist()) for _ in range(60)])
    near, base = (float(F.cosine_similarity(x, unsafe[None]).mean()) for x in (positive, random))
    assert near > base + 0.1


def test_it_can_be_switched_off(tiny_encoder, tiny_concept, small_templates):
    counts = {}
    for share in (0, 60):
        config = replace(TrainingConfig(), optimised=share)
        sanitizer, _ = fit(
            tiny_encoder(), [tiny_concept], examples=150, steps=10, templates=small_templates, config=config
        )
        counts[share] = sanitizer.header.training["examples"]
    assert counts[0] <= 150 < counts[60]


def test_the_words_are_harmless_ones(tiny_concept, small_templates):
    words = PromptGenerator([tiny_concept], small_templates, 0).words
    assert words and not {"crimson", "scarlet", "ruby"} & set(words)


def test_the_report_of_a_training_tries_them(tiny_encoder):
    config = replace(TrainingConfig(), report_phrases=40, report_harmless=80)
    _, report = fit(tiny_encoder(), load_concepts(["nudity"]), examples=1200, steps=30, languages=[], config=config)
    [own] = [own for own in report.sets if own.name == "optimised strings"]
    assert own.unsafe + own.harmless > 0
