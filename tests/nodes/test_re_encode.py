"""Sanitize CLIP in mode re-encode: text back from tokens, weights, chunks, what falls back, and what stays."""

import importlib.util
import logging
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

WORD = "crimson"


@pytest.fixture(scope="module")
def texts(pack):
    return pack("nodes.adapter.clip_rewrite")


@pytest.fixture(scope="module")
def node(pack):
    return pack("nodes.sanitize_clip").SanitizeCLIP


@pytest.fixture(scope="module")
def plain(pack, clip):
    """A sanitizer for the MiniLM CLIP: the word fires it, set by hand."""
    path = Path(__file__).resolve().parents[1] / "core" / "handmade.py"
    spec = importlib.util.spec_from_file_location("handmade_nodes", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.handmade(pack("nodes.adapter.clip").ComfyTextEncoder(clip))


@pytest.fixture
def sanitizer(pack, models, plain):
    """`sanitizer(…)`: the same, with the pairs of its own concept in its file, loaded as Load Sanitizer does."""

    def load(concepts=None, pairs=(("crimson", "olive", "plain"),)):
        # Of the pack's own class, which another import of the core is not.
        config = pack("sanitizer.model.config").SanitizerConfig.from_dict(plain.config.to_dict())
        values = plain.header.to_dict()
        if pairs:
            values["anchors"] = {"redness": [list(pair) for pair in pairs]}
        header = pack("sanitizer.model.header").Header.from_dict(values, ["redness"])
        own = pack("sanitizer.model.sanitizer").EmbeddingSanitizer(config, header)
        own.load_state_dict(plain.state_dict())
        pack("sanitizer.model.artifact").save(own, models / "redness.safetensors")
        return pack("nodes.adapter.handle").LoadedSanitizer.load(models / "redness.safetensors", concepts)

    return load


def encoded(clip, prompt):
    with torch.inference_mode():
        tokens = clip.tokenize(prompt) if isinstance(prompt, str) else prompt
        [[cond, extras]] = clip.encode_from_tokens_scheduled(tokens)
    return cond, extras


def sanitized(run, node, clip, sanitizer, prompt, **inputs):
    inputs = {"strength": 1.0, "threshold": 0.5, "mode": "re-encode", **inputs}
    return encoded(run(node, clip=clip, sanitizer=sanitizer, **inputs).args[0], prompt)


def test_old_workflows_rewrite(run, node, clip, sanitizer):
    own = sanitizer()
    without = run(node, clip=clip, sanitizer=own, strength=1.0, threshold=0.5).args[0]
    cond, _ = encoded(without, "a crimson dress")
    assert torch.equal(cond, sanitized(run, node, clip, own, "a crimson dress", mode="rewrite")[0])


def test_a_flagged_prompt_is_encoded_again_with_other_words(run, node, clip, sanitizer):
    own = sanitizer()
    raw, _ = encoded(clip, "a crimson dress on a chair")
    rewritten, _ = sanitized(run, node, clip, own, "a crimson dress on a chair", mode="rewrite")
    cond, extras = sanitized(run, node, clip, own, "a crimson dress on a chair")
    assert cond.shape == raw.shape and cond.dtype == raw.dtype
    assert not torch.equal(cond, raw) and not torch.equal(cond, rewritten)
    tokens = extras["embedding_sanitizer"]["tokens"]
    assert "dress" in tokens and "crimson" not in tokens


def test_harmless_prompts_and_strength_0_come_back_bit_for_bit(run, node, clip, sanitizer):
    own = sanitizer()
    for prompt, strength in (("a fox in the snow", 1.0), ("a crimson dress", 0.0)):
        raw, _ = encoded(clip, prompt)
        assert torch.equal(sanitized(run, node, clip, own, prompt, strength=strength)[0], raw)


def test_strength_acts_on_the_way_and_past_it(run, node, clip, sanitizer):
    own = sanitizer()
    raw, _ = encoded(clip, "a crimson dress")
    at = {s: sanitized(run, node, clip, own, "a crimson dress", strength=s)[0] for s in (0.25, 0.5, 2.0)}
    torch.testing.assert_close(at[0.5], raw + 2 * (at[0.25] - raw), atol=1e-4, rtol=1e-4)
    assert not torch.equal(at[2.0], sanitized(run, node, clip, own, "a crimson dress")[0])


def test_a_disguised_word_is_read(run, node, clip, sanitizer, monkeypatch, texts, pack):
    own = sanitizer()
    reader = pack("sanitizer.text.deobfuscate").Deobfuscator(["a", "dress"] * 9, [WORD])
    monkeypatch.setattr(texts, "deobfuscator", lambda: reader)
    raw, _ = encoded(clip, "a cr1ms0n dress")
    assert not torch.equal(sanitized(run, node, clip, own, "a cr1ms0n dress", mode="rewrite")[0], raw)
    cond, extras = sanitized(run, node, clip, own, "a cr1ms0n dress")
    assert not torch.equal(cond, raw)
    assert "dress" in extras["embedding_sanitizer"]["tokens"]


def test_several_chunks(run, node, clip, sanitizer):
    prompt = "an old wooden door in the garden, " * 20 + "a crimson dress"
    raw, _ = encoded(clip, prompt)
    cond, _ = sanitized(run, node, clip, sanitizer(), prompt)
    assert raw.shape[1] > 77 and cond.shape[1] % 77 == 0
    assert not torch.equal(cond[:, -77:], raw[:, -77:])


def test_an_embedding_falls_back_to_rewriting_and_says_so(run, node, clip, sanitizer, caplog):
    own = sanitizer()
    tokens = clip.tokenize("a crimson dress")
    vector = clip.cond_stage_model.clip_l.transformer.get_input_embeddings().weight[2003].detach().clone()

    def with_vector(mode):
        # The stand-in's encoder takes ids only; it is enough that the tokens hold something else.
        changed = {"l": [[*tokens["l"][0][:-1], (vector, 1.0)]]}
        model = run(node, clip=clip, sanitizer=own, strength=1.0, threshold=0.5, mode=mode).args[0].cond_stage_model
        real = model.unsanitized.encode_token_weights
        model.unsanitized = SimpleNamespace(encode_token_weights=lambda _: real(tokens))
        with torch.inference_mode():
            return model.encode_token_weights(changed)[0]

    with caplog.at_level(logging.WARNING):
        again = with_vector("re-encode")
    assert "Rewritten instead of re-encoded" in caplog.text
    assert torch.equal(again, with_vector("rewrite"))
    assert not torch.equal(again, encoded(clip, "a crimson dress")[0])


def test_tokens_that_no_text_gives_fall_back(run, node, clip, sanitizer):
    """Chunks that a node put together."""
    own = sanitizer()
    tokens = {"l": clip.tokenize("a crimson dress")["l"] + clip.tokenize("a fox")["l"]}
    cond, _ = sanitized(run, node, clip, own, tokens)
    assert torch.equal(cond, sanitized(run, node, clip, own, tokens, mode="rewrite")[0])
    assert not torch.equal(cond, encoded(clip, tokens)[0])


def test_a_concept_whose_pairs_are_not_known_stops_the_run(run, node, clip, sanitizer, pack):
    own = sanitizer(pairs=())
    error = pack("sanitizer.errors").SanitizerError
    with pytest.raises(error, match=r"'redness'.*mode rewrite"):
        run(node, clip=clip, sanitizer=own, strength=1.0, threshold=0.5, mode="re-encode")
    run(node, clip=clip, sanitizer=own, strength=1.0, threshold=0.5, mode="rewrite")


def test_targets_are_encoded_once_and_no_clip_is_kept(run, node, clip, sanitizer, texts):
    own = sanitizer()
    sanitized(run, node, clip, own, "a crimson dress")
    index = texts.replacements_of(own)
    assert index.encoder is None and set(index._vectors) == {"redness"}
    before = index._vectors["redness"]
    sanitized(run, node, clip, own, "a crimson chair")
    assert texts.replacements_of(own)._vectors["redness"] is before


def test_two_in_a_row(run, node, clip, sanitizer, loaded, pack):
    """The second one encodes again through the first, so that nothing comes back."""
    own = sanitizer()
    fingerprint = pack("nodes.adapter.clip").ComfyTextEncoder(clip).fingerprint
    other = loaded(width=fingerprint.width, pooled=fingerprint.pooled_width, fingerprint=fingerprint)
    first = run(node, clip=clip, sanitizer=other, strength=1.0, threshold=0.5).args[0]
    cond, _ = sanitized(run, node, first, own, "a crimson dress")
    assert not torch.equal(cond, sanitized(run, node, clip, own, "a crimson dress")[0])


class Weighted:
    """A tokenizer of whole words that reads (word:1.3) and escaped brackets, for two text encoders."""

    def __init__(self, lower=True):
        self.ids = {"<s>": 0, "<e>": 1}
        self.lower = lower
        pieces = SimpleNamespace(start_token=0, end_token=1, pad_token=1, tokenizer=SimpleNamespace())
        pieces.inv_vocab = {}
        self.clip_l, self.t5xxl = pieces, SimpleNamespace(**{**vars(pieces), "start_token": None, "inv_vocab": {}})

    def tokenize(self, text):
        chunks = {"l": [(0, 1.0)], "t5xxl": []}
        for part in re.finditer(r"\(((?:[^()\\]|\\.)*):([\d.]+)\)|((?:[^()\\]|\\.)+)", text):
            weight = float(part[2]) if part[2] else 1.0
            for word in re.sub(r"\\([()])", r"\1", part[1] or part[3]).split():
                for key, piece, mark in (("l", self.clip_l, "</w>"), ("t5xxl", self.t5xxl, "▁")):
                    own = f"{word.lower()}{mark}" if key == "l" else mark + word
                    number = self.ids.setdefault((key, own), len(self.ids))
                    piece.inv_vocab[number] = own
                    chunks[key].append((number, weight))
        return {key: [[*own, (1, 1.0)]] for key, own in chunks.items()}

    @property
    def clip(self):
        return SimpleNamespace(tokenizer=self, tokenize=self.tokenize)


@pytest.mark.parametrize("text", ["a red Boat", "a (red Boat:1.3) by the (sea:0.7)", r"a \(red\) Boat", "(red:1.21)"])
def test_the_text_comes_back_from_tokens_and_weights(texts, text):
    clip = Weighted().clip
    found = texts.prompt_of(clip, clip.tokenize(text))
    assert clip.tokenize(texts.marked(*found)) == clip.tokenize(text)
    assert found.text == text.replace("\\", "").replace("(red Boat:1.3)", "red Boat").replace(
        "(sea:0.7)", "sea"
    ).replace("(red:1.21)", "red")


def test_other_texts_for_other_encoders_are_no_text(texts):
    clip = Weighted().clip
    tokens = {**clip.tokenize("a red boat"), "t5xxl": clip.tokenize("a blue boat")["t5xxl"]}
    assert texts.prompt_of(clip, tokens) is None
    assert texts.prompt_of(clip, clip.tokenize("")) is None


def test_weights_stay_on_the_words_that_stay(texts):
    clip = Weighted().clip
    prompt = texts.prompt_of(clip, clip.tokenize("a (naked woman:1.3) by the (sea:0.7)"))
    weights = texts.carried(prompt, "a fully clothed woman by the sea")
    marked = texts.marked("a fully clothed woman by the sea", weights)
    assert marked == "a fully clothed (woman:1.3) by the (sea:0.7)"
    assert {key: [w for _, w in own[0]] for key, own in clip.tokenize(marked).items()} == {
        "l": [1, 1, 1, 1, 1.3, 1, 1, 0.7, 1],
        "t5xxl": [1, 1, 1, 1.3, 1, 1, 0.7, 1],
    }


@pytest.fixture
def said(pack, monkeypatch):
    """What the node says, newest last."""
    found = []
    module = pack("nodes.sanitize_clip")
    monkeypatch.setattr(module, "send", lambda node, *messages, sanitizer: found.append([m["text"] for m in messages]))
    return found


def test_each_prompt_is_told_of(run, node, clip, sanitizer, monkeypatch, texts, pack, said):
    reader = pack("sanitizer.text.deobfuscate").Deobfuscator(["a", "dress"] * 9, [WORD])
    monkeypatch.setattr(texts, "deobfuscator", lambda: reader)
    for mode, did in (("rewrite", "rows changed at strength 1"), ("re-encode", "re-encoded as “a dress”")):
        safe = run(node, clip=clip, sanitizer=sanitizer(), strength=1.0, threshold=0.5, mode=mode).args[0]
        for prompt in ("a fox", "a crimson dress", "a cr1ms0n dress", "a fox " * 40):
            encoded(safe, prompt)
        fox, dress, disguised, long = said[-1]
        assert fox.startswith("“a fox”: Harmless")
        assert dress.startswith("“a crimson dress”: Erased redness") and did in dress
        assert "“a cr1ms0n dress”, read as “a crimson dress”: Erased redness" in disguised
        assert long.startswith("“" + "a fox " * 9) and long.index("…") == 60
        assert len(said[-1]) == 4 and len(said[-2]) == 3
    encoded(safe, {"l": clip.tokenize("a crimson dress")["l"] + clip.tokenize("a fox")["l"]})
    assert said[-1][-1].startswith("A prompt: Erased redness") and "Rewritten instead of re-encoded" in said[-1][-1]
