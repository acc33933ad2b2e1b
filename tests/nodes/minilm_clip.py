"""A CLIP object around an embedded encoder (`minilm-causal` or `minilm`): the same rows as the encoder gives, through
ComfyUI's CLIP class, real or stand-in."""

import torch
from comfy.sd import CLIP
from comfy.sd1_clip import ClipTokenWeightEncoder


class _Encoder(torch.nn.Module, ClipTokenWeightEncoder):
    special_tokens = {"start": 101, "end": 102, "pad": 102}  # noqa: RUF012

    def __init__(self, encoder) -> None:
        super().__init__()
        self.transformer = encoder.model
        self.layer, self.layer_idx = "last", None
        # As in Stable Diffusion 1.5: clip-skip -1 is the last layer.
        self.layer_norm_hidden_state = True

    def forward(self, tokens):
        ids = torch.tensor(tokens)
        cache = {"use_cache": False} if self.transformer.config.is_decoder else {}
        rows = self.transformer(input_ids=ids, attention_mask=torch.ones_like(ids), **cache).last_hidden_state
        return rows, None

    def encode(self, tokens):
        return self(tokens)


class _TextModel(torch.nn.Module):
    def __init__(self, encoder) -> None:
        super().__init__()
        self.clip_l = _Encoder(encoder)
        self.dtypes = {torch.float32}

    def set_clip_options(self, options) -> None:
        if "layer" in options:
            self.clip_l.layer, self.clip_l.layer_idx = "hidden", options["layer"]

    def reset_clip_options(self) -> None:
        self.clip_l.layer, self.clip_l.layer_idx = "last", None

    def encode_token_weights(self, tokens):
        return self.clip_l.encode_token_weights(tokens["l"])


class _Pieces:
    start_token, end_token, pad_token = 101, 102, 102

    def __init__(self, tokenizer) -> None:
        self.tokenizer = tokenizer
        self.inv_vocab = {index: token for token, index in tokenizer.get_vocab().items()}


class _Tokenizer:
    def __init__(self, encoder) -> None:
        self.clip_l = _Pieces(encoder.tokenizer)
        self.layout = encoder.layout

    def tokenize_with_weights(self, text, return_word_ids=False, **_options):
        ids = self.clip_l.tokenizer(text, add_special_tokens=False)["input_ids"]
        chunks = []
        room = self.layout.length - 2
        for first in range(0, max(1, len(ids)), room):
            own = [101, *ids[first : first + room], 102]
            padding = self.layout.length - len(own) if self.layout.fixed else 0
            chunks.append([(token, 1.0) for token in own + [102] * padding])
        return {"l": chunks}


def make_clip(encoder):
    class Target:
        params: dict = {}  # noqa: RUF012

        @staticmethod
        def clip(**_options):
            return _TextModel(encoder)

        @staticmethod
        def tokenizer(**_options):
            return _Tokenizer(encoder)

    return CLIP(Target, embedding_directory=None)
