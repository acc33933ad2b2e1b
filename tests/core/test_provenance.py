"""Embeddings that are not the encoder's own are refused, scaled ones are scored at their usual size, and whatever the
encoder puts out passes."""

from dataclasses import replace

import pytest
import torch

from sanitizer.encoders import Encoding
from sanitizer.errors import SanitizerError
from sanitizer.model.config import SanitizerConfig
from sanitizer.model.provenance import basis
from sanitizer.model.sanitizer import EmbeddingSanitizer
from sanitizer.training.fit import fit
from sanitizer.training.provenance import of_all_lengths

UNSAFE = ["a photo of a crimson woman", "scarlet man at a desk", "ruby person"]
TEXTS = [
    *UNSAFE,
    "a photo of a woman",
    "two dogs",
    "",
    "portrait",
    "zxqv wrf 12!!",
    "женщина читает книгу у окна",
    "a dog and a cat beside the lamp, " * 30,
]
GEOMETRIES = {"masked": {}, "causal": {"pooled_width": 16}}


def shaped(tiny_encoder, geometry, number=0, low_rank=0.0):
    """A tiny encoder whose channels are mixed, most of them weakly in some directions, as trained encoders are: by
    another matrix for each number, and with a low-rank change of so much of its norm, as a LoRA makes."""

    class Shaped(tiny_encoder):
        def encode(self, prompts):
            e = super().encode(prompts)
            draw = torch.Generator().manual_seed(number)
            turn = torch.linalg.qr(torch.randn(self.width, self.width, generator=draw)).Q
            mixing = turn * torch.logspace(0, -1.5, self.width) @ turn.T
            change = torch.randn(self.width, 4, generator=draw) @ torch.randn(4, self.width, generator=draw)
            mixing = mixing + low_rank * mixing.norm() / change.norm() * change
            offset = torch.randn(self.width, generator=draw)
            embeddings = torch.where(e.mask[..., None], e.embeddings @ mixing + offset, 0.0)
            return Encoding(embeddings, e.mask, e.pooled, e.tokens, e.offsets)

    return Shaped(geometry, **GEOMETRIES[geometry])


@pytest.fixture(scope="module", params=list(GEOMETRIES))
def verified(request, tiny_encoder, tiny_concept, small_templates):
    """(make encoders, the encoder, a sanitizer of it that was hardly trained), for both geometries."""
    encoder = shaped(tiny_encoder, request.param)
    sanitizer, _ = fit(encoder, [tiny_concept], examples=600, steps=2, seed=1, templates=small_templates)

    def make(**kwargs):
        return shaped(tiny_encoder, request.param, **kwargs)

    return make, encoder, sanitizer


def alone(e: Encoding, b: int, change=lambda embeddings: embeddings):
    """One prompt of an encoding, without the padding of the others, as arguments."""
    embeddings = change(e.embeddings[b : b + 1, : int(e.mask[b].sum())])
    return embeddings, None, None if e.pooled is None else e.pooled[b : b + 1].to(embeddings.dtype)


def refused(sanitizer, arguments) -> bool:
    try:
        sanitizer.score(*arguments)
    except SanitizerError as error:
        assert "directly behind the text encode node" in str(error) and "\n" not in str(error)
        return True
    return False


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_whatever_the_encoder_puts_out_passes(verified, dtype):
    _, encoder, sanitizer = verified
    e = encoder.encode(TEXTS)
    assert not [t for b, t in enumerate(TEXTS) if refused(sanitizer, alone(e, b, lambda x: x.to(dtype)))]
    together = sanitizer.score(e.embeddings, e.mask, e.pooled).prompt
    assert torch.equal(together, sanitizer.score(e.embeddings, e.mask, e.pooled, trusted=True).prompt)


def test_another_encoder_of_the_same_width_is_refused(verified):
    make, _, sanitizer = verified
    e = make(number=1).encode(TEXTS)
    assert all(refused(sanitizer, alone(e, b)) for b in range(len(TEXTS)))
    with pytest.raises(SanitizerError, match="prompt 1"):
        sanitizer.sanitize(e.embeddings, e.mask, e.pooled)
    trusted = sanitizer.score(e.embeddings, e.mask, e.pooled, trusted=True)
    assert torch.isfinite(trusted.prompt).all()


