"""The text encoders of diffusers pipelines: tiny random ones of Stable Diffusion, SDXL and Flux, from the prompt to the
picture."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from sanitizer.encoders.pipeline import PipelineEncoder
from sanitizer.errors import SanitizerError
from sanitizer.model.report import Report
from sanitizer.training.fit import fit

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

PAGE = Path(__file__).resolve().parents[2] / "docs" / "diffusers.md"
FAMILIES = ("sd", "sdxl", "flux")
ROWS = 16


def word_tokenizer(words, length, start):
    """A fast tokenizer of whole words with an end token, and a start token as CLIP has it, or none as T5."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    vocabulary = {word: index for index, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", *words])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>" if start else "$A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        pad_token="</s>" if start else "<pad>", model_max_length=length,
    )  # fmt: skip


def clip(size, width, projected=False):
    config = transformers.CLIPTextConfig(
        vocab_size=size, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=3, num_attention_heads=2,
        projection_dim=width, max_position_embeddings=ROWS, bos_token_id=1, eos_token_id=2, pad_token_id=2,
    )  # fmt: skip
    return (transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel)(config).eval()


def unet(width, **options):
    return diffusers.UNet2DConditionModel(
        sample_size=8, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8, attention_head_dim=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=width, **options,
    )  # fmt: skip


def vae(channels=4):
    return diffusers.AutoencoderKL(
        block_out_channels=(16,), latent_channels=channels, norm_num_groups=8, scaling_factor=1.0, shift_factor=0.0
    )


@pytest.fixture(scope="module")
def pipes(tiny_concept, small_templates):
    """Each family's pipeline, with random weights."""
    torch.manual_seed(0)
    texts = [word for pair in tiny_concept.pairs for word in f"{pair.target} {pair.anchor} {pair.canonical}".split()]
    templates = small_templates
    texts += " ".join(
        [*templates.benign_prompts, *templates.held_out_benign_prompts, *templates.benign_frames, "photo of , a"]
        + [word for slot in templates.slots.values() for word in slot]
        + [frame for frames in templates.frames.values() for frame in frames]
    ).replace("{", " ").replace("}", " ").replace(",", " ").split()  # fmt: skip
    words = sorted({*texts, ","})
    size = len(words) + 4
    scheduler = diffusers.EulerDiscreteScheduler(steps_offset=1)
    tokenizer = word_tokenizer(words, ROWS, start=True)
    made = {
        "sd": diffusers.StableDiffusionPipeline(
            vae(), clip(size, 32), tokenizer, unet(32), scheduler, None, None, requires_safety_checker=False
        ),
        "sdxl": diffusers.StableDiffusionXLPipeline(
            vae(), clip(size, 32), clip(size, 48, True), tokenizer, tokenizer,
            unet(
                80, addition_embed_type="text_time", addition_time_embed_dim=8,
                projection_class_embeddings_input_dim=48 + 6 * 8, use_linear_projection=True,
            ),
            scheduler, add_watermarker=False,
        ),
        "flux": diffusers.FluxPipeline(
            diffusers.FlowMatchEulerDiscreteScheduler(), vae(), clip(size, 32), tokenizer,
            transformers.T5EncoderModel(
                transformers.T5Config(vocab_size=size, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
            ).eval(),
            word_tokenizer(words, 512, start=False),
            diffusers.FluxTransformer2DModel(
                patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16,
                num_attention_heads=2, joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=(4, 4, 8),
            ),
        ),
    }  # fmt: skip
    for pipe in made.values():
        pipe.set_progress_bar_config(disable=True)
    return made


def options_of(family):
    return {"max_sequence_length": 24} if family == "flux" else {}


@pytest.fixture(scope="module", params=FAMILIES)
def trained(request, pipes, tiny_concept, small_templates):
    """(family, pipe, encoder, sanitizer)."""
    pipe = pipes[request.param]
    encoder = PipelineEncoder(pipe, **options_of(request.param))
    sanitizer, _ = fit(encoder, [tiny_concept], templates=small_templates, examples=700, steps=200, seed=3)
    return request.param, pipe, encoder, sanitizer


def draw(pipe, **arguments):
    return pipe(
        num_inference_steps=2, height=16, width=16, output_type="pt", generator=torch.Generator().manual_seed(1),
        **arguments,
    ).images  # fmt: skip


@pytest.mark.slow
def test_a_harmless_prompts_picture_stays_to_the_bit_and_an_unsafe_ones_changes(trained):
    family, pipe, encoder, sanitizer = trained
    prompts = ["a photo of a dog in the garden", "a photo of a crimson woman"]
    e = encoder.encode(prompts)
    # So few examples rank prompts, and set thresholds with caution.
    scores = sanitizer.score(e.embeddings, e.mask, e.pooled).prompt[:, 0]
    threshold = float(scores.mean())
    for prompt, unsafe in zip(prompts, (False, True), strict=True):
        e = encoder.encode([prompt])
        out = sanitizer.sanitize(e.embeddings, e.mask, e.pooled, threshold=threshold)
        assert out.flagged.tolist() == [unsafe]
        plain = draw(pipe, prompt=prompt, **options_of(family))
        sanitized = draw(pipe, **encoder.arguments(out.embeddings, out.pooled))
        assert torch.equal(plain, sanitized) != unsafe


@pytest.mark.slow
def test_the_page_on_diffusers_can_be_followed(trained, monkeypatch, tmp_path, capsys):
    """Every block but the first, which loads a checkpoint; the training is done already."""
    family, pipe, _, sanitizer = trained
    if options_of(family):
        pytest.skip("the page's encoder has no options")
    report = Report.from_dict(sanitizer.header.report)
    monkeypatch.setattr("sanitizer.training.fit.fit", lambda *_arguments, **_options: (sanitizer, report))
    monkeypatch.chdir(tmp_path)
    _, *blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    names = {"pipe": pipe}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)  # noqa: S102 - the page is ours
    assert report.to_text() in capsys.readouterr().out
    assert names["image"].size[0] > 0


