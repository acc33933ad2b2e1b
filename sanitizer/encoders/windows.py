"""Long prompts: token windows in, joined rows out, the way ComfyUI feeds a text encoder of limited length."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import SanitizerError
from .base import Encoding

WINDOWS_PER_CALL = 64


@dataclass(frozen=True)
class WindowLayout:
    """How an encoder wants its token ids. `rows` None: the whole prompt at once (T5 has no length limit)."""

    rows: int | None
    """Rows of a window, special tokens included."""
    start: tuple[int, ...]
    end: tuple[int, ...]
    pad: int
    fixed: bool
    """True: every window is padded to `rows` and the padding is visible (CLIP). False: padding is masked."""


@dataclass
class _Window:
    prompt: int
    ids: list[int]
    tokens: list[str]
    offsets: list[tuple[int, int]]


def _split(prompt: int, ids: list[int], tokens: list[str], offsets: list[tuple[int, int]], layout: WindowLayout):
    room = len(ids) or 1
    if layout.rows is not None:
        room = layout.rows - len(layout.start) - len(layout.end)
    none = (0, 0)
    for first in range(0, max(len(ids), 1), room):
        part = slice(first, first + room)
        window = _Window(
            prompt,
            [*layout.start, *ids[part], *layout.end],
            [*[""] * len(layout.start), *tokens[part], *[""] * len(layout.end)],
            [*[none] * len(layout.start), *offsets[part], *[none] * len(layout.end)],
        )
        if layout.fixed:
            missing = layout.rows - len(window.ids)
            window.ids += [layout.pad] * missing
            window.tokens += [""] * missing
            window.offsets += [none] * missing
        yield window


def encode_windows(
    prompts: Sequence[str],
    tokenizer,
    layout: WindowLayout,
    run: Callable[[Tensor, Tensor], tuple[Tensor, Tensor | None]],
    width: int,
) -> Encoding:
    """Tokenise with a fast transformers tokenizer, run the model window by window, join the windows on rows.

    `run` takes ids (N, L) and mask (N, L) and gives rows (N, L, width) and a pooled vector (N, P) or None; the pooled
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
        for row, index in enumerate(part):
            own = windows[index].ids
            ids[row, : len(own)] = torch.tensor(own)
            mask[row, : len(own)] = True
        rows, vectors = run(ids, mask)
        for row, index in enumerate(part):
            encoded[index] = rows[row, : len(windows[index].ids)]
            pooled[index] = None if vectors is None else vectors[row]
    return _join(len(prompts), windows, encoded, pooled, width)


def _join(count: int, windows: list[_Window], encoded: list[Tensor], pooled: list, width: int) -> Encoding:
    lengths = [0] * count
    for window in windows:
        lengths[window.prompt] += len(window.ids)
    longest = max(lengths)
    rows = encoded[0].new_zeros((count, longest, width))
    mask = torch.zeros((count, longest), dtype=torch.bool, device=rows.device)
    tokens: list[list[str]] = [[] for _ in range(count)]
    offsets: list[list[tuple[int, int]]] = [[] for _ in range(count)]
    vectors: list = [None] * count
    for window, values, vector in zip(windows, encoded, pooled, strict=True):
        at = len(tokens[window.prompt])
        rows[window.prompt, at : at + len(values)] = values
        mask[window.prompt, at : at + len(values)] = True
        tokens[window.prompt] += window.tokens
        offsets[window.prompt] += window.offsets
        if vectors[window.prompt] is None:
            vectors[window.prompt] = vector
    for index, length in enumerate(lengths):
        tokens[index] += [""] * (longest - length)
        offsets[index] += [(0, 0)] * (longest - length)
    joined = None if vectors[0] is None else torch.stack(vectors)
    return Encoding(rows=rows, mask=mask, pooled=joined, tokens=tokens, offsets=offsets)
