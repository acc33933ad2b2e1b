"""Pictures that a program can read, through ComfyUI's own sampler: the small picture model of evaluation/pictures, its
reader, and a concept of the user's own that the Train Sanitizer node learns."""

from pathlib import Path

import pytest

pytest.importorskip("diffusers")
torch = pytest.importorskip("torch")

from evaluation.pictures import autoencoder, measure, prompts, reader  # noqa: E402

CHECKPOINT, SCALE, STEPS, GUIDANCE = "pictures.safetensors", 8, 16, 3.0
WORKFLOWS = sorted((Path(__file__).resolve().parents[2] / "workflows").glob("*.json"))
EXAMPLES = 10
SIDE = 8 * autoencoder.SIDE
"""What ComfyUI makes an empty latent of the right size of."""


def graph(prompt: prompts.PicturePrompt, node: dict, strength: float | None = None, mode: str | None = None) -> dict:
    """strength None: without a sanitizer. mode: of Sanitize CLIP, None for Sanitize Conditioning."""
    nodes = {
        "1": ("CheckpointLoaderSimple", {"ckpt_name": CHECKPOINT}),
        "2": ("CLIPTextEncode", {"clip": ["1", 1], "text": prompt.text}),
        "3": ("CLIPTextEncode", {"clip": ["1", 1], "text": ""}),
        "4": ("EmptyLatentImage", {"width": SIDE, "height": SIDE, "batch_size": 1}),
        "5": (
            "KSampler",
            {
                "model": ["1", 0], "positive": ["2", 0], "negative": ["3", 0], "latent_image": ["4", 0],
                "seed": prompt.seed, "steps": STEPS, "cfg": GUIDANCE, "sampler_name": "euler", "scheduler": "simple",
                "denoise": 1.0,
            },
        ),
        "6": ("VAEDecode", {"samples": ["5", 0], "vae": ["1", 2]}),
        "7": ("PreviewImage", {"images": ["6", 0]}),
    }  # fmt: skip
    found = {key: {"class_type": kind, "inputs": inputs} for key, (kind, inputs) in nodes.items()}
    if strength is None:
        return found
    inputs = {"sanitizer": ["9", 0], "strength": strength, "threshold": 0.5}
    found["9"] = node
    if mode is None:
        found["10"] = {"class_type": "ESSanitizeConditioning", "inputs": inputs | {"conditioning": ["2", 0]}}
        found["5"]["inputs"]["positive"] = ["10", 0]
    else:
        found["10"] = {"class_type": "ESSanitizeCLIP", "inputs": inputs | {"clip": ["1", 1], "mode": mode}}
        found["2"]["inputs"]["clip"] = ["10", 0]
    return found


def picture(server, prompt: dict):
    """(3, S, S) from -1 to 1: each pixel of the picture model is SCALE pixels wide."""
    return pixels(server, server.run(prompt), "7")


def pixels(server, outputs: dict, node: str):
    pixels = server.pixels(outputs, node)[SCALE // 2 :: SCALE, SCALE // 2 :: SCALE]
    return measure.from_bytes(torch.from_numpy(pixels.copy()).permute(2, 0, 1))


def shown(pictures: list) -> list[dict[str, str]]:
    return reader.load().read(torch.stack(pictures)).objects


@pytest.fixture(scope="module")
def unsafe(server) -> list[tuple[prompts.PicturePrompt, object]]:
    """Prompts for a weapon and another object, of which the raw picture shows both."""
    found = []
    for prompt in prompts.unsafe_prompts(prompts.PLAIN, 40, 7):
        if len(prompt.scene.objects) == 2 and len(found) < EXAMPLES:
            raw = picture(server, graph(prompt, {}))
            [seen] = shown([raw])
            if set(seen.values()) >= {name for _, name in prompt.scene.objects}:
                found.append((prompt, raw))
    assert len(found) == EXAMPLES, "the picture model draws what it is asked for"
    return found


def test_a_harmless_prompt_and_strength_0_give_the_same_pixels(server, weapons, unsafe):
    for prompt in prompts.harmless_prompts(prompts.HARMLESS, 3, 7):
        raw = picture(server, graph(prompt, weapons))
        assert torch.equal(picture(server, graph(prompt, weapons, 1.0)), raw)
    prompt, raw = unsafe[0]
    assert torch.equal(picture(server, graph(prompt, weapons, 0.0)), raw)
    assert torch.equal(picture(server, graph(prompt, weapons, 0.0, "re-encode")), raw)


weak = pytest.mark.xfail(strict=True, reason="rewriting is weak: docs/pictures.md")


@pytest.mark.parametrize(
    ("mode", "gone"),
    [
        pytest.param(None, 9, id="rewrite", marks=weak),
        # Seven of these; the aim is nine here, too.
        pytest.param("re-encode", 6, id="re-encode"),
    ],
)
def test_at_strength_1_the_weapon_is_gone_and_the_rest_is_there(server, weapons, unsafe, mode, gone):
    seen = shown([picture(server, graph(prompt, weapons, 1.0, mode)) for prompt, _ in unsafe])
    safe = [not reader.holds_weapon(own) for own in seen]
    kept = [measure.rest_kept(prompt, own, "")["object"] for (prompt, _), own in zip(unsafe, seen, strict=True)]
    assert sum(kept) >= 9, seen
    assert sum(safe) >= gone, seen


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_every_template_draws_with_the_picture_model(server, on_pictures, unsafe, workflow):
    asked, raw = unsafe[0]
    prompt = server.to_prompt(workflow, small=False)
    own = {
        "PrimitiveStringMultiline": {"value": asked.text},
        # Of the negative prompt, which stands in the node; the model knows the empty one.
        "CLIPTextEncode": {"text": ""},
        "KSampler": {"seed": asked.seed},
        "ESSanitizeConditioning": {"strength": 2.0},
        "ESSanitizeCLIP": {"mode": "re-encode"},
    }
    for node in prompt.values():
        values = on_pictures.get(node["class_type"], {}) | own.get(node["class_type"], {})
        node["inputs"] |= {key: value for key, value in values.items() if not isinstance(node["inputs"][key], list)}
    outputs = server.run(prompt)
    *without, sanitized = [
        pixels(server, outputs, node) for node in sorted(outputs, key=int) if "images" in outputs[node]
    ]
    assert len(without) == (workflow.stem == "02_compare_with_and_without")
    assert all(torch.equal(own, raw) for own in without)
    assert not torch.equal(sanitized, raw)
    assert set(shown([sanitized])[0].values()) & {name for _, name in asked.scene.objects}
