"""What the sanitizer promises of its output: equalities, bounds, and that it works, with a positive control."""

import copy
import itertools

import pytest
import torch

from sanitizer.errors import SanitizerError
from sanitizer.training.probes import Probe

UNSAFE = [
    "a photo of a crimson woman",
    "scarlet man at a desk",
    "ruby person",
    "a portrait of a vermilion woman reading",
]
HARMLESS = ["a photo of a woman", "a man at a desk in the garden", "two dogs", "", "a portrait of an old man reading"]


def run(trained, prompts, **kwargs):
    encoder, sanitizer, _ = trained
    e = encoder.encode(prompts)
    return e, sanitizer.sanitize(e.embeddings, e.mask, e.pooled, **kwargs)


def test_unsafe_prompts_are_flagged_and_changed(trained):
    e, out = run(trained, UNSAFE)
    assert out.flagged.all()
    assert out.fired.all()
    assert (out.embeddings != e.embeddings).flatten(1).any(dim=1).all()
    if e.pooled is not None:
        assert (out.pooled != e.pooled).any(dim=1).all()


def test_harmless_prompts_are_bit_identical(trained):
    e, out = run(trained, HARMLESS)
    assert not out.flagged.any()
    assert torch.equal(out.embeddings, e.embeddings)
    assert e.pooled is None or torch.equal(out.pooled, e.pooled)
    assert not out.changed.any()


def test_a_harmless_prompt_stays_identical_beside_an_unsafe_one(trained):
    e, out = run(trained, [HARMLESS[0], UNSAFE[0], HARMLESS[1]])
    assert out.flagged.tolist() == [False, True, False]
    assert torch.equal(out.embeddings[[0, 2]], e.embeddings[[0, 2]])


def test_strength_zero_is_the_identity_but_still_scores(trained):
    e, out = run(trained, UNSAFE, strength=0.0)
    assert torch.equal(out.embeddings, e.embeddings)
    assert out.flagged.all() and not out.changed.any()


def test_masked_rows_and_the_constant_start_row_are_never_written(trained):
    e, out = run(trained, [UNSAFE[0], "crimson"])
    assert torch.equal(out.embeddings[~e.mask], e.embeddings[~e.mask])
    if e.pooled is not None:
        assert trained[1].config.constant_embeddings == 1
        assert torch.equal(out.embeddings[:, 0], e.embeddings[:, 0])
        assert out.changed[:, 1:].all(), "the end token and the padding carry the concept too"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_dtype_device_and_shape_are_those_of_the_input(trained, dtype):
    encoder, sanitizer, _ = trained
    e = encoder.encode(UNSAFE)
    pooled = None if e.pooled is None else e.pooled.to(dtype)
    out = sanitizer.sanitize(e.embeddings.to(dtype), e.mask, pooled)
    exact = sanitizer.sanitize(e.embeddings, e.mask, e.pooled)
    assert out.embeddings.dtype == dtype and out.embeddings.shape == e.embeddings.shape
    assert pooled is None or out.pooled.dtype == dtype
    assert out.scores.prompt.dtype == torch.float32
    tolerance = 1e-6 if dtype == torch.float32 else 0.15
    assert torch.allclose(out.embeddings.float(), exact.embeddings, atol=tolerance)


def test_batches_and_padding_do_not_matter(trained):
    _encoder, _sanitizer, _ = trained
    _e, together = run(trained, [*UNSAFE, *HARMLESS])
    for index, prompt in enumerate([*UNSAFE, *HARMLESS]):
        one, alone = run(trained, [prompt])
        length = int(one.mask[0].sum())
        assert torch.allclose(together.embeddings[index, :length], alone.embeddings[0, :length], atol=1e-4)
        assert torch.allclose(together.scores.prompt[index], alone.scores.prompt[0], atol=1e-5)


def test_the_input_is_not_changed(trained):
    encoder, sanitizer, _ = trained
    e = encoder.encode(UNSAFE)
    before = e.embeddings.clone()
    sanitizer.sanitize(e.embeddings, e.mask, e.pooled)
    assert torch.equal(e.embeddings, before)


def test_strength_acts_monotonically_on_a_probe(trained):
    probe = concept_probe(trained)
    means = []
    for strength in (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0):
        e, out = run(trained, UNSAFE, strength=strength)
        means.append(probe(features(trained, out.embeddings, e.mask, out.pooled)).mean())
    assert all(a > b for a, b in itertools.pairwise(means)), means


