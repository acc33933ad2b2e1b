"""Long prompts: what the score net sees of them, and that harmless words around a phrase outvote nothing."""

import random

import pytest
import torch

from sanitizer.model.sanitizer import spans
from sanitizer.prompts.concepts import load_concepts
from sanitizer.prompts.generator import PromptConfig, PromptGenerator, training_prompts
from sanitizer.training.config import TrainingConfig
from sanitizer.training.dataset import EncodedDataset, Labels, Spans


@pytest.mark.parametrize("size", [0, 8, 48])
@pytest.mark.parametrize("length", [1, 8, 9, 12, 13, 100])
def test_spans_see_every_embedding_and_overlap_by_half(size, length):
    row, place = spans(torch.ones(2, length), size)
    for r in (0, 1):
        own = place[row == r]
        assert set(own[own < length].tolist()) == set(range(length))
        if size and length > size:
            assert own.shape[1] == size
            assert (own[1:, 0] - own[:-1, 0] == size // 2).all()
            # A phrase of up to half a span stands whole in one of them.
            for start in range(length - size // 2 + 1):
                assert any(set(range(start, start + size // 2)) <= set(span.tolist()) for span in own)
        else:
            assert len(own) == 1


def test_a_prompts_spans_do_not_depend_on_the_length_of_another():
    weight = torch.zeros(2, 40)
    weight[0, :10], weight[1] = 1, 1
    row, place = spans(weight, 8)
    alone, own = spans(weight[:1, :10], 8)
    assert torch.equal(place[row == 0], own) and len(alone) == int((row == 0).sum())


@pytest.mark.parametrize("geometry", ["masked", "causal"])
def test_only_what_a_prompt_fills_has_a_vote(request, geometry):
    """Beside a longer prompt a short one has empty windows, whose logits are no evidence."""
    encoder, sanitizer, _ = request.getfixturevalue(geometry)
    e = encoder.encode(["a crimson woman", long_texts(200, 1)[0]])
    embeddings, mask = torch.cat([e.embeddings] * 2, dim=1), torch.cat([e.mask] * 2, dim=1)
    mask[0, e.mask.shape[1] :] = False
    seen = sanitizer.evidence(embeddings, mask, e.pooled)
    assert seen.owner.bincount().tolist() == seen.spans.tolist() and seen.spans[0] == 1 < seen.spans[1]
    seen = sanitizer.evidence(embeddings, torch.zeros_like(mask), e.pooled)
    assert set(seen.owner.tolist()) == {0, 1} and seen.spans.tolist() == [0, 0]


def long_texts(words, count, seed=0):
    rng = random.Random(seed)
    things = ["dog", "cat", "tree", "lamp", "boat", "garden", "table", "window", "river", "bread"]
    return [
        " ".join(f"a {rng.choice(things)} beside the {rng.choice(things)}," for _ in range(words // 5))
        for _ in range(count)
    ]


def test_a_word_is_found_among_many_harmless_ones(masked):
    encoder, sanitizer, _ = masked
    assert sanitizer.config.score_span == TrainingConfig.score_span
    for words in (50, 100, 200):
        texts = long_texts(words, 12)
        before = [f"{text} a photo of a crimson woman" for text in texts]
        after = [f"a photo of a crimson woman, {text}" for text in texts]
        for prompts, expected in ((texts, 0.0), (before, 1.0), (after, 1.0)):
            e = encoder.encode(prompts)
            out = sanitizer.sanitize(e.embeddings, e.mask, e.pooled)
            assert float(out.flagged.float().mean()) == expected


def test_no_prompt_scores_below_a_word_of_it(trained):
    """So that nothing says "harmless" above a word that is framed."""
    encoder, sanitizer, _ = trained
    prompts = [
        "crimson",
        "a photo of a crimson woman",
        "a stop sign",
        "",
        *long_texts(60, 3),
        "ruby " + long_texts(30, 1)[0],
    ]
    e = encoder.encode(prompts)
    scores = sanitizer.score(e.embeddings, e.mask, e.pooled)
    assert (scores.prompt + 1e-6 >= scores.tokens.amax(dim=1)).all()


def test_every_vote_fires_by_itself(masked):
    """With all but one vote silenced, that one decides."""
    encoder, sanitizer, _ = masked
    e = encoder.encode(["a photo of a crimson woman", "a photo of a man"])
    kept = sanitizer.vote_bias.clone()
    try:
        for vote in range(len(kept)):
            sanitizer.vote_bias.copy_(kept - 1e4)
            assert not sanitizer.sanitize(e.embeddings, e.mask).flagged.any()
            sanitizer.vote_bias[vote] = kept[vote]
            assert sanitizer.sanitize(e.embeddings, e.mask).flagged.tolist() == [True, False]
    finally:
        sanitizer.vote_bias.copy_(kept)


def encoded(encoder, concept, templates):
    prompts = training_prompts([concept], templates, 400, 0)
    dataset = EncodedDataset.encode(encoder, [p.text for p in prompts], TrainingConfig(), lambda *_: None)
    return prompts, dataset, Labels(prompts, dataset, [concept])


@pytest.mark.parametrize("geometry", ["masked", "causal"])
def test_training_sees_the_spans_that_inference_sees(tiny_encoder, tiny_concept, small_templates, geometry):
    prompts, dataset, labels = encoded(tiny_encoder(geometry), tiny_concept, small_templates)
    size = 16
    found = Spans(dataset, labels, 0 if geometry == "causal" else size)
    for i in range(len(prompts)):
        own = [(int(a), int(b)) for p, a, b in zip(found.prompts, found.first, found.last, strict=True) if p == i]
        assert {at for a, b in own for at in range(a, b)} == set(
            range(int(dataset.start[i]), int(dataset.start[i + 1]))
        )
    if geometry == "masked":
        rows, _ = spans(torch.ones(1, int(dataset.lengths.max())), size)
        assert int((found.prompts == int(dataset.lengths.argmax())).sum()) == len(rows)
    unsafe = labels.prompt[found.prompts, 0] > 0
    ends = list(zip(found.prompts.tolist(), found.first.tolist(), found.last.tolist(), strict=True))
    held = torch.tensor([int(labels.token[a:b].sum()) for _, a, b in ends])
    whole = torch.tensor(
        [int(labels.token[int(dataset.start[p]) : int(dataset.start[p + 1])].sum()) for p, _, _ in ends]
    )
    harmful, known = found.labels[:, 0] > 0, found.known[:, 0] > 0
    # A span with the phrase is harmful, one before it harmless; of one with a small part nothing is known.
    assert (harmful & known)[unsafe & (held == whole)].all()
    assert not known[unsafe & (held > 0) & (2 * held < whole)].any()
    assert not harmful[~unsafe].any() and known[~unsafe].all()
    if geometry == "masked":
        before = unsafe & (held == 0) & known
        assert before.any() and not harmful[before].any()


def test_a_splice_holds_whole_phrases_and_nothing_that_has_read_another(tiny_encoder, tiny_concept, small_templates):
    config = TrainingConfig(spliced=1.0, spliced_unsafe=0.5)
    _, dataset, labels = encoded(tiny_encoder("causal"), tiny_concept, small_templates)
    found = Spans(dataset, labels, 0)
    where = [(i, place) for i, kept in enumerate(dataset.kept) for place in kept]
    torch.manual_seed(0)
    kinds = set()
    for front in range(len(found)):
        rows, back = found._drawn(front, config)
        own = range(int(found.first[front]), int(found.last[front]))
        if back == front:
            continue
        taken = [row for row in rows.tolist() if row in own]
        other = [row for row in rows.tolist() if row not in own]
        assert set(other) <= set(range(int(found.first[back]), int(found.last[back])))
        assert all(dataset.tokens[where[row][0]][where[row][1]] for row in taken), "no padding of the front"
        places = [where[row][1] % dataset.normalizer.window for row in rows.tolist()]
        assert places == sorted(set(places))
        # All of the front's phrase is there; of the back's, the phrase and what has read it, or nothing.
        assert not found.labels[front].any() or labels.token[taken].any()
        kinds.add((bool(found.labels[front].any()), bool(labels.token[other].any())))
        drawn = found.draw(torch.tensor([front]), config)
        assert drawn.labels.shape == (1, 1) and drawn.x.shape[:2] == drawn.weight.shape == drawn.phrase.shape
    assert kinds == {(False, False), (False, True), (True, False), (True, True)}
    _, dataset, labels = encoded(tiny_encoder("masked"), tiny_concept, small_templates)
    whole = Spans(dataset, labels, 16)
    index = torch.arange(len(whole))[:8]
    assert torch.equal(whole.draw(index, config).x, whole.batch(index)[0]), "every embedding has read all others"


def test_contexts_of_every_length_stand_on_every_side(small_templates, tiny_concept):
    config = PromptConfig(in_context=1.0)
    generator = PromptGenerator([tiny_concept], small_templates, 0, config=config)
    texts = [generator.in_context("MARK") for _ in range(300)]
    lengths = sorted(len(text.split()) - 1 for text in texts)
    assert lengths[0] >= config.context_words[0] - 2 and lengths[-1] <= config.context_words[1] + 2
    assert lengths[len(lengths) // 4] < 40 and lengths[-len(lengths) // 4] > 100
    sides = {(text.startswith("MARK"), text.endswith("MARK")) for text in texts}
    assert sides == {(True, False), (False, True), (False, False)}
    plain = PromptGenerator([tiny_concept], small_templates, 0, "held_out", config)
    assert plain.in_context("MARK") == "MARK"


def test_calibration_has_hard_negatives_and_long_texts_of_its_own(small_templates):
    from sanitizer.prompts.templates import load_templates

    concepts = load_concepts(["nudity"])
    train = PromptGenerator(concepts, load_templates(), 0)
    own = PromptGenerator(concepts, load_templates(), 0, "calibration")
    assert own.hard and not {p.text for p in own.hard} & {p.text for p in train.hard}
    for words in (*TrainingConfig.long_words, *TrainingConfig.longest):
        for text in own.long(words, 8):
            assert words - 1 <= len(text.split()) <= words + 12
