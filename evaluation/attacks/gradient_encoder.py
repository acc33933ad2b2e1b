"""What a gradient attack needs of an encoder: token ids in, embeddings out, and the gradient of the tokens.

V words of the vocabulary, N sequences of K tokens, L token embeddings with special tokens
and padding, D channels, P pooled.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from sanitizer.encoders import TextEncoder
from sanitizer.errors import SanitizerError

Loss = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""Token embeddings (N, L, D), mask (N, L), pooled (N, P) or None -> (N,)."""

AT_ONCE = 128


class TokenEncoder(Protocol):
    """A text encoder seen through its tokens."""

    words: list[str]
    """V strings: what each token says where it stands alone."""
    allowed: Tensor
    """(V,) bool: tokens that stand for a word of their own. Sequences of them survive being written out and read."""

    def texts(self, ids: Tensor) -> list[str]:
        """(N, K) -> N prompts."""
        ...

    def read(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids that the prompts have when they are typed in."""
        ...


class GradientEncoder(TokenEncoder, Protocol):
    """One whose gradient can be had."""

    def losses(self, ids: Tensor, loss: Loss) -> Tensor:
        """(N, K) -> (N,), without gradient."""
        ...

    def gradient(self, ids: Tensor, loss: Loss) -> Tensor:
        """(K,) -> (K, V): the loss's derivative with respect to each token's share in each place."""
        ...


class TransformersTokens:
    """A GradientEncoder around the encoders of sanitizer.encoders.transformers, of all their families.

    The gradient is taken where the model's own embedding layer gives its output, so whatever comes before and after
    it is the encoder's.
    """

    def __init__(self, encoder) -> None:
        self.encoder = encoder
        self.tokenizer, self.layout = encoder.tokenizer, encoder.layout
        self.embedding = encoder.model.get_input_embeddings()
        # T5 has it twice: the same weights in a module that the encoder calls and in one that it does not.
        tables = (module for module in encoder.model.modules() if isinstance(module, torch.nn.Embedding))
        self.embeddings = [table for table in tables if table.weight is self.embedding.weight]
        count = min(len(self.tokenizer), self.embedding.weight.shape[0])
        self.words = [self._written([i]) for i in range(count)]
        alone = self.read(self.words)
        special = set(self.tokenizer.all_special_ids)
        # A piece of a word, such as ##ing, reads differently where it stands alone.
        self.allowed = torch.tensor([alone[i] == [i] and i not in special for i in range(count)])

    def _written(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False).strip()

    def texts(self, ids: Tensor) -> list[str]:
        return [self._written(own) for own in ids.tolist()]

    def read(self, texts: Sequence[str]) -> list[list[int]]:
        return self.tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]

    def losses(self, ids: Tensor, loss: Loss) -> Tensor:
        found = []
        with torch.no_grad():
            for part in ids.split(AT_ONCE):
                whole, mask = self._framed(part)
                embeddings, pooled = self.encoder.run_tokens(whole, mask)
                found.append(loss(embeddings, mask, pooled).cpu())
        return torch.cat(found)

    def gradient(self, ids: Tensor, loss: Loss) -> Tensor:
        whole, mask = self._framed(ids[None])
        leaf: list[Tensor] = []

        def replace(_module, _inputs, output: Tensor) -> Tensor:
            leaf.append(output.detach().clone().requires_grad_(True))
            return leaf[0]

        hooks = [module.register_forward_hook(replace) for module in self.embeddings]
        try:
            with torch.inference_mode(False), torch.enable_grad():
                embeddings, pooled = self.encoder.run_tokens(whole, mask)
                loss(embeddings, mask, pooled).sum().backward()
        finally:
            for hook in hooks:
                hook.remove()
        start = len(self.layout.start)
        own = leaf[0].grad[0, start : start + len(ids)]
        return (own @ self.embedding.weight[: len(self.words)].T).detach().cpu()

    def _framed(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """(N, K) -> ids and mask (N, L) of one window, as sanitizer.encoders.windows makes it."""
        count, layout = len(ids), self.layout
        before = torch.tensor(layout.start, dtype=torch.long).expand(count, -1)
        after = torch.tensor(layout.end, dtype=torch.long).expand(count, -1)
        whole = torch.cat([before, ids, after], dim=1)
        if layout.length is not None and whole.shape[1] > layout.length:
            raise SanitizerError(
                f"Encoder {self.encoder.name}: expected a prompt of at most {layout.length} tokens, "
                f"found {whole.shape[1]}."
            )
        if layout.fixed:
            whole = torch.cat([whole, whole.new_full((count, layout.length - whole.shape[1]), layout.pad)], dim=1)
        return whole, torch.ones_like(whole, dtype=torch.bool)


def gradient_encoder(encoder: TextEncoder, attack: str) -> GradientEncoder:
    """The encoder's tokens and gradients. Raises SanitizerError for one that has none; `attack` is who asks."""
    if not all(hasattr(encoder, name) for name in ("run_tokens", "tokenizer", "layout", "model")):
        raise SanitizerError(
            f"Attack {attack}: expected an encoder with tokens and gradients (a CLIP, T5 or BERT-like model of "
            f"transformers), found {encoder.name}, which has none. Choose --attacks obfuscation,substitution."
        )
    return TransformersTokens(encoder)
