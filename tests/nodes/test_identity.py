"""Behind Sanitize CLIP: what changes its encoder is refused when text is encoded, and what changes nothing is not."""

import pytest
import torch


@pytest.fixture(scope="module")
def error(pack):
    return pack("sanitizer.errors").SanitizerError


@pytest.fixture
def sanitize_clip(pack, loaded, run):
    """A CLIP through Sanitize CLIP, with a sanitizer for it that fires on everything."""

    def make(clip):
        own = pack("nodes.adapter.clip").ComfyTextEncoder(clip).fingerprint
        sanitizer = loaded(width=own.width, pooled=own.pooled_width, fingerprint=own)
        inputs = {"sanitizer": sanitizer, "strength": 1.0, "threshold": 0.5}
        return run(pack("nodes.sanitize_clip").SanitizeCLIP, clip=clip, **inputs).args[0]

    return make


def patch_of(clip, size=0.05):
    name = next(name for name, tensor in clip.cond_stage_model.state_dict().items() if tensor.ndim == 2)
    return {name: ("diff", (torch.full(clip.cond_stage_model.state_dict()[name].shape, size),))}


def test_a_patch_behind_the_node_is_refused_and_the_plain_clip_stays(sanitize_clip, clip, encoded, error):
    before = encoded("a boat")[0][0]
    sanitized = sanitize_clip(clip)
    own = encoded("a boat", sanitized)[0][0]
    patched = sanitized.clone()
    patched.add_patches(patch_of(clip), 1.0)
    for _ in range(2):
        with pytest.raises(error, match=r"changed behind this node by patches.*in front of Sanitize CLIP"):
            encoded("a boat", patched)
    assert torch.equal(encoded("a boat", sanitized)[0][0], own)
    assert torch.equal(encoded("a boat")[0][0], before)


def test_a_patch_in_front_of_the_node_is_none_behind_it(sanitize_clip, clip, encoded, error):
    patched = clip.clone()
    patched.add_patches(patch_of(clip), 1.0)
    sanitized = sanitize_clip(patched)
    encoded("a boat")  # the plain CLIP is loaded in between
    own = encoded("a boat", sanitized)[0][0]
    assert torch.equal(encoded("a boat", sanitized.clone())[0][0], own)


def test_a_patch_of_strength_0_is_no_change(sanitize_clip, clip, encoded):
    sanitized = sanitize_clip(clip)
    patched = sanitized.clone()
    patched.add_patches(patch_of(clip), 0.0)
    assert torch.equal(encoded("a boat", patched)[0][0], encoded("a boat", sanitized)[0][0])


def test_a_patch_of_words_that_are_no_probe_is_seen(sanitize_clip, clip, encoded, error):
    """Any patch counts, not its effect on some prompt: this one changes the embedding of a single token."""
    name = next(name for name in clip.cond_stage_model.state_dict() if name.endswith("word_embeddings.weight"))
    size = torch.zeros_like(clip.cond_stage_model.state_dict()[name])
    size[1234] = 1.0
    patched = sanitize_clip(clip).clone()
    patched.add_patches({name: ("diff", (size,))}, 1.0)
    with pytest.raises(error, match="patches"):
        encoded("a boat", patched)


def test_nothing_is_encoded_for_the_check(sanitize_clip, clip, encoded, monkeypatch):
    sanitized = sanitize_clip(clip)
    calls = []
    model, encode = clip.patcher.model, clip.patcher.model.encode_token_weights
    monkeypatch.setattr(model, "encode_token_weights", lambda tokens: calls.append(tokens) or encode(tokens))
    encoded("a boat", sanitized)
    assert len(calls) == 1


def test_another_layer_behind_the_node_is_refused(sanitize_clip, clip, encoded, error):
    skipped = sanitize_clip(clip).clone()
    skipped.clip_layer(-2)
    with pytest.raises(error, match="clip-skip"):
        encoded("a boat", skipped)


def test_weights_are_given_to_no_merging_node(sanitize_clip, clip, error):
    sanitized = sanitize_clip(clip)
    behind = sanitized.clone()
    behind.add_patches(patch_of(clip), 0.5)
    for other in (sanitized, sanitized.clone(), behind):
        with pytest.raises(error, match="weights of the sanitized CLIP"):
            other.get_key_patches()
    assert clip.get_key_patches()


def test_a_sanitizer_behind_a_sanitizer(sanitize_clip, clip, encoded):
    twice = sanitize_clip(sanitize_clip(clip))
    assert not torch.equal(encoded("a boat", twice)[0][0], encoded("a boat", sanitize_clip(clip))[0][0])


# What follows runs ComfyUI's own nodes on its own encoder classes.


@pytest.fixture(params=["sd15", "sdxl"])
def real(request, stock, helper):
    return helper("real_clips").make(request.param)


@pytest.fixture
def lora(stock, tmp_path):
    """`lora(clip)`: name of a LoRA file for every matrix of the first layers."""
    import folder_paths
    from safetensors.torch import save_file

    def make(clip):
        weights = {}
        for name, tensor in clip.cond_stage_model.state_dict().items():
            if name.endswith("mlp.fc1.weight"):
                key = f"text_encoders.{name.removesuffix('.weight')}"
                weights[f"{key}.lora_up.weight"] = torch.randn(tensor.shape[0], 2)
                weights[f"{key}.lora_down.weight"] = torch.randn(2, tensor.shape[1])
        assert weights
        save_file(weights, tmp_path / "test_lora.safetensors")
        return "test_lora.safetensors"

    folder_paths.add_model_folder_path("loras", str(tmp_path), is_default=True)
    return make


