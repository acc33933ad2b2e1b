"""What score, sanitize and demo share: an encoder with its sanitizer, and results prompt by prompt."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .. import artifact, heatmap
from ..encoders import TextEncoder, load_encoder
from ..errors import SanitizerError
from ..model import EmbeddingSanitizer
from .readers import batches

SPAN, SPAN_CHARACTERS = 256, 100_000
"""Prompts (and characters) that are held at once and encoded in order of length, which saves padding."""
BATCH, BATCH_CHARACTERS = 32, 20_000


@dataclass(frozen=True)
class Result:
    """One prompt, without the padding that its batch had. l rows, D channels, K concepts, P pooled channels."""

    prompt: str
    rows: Tensor
    """(l, D), zero where the mask is False."""
    sanitized: Tensor
    """(l, D)."""
    mask: Tensor
    """(l,) bool."""
    pooled: Tensor | None
    """(P,)."""
    pooled_sanitized: Tensor | None
    prompt_scores: Tensor
    """(K,) float32."""
    token_scores: Tensor
    """(l, K) float32."""
    flagged: bool
    fired: tuple[str, ...]
    """Concepts that reached the threshold, the highest score first."""
    tokens: list[str]
    offsets: list[tuple[int, int]]
    concepts: tuple[str, ...]
    """Names of the K concepts."""

    def scores(self) -> dict[str, float]:
        return dict(zip(self.concepts, self.prompt_scores.tolist(), strict=True))

    def words(self) -> list[heatmap.Word]:
        return heatmap.words(self.prompt, self.tokens, self.offsets, self.token_scores, self.concepts)


def load_pair(
    encoder_name: str,
    sanitizer_name: str,
    device: str = "cpu",
    folders: Sequence[Path] = (artifact.WEIGHTS_FOLDER,),
) -> tuple[TextEncoder, EmbeddingSanitizer, Path]:
    """The encoder, the sanitizer that fits it, and the sanitizer's file; "auto" searches the folders.

    Raises SanitizerError where there is none, or where the file was trained on another encoder.
    """
    check_device(device)
    explicit = None if sanitizer_name == "auto" else Path(sanitizer_name)
    if explicit is not None:
        artifact.read_info(explicit)  # refused before the encoder is loaded, which may take minutes
    encoder = load_encoder(encoder_name, device=device)
    path = explicit or artifact.find(encoder.fingerprint, folders)
    if path is None:
        places = ", ".join(str(folder) for folder in folders)
        raise SanitizerError(
            f"No sanitizer for the encoder {encoder_name}, {encoder.fingerprint}, in {places}. Train one: "
            f"python -m sanitizer train --encoder {encoder_name} --concepts all --output NAME.safetensors, "
            "and give it with --sanitizer NAME.safetensors or put it into that folder."
        )
    sanitizer = artifact.load(path, device=device)
    if sanitizer.fingerprint != encoder.fingerprint:
        raise SanitizerError(
            f"{path}: trained on {sanitizer.fingerprint}, but the encoder {encoder_name} is {encoder.fingerprint}. "
            "Choose the encoder it was trained on, another file, or --sanitizer auto."
        )
    return encoder, sanitizer, path


def check_device(name: str) -> None:
    """Raises SanitizerError for a device that torch does not know or that this machine lacks."""
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise SanitizerError(f"Device {name!r}: cannot be used here ({first}). Try --device cpu.") from error


@torch.inference_mode()
def process(
    encoder: TextEncoder,
    sanitizer: EmbeddingSanitizer,
    prompts: Iterable[str],
    *,
    strength: float = 0.0,
    threshold: float | None = None,
    concepts: Sequence[str] | None = None,
) -> Iterator[Result]:
    """Encode, score and sanitize prompts in their order, holding no more than a few hundred of them.

    At strength 0 the rows come back unchanged, and only the score net runs.
    """
    for span in batches(prompts, SPAN, SPAN_CHARACTERS):
        found: dict[int, Result] = {}
        order = sorted(range(len(span)), key=lambda i: len(span[i]))
        for index in _groups(order, span):
            chosen = [span[i] for i in index]
            results = _batch(encoder, sanitizer, chosen, strength, threshold, concepts)
            found.update(zip(index, results, strict=True))
        for i in range(len(span)):
            # Popped, so that a consumer that is slow does not keep the span in memory twice.
            yield found.pop(i)


def _groups(order: Sequence[int], span: Sequence[str]) -> Iterator[list[int]]:
    """Indices of similar length; the longest prompt times the number stays below BATCH_CHARACTERS."""
    group: list[int] = []
    for i in order:
        if group and (len(group) == BATCH or (len(group) + 1) * len(span[i]) > BATCH_CHARACTERS):
            yield group
            group = []
        group.append(i)
    yield group


def _batch(encoder, sanitizer, prompts, strength, threshold, concepts) -> Iterator[Result]:
    encoding = encoder.encode(prompts)
    mask = encoding.mask.cpu()
    out = sanitizer.sanitize(
        encoding.rows, encoding.mask, encoding.pooled, strength=strength, threshold=threshold, concepts=concepts
    )
    rows, sanitized = encoding.rows.cpu(), out.rows.cpu()
    prompt_scores, token_scores = out.scores.prompt.cpu(), out.scores.tokens.cpu()
    pooled, pooled_out = (None if v is None else v.cpu() for v in (encoding.pooled, out.pooled))
    flagged, fired = out.flagged.tolist(), out.fired.tolist()
    for b, prompt in enumerate(prompts):
        visible = mask[b].nonzero().squeeze(1)
        length = int(visible[-1]) + 1 if len(visible) else 0
        seen = mask[b, :length, None]
        scores = prompt_scores[b].tolist()
        hit = sorted((k for k, yes in enumerate(fired[b]) if yes), key=lambda k: -scores[k])
        # Clones: a slice would keep the whole padded batch in memory.
        yield Result(
            prompt=prompt,
            rows=torch.where(seen, rows[b, :length], 0.0),
            sanitized=torch.where(seen, sanitized[b, :length], 0.0),
            mask=mask[b, :length].clone(),
            pooled=None if pooled is None else pooled[b].clone(),
            pooled_sanitized=None if pooled_out is None else pooled_out[b].clone(),
            prompt_scores=prompt_scores[b].clone(),
            token_scores=token_scores[b, :length].clone(),
            flagged=flagged[b],
            fired=tuple(sanitizer.concepts[k] for k in hit),
            tokens=encoding.tokens[b][:length],
            offsets=[tuple(offset) for offset in encoding.offsets[b][:length]],
            concepts=sanitizer.concepts,
        )