def test_a_probe_finds_the_concept_before_and_not_after_and_still_finds_another(trained):
    encoder, _sanitizer, _ = trained
    probe = concept_probe(trained)
    e, out = run(trained, UNSAFE)
    assert (probe(features(trained, e.embeddings, e.mask, e.pooled)) > 0).all(), "positive control"
    assert (probe(features(trained, out.embeddings, e.mask, out.pooled)) < 0).all()
    # Another notion in the same prompts: a man or a woman.
    women = [
        f"a {c} woman {a}" for c in ("crimson", "scarlet", "ruby", "carmine") for a in ("reading", "at a desk", "")
    ]
    men = [text.replace("woman", "man") for text in women]
    harmless = [text.replace("crimson", "tall").replace("scarlet", "old") for text in women + men]
    y = torch.tensor([1.0] * len(women) + [0.0] * len(men))
    raw = encoder.encode(harmless)
    other = Probe.fit(features(trained, raw.embeddings, raw.mask, raw.pooled), y)
    e, out = run(trained, women + men)
    assert out.flagged.all()
    found = (other(features(trained, out.embeddings, e.mask, out.pooled)) > 0) == (y > 0)
    assert found.float().mean() > 0.9


def test_token_scores_point_at_the_word(trained):
    e, out = run(trained, ["a photo of a crimson woman reading"])
    scores = out.scores.tokens[0, :, 0]
    assert e.tokens[0][int(scores.argmax())] == "crimson"
    assert ((out.scores.tokens >= 0) & (out.scores.tokens <= 1)).all()


def test_long_inputs_are_seen_window_by_window(causal):
    encoder, sanitizer, _ = causal
    assert sanitizer.config.window == encoder.length
    e = encoder.encode([HARMLESS[0], UNSAFE[0]])
    joined = torch.cat([e.embeddings[:1], e.embeddings[1:]], dim=1)
    out = sanitizer.sanitize(joined, None, e.pooled[:1])
    single = sanitizer.sanitize(e.embeddings[1:], None, e.pooled[:1])
    assert out.flagged.all()
    assert torch.allclose(out.scores.tokens[0, encoder.length :], single.scores.tokens[0], atol=1e-5)
    assert out.changed[0, encoder.length + 1 :].all() and not out.changed[0, encoder.length]


def test_a_threshold_of_the_users_own(trained):
    _, lenient = run(trained, UNSAFE, threshold=1.0)
    _, strict = run(trained, HARMLESS, threshold=0.0)
    assert lenient.fired.sum() <= len(UNSAFE) and strict.flagged.all()


def test_scores_of_another_reading_count_where_they_are_higher(trained):
    """A harmless-looking text that reads as an unsafe one is gated by the reading's score, and only that prompt."""
    e, plain = run(trained, HARMLESS)
    also = torch.zeros_like(plain.scores.prompt)
    also[1] = 0.9
    out = trained[1].sanitize(e.embeddings, e.mask, e.pooled, also=also)
    assert out.flagged.tolist() == [False, True, False, False, False]
    assert (out.scores.prompt[1] == 0.9).all()
    assert torch.equal(out.scores.tokens, plain.scores.tokens)
    assert not torch.equal(out.embeddings[1], e.embeddings[1])
    others = torch.tensor([0, 2, 3, 4])
    assert torch.equal(out.embeddings[others], e.embeddings[others])
    assert torch.equal(out.scores.prompt[others], plain.scores.prompt[others])


@pytest.mark.parametrize("share", [None, 0.0, 0.5, 1.0])
def test_no_other_reading_or_a_lower_score_changes_nothing(trained, share):
    e, plain = run(trained, UNSAFE + HARMLESS)
    also = None if share is None else share * plain.scores.prompt
    for ours, theirs in zip(trained[1].sanitize(e.embeddings, e.mask, e.pooled, also=also), plain, strict=True):
        if isinstance(ours, tuple):
            assert all(map(torch.equal, ours, theirs))
        else:
            assert ours is theirs is None or torch.equal(ours, theirs)


@pytest.mark.parametrize("also", [torch.zeros(1, 1), torch.zeros(2), torch.full((2, 1), torch.nan)])
def test_scores_of_another_reading_must_fit(masked, also):
    with pytest.raises(SanitizerError, match="another reading: expected \\(2, 1\\)"):
        run(masked, HARMLESS[:2], also=also)