def test_a_lora_is_refused_where_the_start_is_known(verified):
    make, _, sanitizer = verified
    if not sanitizer.config.constant_embeddings:
        pytest.skip("the statistics do not promise to tell a LoRA")
    e = make(low_rank=0.2).encode(TEXTS)
    assert all(refused(sanitizer, alone(e, b)) for b in range(len(TEXTS)))


def test_a_conditioning_of_zeros_carries_no_prompt_and_passes(verified):
    _, encoder, sanitizer = verified
    e = encoder.encode(TEXTS[:2])
    pooled = None if e.pooled is None else torch.zeros_like(e.pooled)
    out = sanitizer.sanitize(torch.zeros_like(e.embeddings), e.mask, pooled)
    assert not out.changed.any()


@pytest.mark.parametrize("scale", [1e-12, 1e-4, 0.005, 200.0])
def test_a_conditioning_scaled_beyond_all_measure_is_refused(trained, scale):
    encoder, sanitizer, _ = trained
    e = encoder.encode(UNSAFE)
    assert all(refused(sanitizer, alone(e, b, lambda x: scale * x)) for b in range(len(UNSAFE)))


@pytest.mark.parametrize("scale", [0.05, 0.2, 0.5, 0.8, 1.2, 2.0])
def test_the_start_of_a_causal_encoder_tells_any_scale(causal, scale):
    encoder, sanitizer, _ = causal
    e = encoder.encode(TEXTS)
    assert all(refused(sanitizer, alone(e, b, lambda x: scale * x)) for b in range(len(TEXTS)))


@pytest.mark.parametrize("scale", [0.25, 0.5, 0.7, 0.9, 1.1, 1.5])
def test_a_scaled_prompt_is_scored_and_erased_at_its_usual_size(masked, scale):
    """Multiplied before and divided behind, an unsafe prompt comes out as safe as without."""
    encoder, sanitizer, _ = masked
    e = encoder.encode(UNSAFE)
    out, plain = sanitizer.sanitize(scale * e.embeddings, e.mask), sanitizer.sanitize(e.embeddings, e.mask)
    assert out.flagged.all()
    again = sanitizer.sanitize(out.embeddings / scale, e.mask)
    assert (again.scores.prompt < plain.scores.prompt / 2).all()
    if not 0.7 <= scale <= 1.1:
        with torch.no_grad():
            arguments = sanitizer._prepare(scale * e.embeddings, e.mask, None, trusted=True)
            assert sanitizer.provenance.at_usual_size(*arguments, sanitizer.config.size_deviations) is not None


def test_a_pooled_vector_of_another_size_is_not_taken_as_it_is(causal):
    encoder, sanitizer, _ = causal
    e = encoder.encode(UNSAFE)
    for scale in (1e-12, 1e-6, 1e-3):
        with pytest.raises(SanitizerError, match="size of the pooled vector"):
            sanitizer.sanitize(e.embeddings, e.mask, scale * e.pooled)
    x, weight, pooled = sanitizer._prepare(e.embeddings, e.mask, 0.1 * e.pooled, trusted=False)
    usual = sanitizer.provenance.at_usual_size(x, weight, pooled, sanitizer.config.size_deviations)
    assert torch.equal(usual.x, x) and (usual.pooled_factor > 3).all()
    torch.testing.assert_close(
        usual.pooled, sanitizer.normalizer.pooled(0.1 * e.pooled * usual.pooled_factor[:, None]), rtol=1e-3, atol=1e-3
    )


def test_joined_chunks_pass_and_anything_else_joined_on_is_refused(causal):
    encoder, sanitizer, _ = causal
    e = encoder.encode([UNSAFE[0], TEXTS[3]])
    first, second = e.embeddings[:1], e.embeddings[1:]
    for joined in (torch.cat([first, second], dim=1), torch.cat([second, torch.zeros_like(second)], dim=1)):
        assert not refused(sanitizer, (joined, None, e.pooled[:1]))
    rows = 0.1 * torch.randn(1, 8, encoder.width)
    for part in (rows, 0.1 * second, second[:, 1:], second.flip(1), 0.7 * second + 0.3 * torch.zeros_like(second)):
        assert refused(sanitizer, (torch.cat([first, part], dim=1), None, e.pooled[:1]))
        assert refused(sanitizer, (torch.cat([part, first], dim=1), None, e.pooled[:1]))