@pytest.mark.slow
def test_the_word_at_fault_scores_highest(trained):
    _, _, encoder, sanitizer = trained
    prompt = "a portrait of a scarlet woman at a desk"
    e = encoder.encode([prompt])
    scores = sanitizer.score(e.embeddings, e.mask, e.pooled).tokens[0, :, 0]
    named = [i for i, token in enumerate(e.tokens[0]) if token]
    assert [e.tokens[0][i] for i in named] == prompt.split()
    assert [prompt[a:b] for a, b in (e.offsets[0][i] for i in named)] == prompt.split()
    assert max(named, key=lambda i: scores[i]) == prompt.split().index("scarlet") + named[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_it_gives_what_the_pipeline_encodes_whatever_stands_beside(pipes, family):
    pipe, encoder = pipes[family], PipelineEncoder(pipes[family], **options_of(family))
    prompts = ["a dog", "", "a photo of a cat " * 20]
    e = encoder.encode(prompts)
    found = (e.embeddings.shape[2], 0 if e.pooled is None else e.pooled.shape[1])
    assert found == {"sd": (32, 0), "sdxl": (80, 48), "flux": (32, 32)}[family]
    assert (encoder.fingerprint.width, encoder.fingerprint.pooled_width) == found
    assert e.mask.all() and all(len(own) == e.mask.shape[1] for own in (*e.tokens, *e.offsets))
    one = encoder.encode(prompts[:1])
    assert torch.allclose(one.embeddings, e.embeddings[:1], atol=1e-5)
    arguments = encoder.arguments(one.embeddings, one.pooled)
    assert torch.equal(draw(pipe, **arguments), draw(pipe, prompt=prompts[0], **options_of(family)))


def test_the_fingerprint_follows_weights_options_and_lora(pipes):
    pipe = pipes["sdxl"]
    own = PipelineEncoder(pipe).fingerprint
    assert PipelineEncoder(pipe).fingerprint == own
    skipped = PipelineEncoder(pipe, clip_skip=1)
    assert skipped.fingerprint.architecture == "StableDiffusionXL, clip_skip 1"
    assert not torch.equal(skipped.encode(["a dog"]).embeddings, PipelineEncoder(pipe).encode(["a dog"]).embeddings)
    layer = next(module for name, module in pipe.text_encoder_2.named_modules() if name.endswith("mlp.fc1"))
    for strength in (1.0, 0.5):
        layer.scaling, layer.active_adapters = {"style": strength}, ["style"]
        found = PipelineEncoder(pipe).fingerprint
        assert found != own
        own = found
    del layer.scaling, layer.active_adapters
    with torch.no_grad():
        layer.bias[0] += 1
    assert PipelineEncoder(pipe).fingerprint != own


@pytest.mark.parametrize("name", ["StableDiffusion3Pipeline", "Flux2Pipeline", "PixArtSigmaPipeline"])
def test_other_pipelines_are_refused_by_name(name):
    with pytest.raises(SanitizerError, match=f"Pipeline {name}: expected one of StableDiffusionXL"):
        PipelineEncoder(type(name, (), {})())


def test_what_cannot_work_is_refused(pipes):
    with pytest.raises(SanitizerError, match=r"layer is no option of its text encoders\. Expected clip_skip"):
        PipelineEncoder(pipes["sd"], layer=2)
    lacking = type("StableDiffusionPipeline", (), {"text_encoder": None})()
    with pytest.raises(SanitizerError, match="expected its text_encoder, found none"):
        PipelineEncoder(lacking)
    slow = type("StableDiffusionPipeline", (), {"text_encoder": 1, "tokenizer": SimpleNamespace(is_fast=False)})()
    with pytest.raises(SanitizerError, match="expected a fast tokenizer"):
        PipelineEncoder(slow)