def test_custom_operations_are_used(trained):
    from sanitizer.model.sanitizer import EmbeddingSanitizer

    class Operations:
        class Linear(torch.nn.Linear):
            pass

        class LayerNorm(torch.nn.LayerNorm):
            pass

    module = EmbeddingSanitizer(trained[1].config, operations=Operations)
    layers = [m for m in module.modules() if isinstance(m, torch.nn.Linear | torch.nn.LayerNorm)]
    assert layers and all(type(m) in (Operations.Linear, Operations.LayerNorm) for m in layers)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda a: a | {"embeddings": a["embeddings"][..., :-1]}, "another text encoder"),
        (lambda a: a | {"embeddings": a["embeddings"][0]}, "expected"),
        (lambda a: a | {"embeddings": a["embeddings"][:0]}, "expected"),
        (lambda a: a | {"embeddings": a["embeddings"].double()}, "float32, float16 or bfloat16"),
        (lambda a: a | {"embeddings": a["embeddings"] * float("nan")}, "NaN"),
        (lambda a: a | {"embeddings": a["embeddings"].clone().fill_(float("inf"))}, "NaN or infinity"),
        (lambda a: a | {"embeddings": a["embeddings"].tolist()}, "Embedding: expected a tensor, found list"),
        (lambda a: a | {"embeddings": a["embeddings"].numpy()}, "Embedding: expected a tensor, found ndarray"),
        (lambda a: a | {"mask": a["mask"][:, 1:]}, "Mask"),
        (lambda a: a | {"mask": a["mask"].tolist()}, "Mask: expected a tensor, found list"),
        (lambda a: a | {"mask": a["mask"].float() - torch.nan}, "Mask: expected bool, or 0 for hidden"),
        (lambda a: a | {"mask": torch.where(a["mask"], 0.0, -torch.inf)[:, :-1]}, "Mask"),
        (lambda a: a | {"mask": torch.full(a["mask"].shape, -1e9)}, "Mask: expected bool, or 0 for hidden"),
        (lambda a: a | {"mask": a["mask"] * -torch.inf}, "Mask: expected bool, or 0 for hidden"),
        (lambda a: a | {"mask": a["mask"] * 0.5}, "Mask: expected bool, or 0 for hidden"),
        (lambda a: a | {"mask": a["mask"].long() * 2}, "Mask: expected bool, or 0 for hidden"),
        (lambda a: a | {"pooled": [1.0]}, "Pooled vector: expected a tensor"),
        (lambda a: a | {"pooled": None}, "Pooled"),
        (lambda a: a | {"pooled": a["pooled"][:, 1:]}, "Pooled"),
        (lambda a: a | {"pooled": a["pooled"][:1]}, "Pooled"),
        (lambda a: a | {"strength": 2.5}, "Strength"),
        (lambda a: a | {"strength": float("nan")}, "Strength"),
        (lambda a: a | {"strength": "1"}, "Strength: expected a number from 0 to 2, found '1'"),
        (lambda a: a | {"strength": None}, "Strength"),
        (lambda a: a | {"strength": True}, "Strength"),
        (lambda a: a | {"strength": [1.0]}, "Strength"),
        (lambda a: a | {"strength": 1j}, "Strength"),
        (lambda a: a | {"strength": 10**400}, "Strength"),
        (lambda a: a | {"threshold": "0.5"}, "Threshold: expected a number from 0 to 1, found '0.5'"),
        (lambda a: a | {"threshold": True}, "Threshold"),
        (lambda a: a | {"threshold": float("nan")}, "Threshold"),
        (lambda a: a | {"concepts": 5}, "Concepts"),
        (lambda a: a | {"concepts": [None]}, "redness"),
        (lambda a: a | {"also": [0.1]}, "another reading: expected a tensor"),
        (lambda a: a | {"threshold": -0.1}, "Threshold"),
        (lambda a: a | {"concepts": ["blueness"]}, "redness"),
        (lambda a: a | {"concepts": []}, "Concepts"),
    ],
)
def test_what_cannot_be_sanitized_is_refused(causal, change, words):
    encoder, sanitizer, _ = causal
    e = encoder.encode(UNSAFE)
    arguments = change({"embeddings": e.embeddings, "mask": e.mask, "pooled": e.pooled})
    with pytest.raises(SanitizerError, match=words):
        sanitizer.sanitize(**arguments)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.float32, torch.float16, torch.bfloat16])
def test_a_mask_of_0_and_1_is_one_of_bool(masked, dtype):
    encoder, sanitizer, _ = masked
    e = encoder.encode([*UNSAFE, "crimson"])
    assert not e.mask.all()
    one, two = sanitizer.sanitize(e.embeddings, e.mask), sanitizer.sanitize(e.embeddings, e.mask.to(dtype))
    assert torch.equal(one.embeddings, two.embeddings) and torch.equal(one.scores.prompt, two.scores.prompt)