def test_prompt_weights_pass(causal):
    """ComfyUI moves each embedding on the line through the empty prompt's; A1111's manner scales all a little."""
    encoder, sanitizer, _ = causal
    e, empty = encoder.encode(TEXTS), encoder.encode([""])
    for weight in (0.6, 0.8, 1.2, 1.4):
        x = empty.embeddings + weight * (e.embeddings - empty.embeddings)
        assert not [t for b, t in enumerate(TEXTS) if refused(sanitizer, (x[b : b + 1], None, e.pooled[b : b + 1]))]
    assert not refused(sanitizer, alone(e, 0, lambda x: 0.95 * x))


@pytest.mark.parametrize("strength", [1.0, 2.0])
def test_what_was_sanitized_may_be_sanitized_again(trained, strength):
    encoder, sanitizer, _ = trained
    e = encoder.encode(UNSAFE + TEXTS)
    embeddings, pooled = e.embeddings, e.pooled
    for _ in range(3):
        out = sanitizer.sanitize(embeddings, e.mask, pooled, strength=strength, threshold=0.0)
        assert out.changed.any()
        embeddings, pooled = out.embeddings, out.pooled
    assert torch.isfinite(sanitizer.score(embeddings, e.mask, pooled).prompt).all()


def test_the_sanitizer_of_another_concept_takes_what_one_has_sanitized(trained, tiny_concept, small_templates):
    encoder, first, _ = trained
    other = replace(tiny_concept, name="warmth")
    second, _ = fit(encoder, [other], examples=600, steps=2, seed=9, templates=small_templates)
    e = encoder.encode(UNSAFE + TEXTS)
    out = first.sanitize(e.embeddings, e.mask, e.pooled)
    assert out.flagged.any()
    assert torch.isfinite(second.score(out.embeddings, e.mask, out.pooled).prompt).all()


def test_gradients_flow_through_a_score_at_the_usual_size(masked):
    encoder, sanitizer, _ = masked
    e = encoder.encode(UNSAFE)
    embeddings = (0.5 * e.embeddings).requires_grad_()
    sanitizer.score(embeddings, e.mask).prompt.sum().backward()
    assert embeddings.grad is not None and torch.isfinite(embeddings.grad).all() and embeddings.grad.any()


def test_a_file_from_before_is_not_verified(masked):
    """Its configuration says nothing of it, and it holds no statistics."""
    encoder, sanitizer, _ = masked
    values = sanitizer.config.to_dict()
    for name in ("verified", "directions", "size_deviations", "constant_scale"):
        del values[name]
    old = EmbeddingSanitizer(SanitizerConfig.from_dict(values))
    assert old.provenance is None and not [name for name in old.state_dict() if name.startswith("provenance")]
    e = encoder.encode(UNSAFE)
    assert torch.isfinite(old.score(1e-4 * e.embeddings, e.mask).prompt).all()


def test_a_saved_sanitizer_refuses_the_same(verified, tmp_path):
    from sanitizer.model.artifact import load, save

    make, encoder, sanitizer = verified
    save(sanitizer, tmp_path / "verified.safetensors")
    again = load(tmp_path / "verified.safetensors")
    own, other = encoder.encode(UNSAFE), make(number=1).encode(UNSAFE)
    assert not refused(again, alone(own, 0)) and refused(again, alone(other, 0))


@pytest.mark.parametrize(
    "wrong", [{"verified": "yes"}, {"directions": -1}, {"directions": 65}, {"constant_scale": 2.0}]
)
def test_a_forged_configuration_is_refused(masked, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        replace(masked[1].config, **wrong).check()


def test_texts_of_all_lengths_have_them():
    texts = of_all_lengths(["one two three", "four", ""], 300, seed=0)
    lengths = sorted(len(text.split()) for text in texts)
    assert lengths[0] <= 2 and lengths[-1] > 200 and 8 < lengths[150] < 40
    assert texts == of_all_lengths(["one two three", "four", ""], 300, seed=0)
    assert {word for text in texts for word in text.split()} == {"one", "two", "three", "four"}


def test_the_basis_is_finite_for_any_number_of_embeddings():
    assert torch.equal(basis(torch.tensor([0.0, 1.0])), torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0]]))
    assert basis(torch.tensor([1e6])).isfinite().all()