def test_lora_loader(stock, real, lora, sanitize_clip, encoded, error):
    sanitized, loader = sanitize_clip(real), stock("nodes").LoraLoader()
    own = encoded("a boat", sanitized)[0][0]
    [_, with_lora] = loader.load_lora(None, sanitized, lora(real), 1.0, 0.8)
    with pytest.raises(error, match="patches to its weights"):
        encoded("a boat", with_lora)
    # A strength of the model's alone leaves the CLIP as it is.
    [_, without] = loader.load_lora(None, sanitized, lora(real), 1.0, 0.0)
    assert torch.equal(encoded("a boat", without)[0][0], own)
    # In front of the node it belongs to the encoder.
    [_, plain] = loader.load_lora(None, real, lora(real), 1.0, 0.8)
    assert not torch.equal(encoded("a boat", sanitize_clip(plain))[0][0], own)
    assert torch.equal(encoded("a boat", sanitized)[0][0], own)


def test_lora_in_bypass_mode(stock, real, lora, sanitize_clip, encoded, error):
    nodes = pytest.importorskip("comfy_extras.nodes_lora_debug", reason="this ComfyUI has no bypass mode")
    sanitized, loader = sanitize_clip(real), nodes.LoraLoaderBypass()
    own = encoded("a boat", sanitized)[0][0]
    # Behind the node it finds no encoder to put itself on, which ComfyUI logs.
    [_, bypassed] = loader.load_lora(None, sanitized, lora(real), 1.0, 0.8)
    assert torch.equal(encoded("a boat", bypassed)[0][0], own)
    # Put on the model by other ways, it is seen.
    [_, plain] = loader.load_lora(None, real, lora(real), 1.0, 0.8)
    bypassed = sanitized.clone()
    bypassed.patcher.injections = plain.patcher.injections
    with pytest.raises(error, match="bypass"):
        encoded("a boat", bypassed)
    with pytest.raises(error, match="bypass"):
        sanitize_clip(plain)
    assert torch.equal(encoded("a boat", sanitized)[0][0], own)


def test_clip_set_last_layer(stock, real, sanitize_clip, encoded, error):
    node = stock("nodes").CLIPSetLastLayer()
    sanitized = sanitize_clip(real)
    own = encoded("a boat", sanitized)[0][0]
    with pytest.raises(error, match="clip-skip"):
        encoded("a boat", node.set_last_layer(sanitized, -3)[0])
    assert torch.equal(encoded("a boat", sanitized)[0][0], own)
    # The layer that was set in front, set once more.
    [skipped] = node.set_last_layer(real, -2)
    sanitized = sanitize_clip(skipped)
    own = encoded("a boat", sanitized)[0][0]
    assert torch.equal(encoded("a boat", node.set_last_layer(sanitized, -2)[0])[0][0], own)


@pytest.mark.parametrize("schedule", [False, True])
def test_set_clip_hooks(stock, real, lora, sanitize_clip, encoded, error, schedule):
    hooks = stock("comfy_extras.nodes_hooks")
    sanitized = sanitize_clip(real)
    own = encoded("a boat", sanitized)[0][0]
    [group] = hooks.CreateHookLora().create_hook(lora(real), 1.0, 0.8)
    [hooked] = hooks.SetClipHooks().apply_hooks(sanitized, schedule, True, hooks=group)
    with pytest.raises(error, match="hooks"):
        encoded("a boat", hooked)
    assert torch.equal(encoded("a boat", sanitized)[0][0], own), "nothing of the hook is left"


def test_hooks_on_the_model_alone_are_passed_on(stock, real, lora, sanitize_clip, encoded, error):
    hooks = stock("comfy_extras.nodes_hooks")
    sanitized = sanitize_clip(real)
    [group] = hooks.CreateHookLora().create_hook(lora(real), 1.0, 0.0)
    [hooked] = hooks.SetClipHooks().apply_hooks(sanitized, False, True, hooks=group)
    try:
        [[cond, extras]] = encoded("a boat", hooked)
    except error:
        return  # refused for nothing, but not passed
    assert torch.equal(cond, encoded("a boat", sanitized)[0][0])
    assert extras["hooks"] is group


@pytest.mark.parametrize("name", ["CLIPMergeSimple", "CLIPAdd", "CLIPSubtract"])
def test_merging(stock, real, helper, sanitize_clip, encoded, error, name):
    node = getattr(stock("comfy_extras.nodes_model_merging"), name)()
    inputs = {"CLIPMergeSimple": {"ratio": 0.5}, "CLIPSubtract": {"multiplier": 0.5}}.get(name, {})
    sanitized = sanitize_clip(real)
    own = encoded("a boat", sanitized)[0][0]
    # The sanitized CLIP second: the result would be a plain CLIP, so the node itself fails.
    with pytest.raises(error, match="weights of the sanitized CLIP"):
        node.merge(real, sanitized, **inputs)
    # First: the result is sanitized, and another encoder.
    other = real.clone()
    other.add_patches(patch_of(real), 1.0)
    [merged] = node.merge(sanitized, other, **inputs)
    with pytest.raises(error, match="patches to its weights"):
        encoded("a boat", merged)
    assert torch.equal(encoded("a boat", sanitized)[0][0], own)
