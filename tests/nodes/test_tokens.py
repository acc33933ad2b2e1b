"""Tokens of rows, spans in the prompt."""

from types import SimpleNamespace

import pytest


class Pieces:
    """A sub-tokenizer as ComfyUI's SDTokenizer presents itself."""

    def __init__(self, vocabulary, start=None, end=None, pad=None):
        self.inv_vocab = dict(enumerate(vocabulary))
        self.start_token, self.end_token, self.pad_token = start, end, pad
        self.tokenizer = SimpleNamespace(all_special_ids=[])


CLIP_L = Pieces(["!", "nude</w>", "por", "trait</w>", "<s>", "<e>"], start=4, end=5, pad=5)
CLIP_G = Pieces(["!", "nude</w>", "por", "trait</w>", "<s>", "<e>"], start=4, end=5, pad=0)
T5 = Pieces(["<pad>", "</s>", "▁nude", "▁por", "trait"], end=1, pad=0)


def clip_of(**tokenizers):
    return SimpleNamespace(tokenizer=SimpleNamespace(**tokenizers))


def chunk(*ids):
    return [(token, 1.0) for token in ids]


@pytest.fixture(scope="module")
def tokens(pack):
    return pack("nodes.adapter.tokens")


def test_clip_start_end_and_padding_are_blank(tokens):
    found = tokens.row_tokens(clip_of(clip_l=CLIP_L), {"l": [chunk(4, 1, 2, 3, 5, 5, 5)]}, 7)
    assert found == ["", "nude</w>", "por", "trait</w>", "", "", ""]


def test_clip_g_pads_with_the_id_of_a_real_token(tokens):
    both = {"g": [chunk(4, 1, 0, 5, 0, 0)], "l": [chunk(4, 1, 0, 5, 5, 5)]}
    found = tokens.row_tokens(clip_of(clip_l=CLIP_L, clip_g=CLIP_G), both, 6)
    assert found == ["", "nude</w>", "!", "", "", ""]


def test_t5_follows_clip_in_sd3_and_replaces_it_in_flux(tokens):
    clip = clip_of(clip_l=CLIP_L, clip_g=CLIP_G, t5xxl=T5)
    both = {"g": [chunk(4, 1, 5)], "l": [chunk(4, 1, 5)], "t5xxl": [chunk(2, 1, 0, 0)]}
    assert tokens.row_tokens(clip, both, 7) == ["", "nude</w>", "", "▁nude", "", "", ""]
    flux = {"l": [chunk(4, 1, 5)], "t5xxl": [chunk(2, 3, 4, 1, 0)]}
    assert tokens.row_tokens(clip, flux, 5) == ["▁nude", "▁por", "trait", "", ""]


def test_template_that_a_language_model_cuts_off_the_front(tokens):
    clip = clip_of(qwen=Pieces(["<im>", "Ġdescribe", "Ġnude", "Ġwoman", "<pad>"], pad=4))
    assert tokens.row_tokens(clip, {"qwen": [chunk(0, 1, 2, 3, 4)]}, 3) == ["Ġnude", "Ġwoman", ""]


def test_several_chunks_and_embeddings(tokens):
    import torch

    two = {"l": [chunk(4, 1, 5), [(4, 1.0), (torch.zeros(8), 1.0), (5, 1.0)]]}
    found = tokens.row_tokens(clip_of(clip_l=CLIP_L), two, 6)
    assert found == ["", "nude</w>", "", "", tokens.EMBEDDING, ""]


def test_an_unknown_arrangement_gives_blanks_not_wrong_words(tokens):
    assert tokens.row_tokens(clip_of(clip_l=CLIP_L), {"l": [chunk(4, 1, 5)]}, 9) == [""] * 9


@pytest.mark.parametrize(
    ("prompt", "strings", "spans"),
    [
        ("A Nude portrait", ["a</w>", "nude</w>", "por", "trait</w>"], [(0, 1), (2, 6), (7, 10), (10, 15)]),
        ("(nude:1.3) 3 men", ["nude</w>", "3</w>", "men</w>"], [(1, 5), (11, 12), (13, 16)]),
        ("café déjà", ["cafÃ©</w>", "dÃ©", "j", "Ãł</w>"], [(0, 4), (5, 7), (7, 8), (8, 9)]),
        ("ﬁne İce", ["▁fi", "ne", "▁i̇ce"], [(0, 1), (1, 3), (4, 7)]),
        ("a b", ["", "a</w>", "x</w>", "b</w>"], [(0, 0), (0, 1), (0, 0), (2, 3)]),
        ("a b", ["a</w>", "b</w>", "", "▁a", "▁b"], [(0, 1), (2, 3), (0, 0), (0, 1), (2, 3)]),
    ],
)
def test_spans(tokens, prompt, strings, spans):
    assert tokens.spans(prompt, strings) == spans


def test_weights_are_no_words(tokens):
    assert tokens.without_weights(r"a (red:1.3) ((boat)), \(1900\)") == "a red boat, (1900)"


@pytest.mark.parametrize(
    ("strings", "text"),
    [
        (["", "a</w>", "por", "trait</w>", "", ""], "a portrait"),
        (["▁a", "▁por", "trait", ""], "a portrait"),
        (["▁on", "▁", "a", "▁table", "▁", ","], "on a table ,"),
        (["a", "por", "##trait"], "a portrait"),
        (["Ġa", "Ġpor", "trait"], "a portrait"),
        (["a</w>", "[embedding]", "cat</w>"], "a [embedding] cat"),
    ],
)
def test_rebuild(tokens, strings, text):
    found, offsets = tokens.rebuild(strings)
    assert found == text
    for token, (start, end) in zip(strings, offsets, strict=True):
        expected = token if token == tokens.EMBEDDING else tokens.surface(token)[0]
        assert found[start:end] == expected


def test_the_same_tokens_with_weight_1(pack):
    plain = pack("nodes.adapter.tokens").without_weights_of
    tokens = {"l": [[(1, 1.0), (2, 0.3, 7)]], "t5xxl": [[(1, 1.0)]], "lm_metadata": {"seed": 3}}
    assert plain(tokens) == {"l": [[(1, 1.0), (2, 1.0, 7)]], "t5xxl": [[(1, 1.0)]], "lm_metadata": {"seed": 3}}
    assert plain({"l": [[(1, 1.0)]]}) is None
