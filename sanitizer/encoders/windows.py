"""Long prompts: token windows in, joined embeddings out, the way ComfyUI feeds a text encoder of limited length."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import SanitizerError
from .base import Encoding, Fingerprint, hash_weights

WINDOWS_PER_CALL = 64


@dataclass(frozen=True)
class WindowLayout:
    """How an encoder wants its token ids. `length` None: the whole prompt at once (T5 has no length limit)."""

    length: int | None
    """Tokens of a window, special ones included."""
    start: tuple[int, ...]
    end: tuple[int, ...]
    pad: int
    fixed: bool
    """True: every window is padded to `length` and the padding is visible (CLIP). False: padding is masked."""


class WindowedEncoder:
    """A text encoder around a torch model and its tokenizer. A subclass sets the attributes and says how to run it."""

    layout: WindowLayout
    width: int
    pooled_width = 0
    architecture: str

    def __init__(self, name: str, device: str, model: torch.nn.Module, tokenizer) -> None:
        self.name = name
        self.device = device
        self.model = model.to(device=device).eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self._fingerprint: Fingerprint | None = None

    @property
    def fingerprint(self) -> Fingerprint:
        if self._fingerprint is None:
            self._fingerprint = Fingerprint(
                self.architecture, self.width, self.pooled_width, hash_weights(self.model.named_parameters())
            )
        return self._fingerprint

    def encode(self, prompts: Sequence[str]) -> Encoding:
        with torch.inference_mode():
            return encode_windows(prompts, self.tokenizer, self.layout, self._run)

    def run_tokens(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor | None]:
        """Token ids (N, L), special tokens and padding among them, and mask (N, L) -> embeddings (N, L, D) and pooled
        vector (N, P) or None. Gradients reach the embeddings, unless the caller forbids them; the weights have none."""
        return self._run(ids, mask)

    def _run(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor | None]:
        raise NotImplementedError


@dataclass
class _Window:
    prompt: int
    ids: list[int]
    tokens: list[str]
    offsets: list[tuple[int, int]]


def _split(prompt: int, ids: list[int], tokens: list[str], offsets: list[tuple[int, int]], layout: WindowLayout):
    room = len(ids) or 1
    if layout.length is not None:
        room = layout.length - len(layout.start) - len(layout.end)
    none = (0, 0)
    for first in range(0, max(len(ids), 1), room):
        part = slice(first, first + room)
        window = _Window(
            prompt,
            [*layout.start, *ids[part], *layout.end],
            [*[""] * len(layout.start), *tokens[part], *[""] * len(layout.end)],
            [*[none] * len(layout.start), *offsets[part], *[none] * len(layout.end)],
        )
        if layout.fixed and layout.length is not None:
            missing = layout.length - len(window.ids)
            window.ids += [layout.pad] * missing
            window.tokens += [""] * missing
            window.offsets += [none] * missing
        yield window


def encode_windows(
    prompts: Sequence[str],
    tokenizer,
    layout: WindowLayout,
    run: Callable[[Tensor, Tensor], tuple[Tensor, Tensor | None]],
) -> Encoding:
    """Tokenise as a fast tokenizer of transformers does, run the model window by window, join the windows of a prompt.

    `run` takes ids (N, L) and mask (N, L) and gives embeddings (N, L, D) and a pooled vector (N, P) or None; the pooled
    vector of a prompt is its first window's, as in ComfyUI.
    """
    if not prompts:
        raise SanitizerError("Nothing to encode: expected at least one prompt, found none.")
    for index, prompt in enumerate(prompts):
        if not isinstance(prompt, str):
            raise SanitizerError(f"Prompt {index + 1}: expected text, found {type(prompt).__name__}.")
    # A lone surrogate is no text to the tokenizer, which would stop with a traceback.
    texts = [prompt.encode("utf-8", "replace").decode("utf-8") for prompt in prompts]
    batch = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    windows = [
        window
        for index, ids in enumerate(batch["input_ids"])
        for window in _split(
            index,
            ids,
            tokenizer.convert_ids_to_tokens(ids),
            [tuple(offset) for offset in batch["offset_mapping"][index]],
            layout,
        )
    ]
    encoded: list[Tensor] = [torch.empty(0)] * len(windows)
    pooled: list[Tensor | None] = [None] * len(windows)
    order = sorted(range(len(windows)), key=lambda index: len(windows[index].ids))
    for first in range(0, len(order), WINDOWS_PER_CALL):
        part = order[first : first + WINDOWS_PER_CALL]
        length = max(len(windows[index].ids) for index in part)
        ids = torch.full((len(part), length), layout.pad)
        mask = torch.zeros((len(part), length), dtype=torch.bool)
        for place, index in enumerate(part):
            own = windows[index].ids
            ids[place, : len(own)] = torch.tensor(own)
            mask[place, : len(own)] = True
        embeddings, vectors = run(ids, mask)
        for place, index in enumerate(part):
            encoded[index] = embeddings[place, : len(windows[index].ids)]
            pooled[index] = None if vectors is None else vectors[place]
    return _join(len(prompts), windows, encoded, pooled)


def _join(count: int, windows: list[_Window], encoded: list[Tensor], pooled: list[Tensor | None]) -> Encoding:
    own: list[list[int]] = [[] for _ in range(count)]
    for place, window in enumerate(windows):
        own[window.prompt].append(place)
    return Encoding.cat(
        [
            Encoding(
                torch.cat([encoded[i] for i in places])[None],
                torch.ones(1, sum(len(windows[i].ids) for i in places), dtype=torch.bool),
                None if (vector := pooled[places[0]]) is None else vector[None],
                [[token for i in places for token in windows[i].tokens]],
                [[span for i in places for span in windows[i].offsets]],
            )
            for places in own
        ]
    )