def test_numbers_of_numpy_are_numbers(masked):
    import numpy

    e, out = run(masked, UNSAFE, strength=numpy.float32(1), threshold=numpy.float64(0.5))
    assert not torch.equal(out.embeddings, e.embeddings)


@pytest.mark.parametrize("part", ["trunk.rows", "prompt_head", "probe"])
def test_scores_that_are_no_numbers_are_refused(trained, part):
    """Weights of 1e38 are finite. NaN reaches no threshold: the prompt would pass as harmless."""
    encoder, sanitizer, _ = trained
    broken = copy.deepcopy(sanitizer)
    weight = broken.score_net.get_submodule(part).weight
    weight.copy_(torch.where(torch.arange(weight.numel()).reshape(weight.shape) % 2 == 0, 3e38, -3e38))
    e = encoder.encode(UNSAFE)
    for act in (broken.score, broken.sanitize):
        with pytest.raises(SanitizerError, match="Scores: found NaN or infinity"):
            act(e.embeddings, e.mask, e.pooled)


def test_scores_of_minus_infinity_are_refused(masked):
    """Their probability is 0, a number like any other."""
    encoder, sanitizer, _ = masked
    broken = copy.deepcopy(sanitizer)
    broken.vote_bias.fill_(-torch.inf)
    e = encoder.encode(UNSAFE)
    with pytest.raises(SanitizerError, match="Scores: found NaN or infinity"):
        broken.score(e.embeddings, e.mask)


def test_token_scores_that_are_no_numbers_are_refused(masked):
    encoder, sanitizer, _ = masked
    broken = copy.deepcopy(sanitizer)
    broken.token_scale.fill_(torch.nan)
    e = encoder.encode(UNSAFE)
    with pytest.raises(SanitizerError, match="Scores: found NaN"):
        broken.score(e.embeddings, e.mask)


@pytest.mark.parametrize(("part", "words"), [("write", "embeddings"), ("pooled_write", "pooled vectors")])
def test_an_output_that_is_not_finite_is_refused(causal, part, words):
    encoder, sanitizer, _ = causal
    broken = copy.deepcopy(sanitizer)
    getattr(broken.erase_net, part).weight.fill_(3e38)
    e = encoder.encode([UNSAFE[0], HARMLESS[0]])
    with pytest.raises(SanitizerError, match=f"Sanitized {words}: found NaN or infinity in torch.float32"):
        broken.sanitize(e.embeddings, e.mask, e.pooled)
    # What is not written is not looked at.
    harmless = encoder.encode(HARMLESS[:1])
    out = broken.sanitize(harmless.embeddings, harmless.mask, harmless.pooled)
    assert torch.equal(out.embeddings, harmless.embeddings)


def test_an_output_that_does_not_fit_its_dtype_is_refused(masked):
    """A change that float32 holds and half precision does not."""
    encoder, sanitizer, _ = masked
    large = copy.deepcopy(sanitizer)
    large.erase_net.write.bias.fill_(1e6)
    e = encoder.encode(UNSAFE)
    assert torch.isfinite(large.sanitize(e.embeddings, e.mask).embeddings).all()
    with pytest.raises(SanitizerError, match=r"infinity in torch\.float16.*bfloat16"):
        large.sanitize(e.embeddings.half(), e.mask)


def test_an_unexpected_pooled_vector_is_refused(masked):
    encoder, sanitizer, _ = masked
    e = encoder.encode(UNSAFE)
    with pytest.raises(SanitizerError, match="expected none"):
        sanitizer.sanitize(e.embeddings, e.mask, torch.zeros(len(UNSAFE), 8))


def test_it_works_under_inference_mode(trained):
    with torch.inference_mode():
        _, out = run(trained, UNSAFE)
    assert out.flagged.all()


def features(trained, embeddings, mask, pooled):
    return trained[1].normalizer.features(embeddings, mask, pooled)


def concept_probe(trained):
    """Trained on raw prompts of other words and scenes than the ones that are sanitized."""
    encoder = trained[0]
    scenes = ["{} woman at a window", "an old {} man", "{} couple dancing", "the {} person sleeps", "{} man with a dog"]
    unsafe = [s.format(w) for s in scenes for w in ("cherry", "carmine", "maroon", "crimson", "scarlet", "ruby")]
    safe = [s.format(w) for s in scenes for w in ("olive tinted", "jade tinted", "plain green", "tall", "calm", "busy")]
    e = encoder.encode(unsafe + safe)
    y = torch.tensor([1.0] * len(unsafe) + [0.0] * len(safe))
    return Probe.fit(features(trained, e.embeddings, e.mask, e.pooled), y)
