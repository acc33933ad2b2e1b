"""What score, sanitize and demo share: an encoder with its sanitizer, and results prompt by prompt."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from ..encoders import TextEncoder
from ..errors import SanitizerError
from ..files import sha256_of
from ..model import artifact
from ..model.quality import require
from ..model.sanitizer import EmbeddingSanitizer
from ..prompts.concepts import load_concepts
from ..prompts.templates import load_templates
from ..text.deobfuscate import Deobfuscator, deobfuscated
from ..text.replacements import Replacements
from ..text.rewrite import ReEncoder
from ..text.words import Word, words
from .io import Bars, batches, note, program

SPAN, SPAN_CHARACTERS = 256, 100_000
"""Prompts (and characters) that are held at once and encoded in order of length, which saves padding."""
BATCH, BATCH_CHARACTERS = 32, 20_000


@dataclass(frozen=True)
class Result:
    """One prompt, without the padding that its batch had. l rows, D channels, K concepts, P pooled channels."""

    prompt: str
    embeddings: Tensor
    """(l, D), zero where the mask is False."""
    sanitized: Tensor
    """(l', D); l' differs from l only where the prompt was re-encoded."""
    mask: Tensor
    """(l,) bool."""
    mask_sanitized: Tensor
    """(l',) bool."""
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

    def words(self) -> list[Word]:
        return words(self.prompt, self.tokens, self.offsets, self.token_scores, self.concepts)


@dataclass(frozen=True)
class Job:
    """What is done with prompts, as the command line says it."""

    encoder: str
    sanitizer: str = "auto"
    readings: bool = True
    """Whether prompts in disguise are also scored as they read."""
    re_encode: bool = False
    strength: float = 0.0
    threshold: float | None = None
    concepts: Sequence[str] | None = None
    """To be erased, None for all that the sanitizer erases."""
    device: str = "cpu"


class Processor:
    """A job's encoder and sanitizer, ready for prompts; errors as of :func:`load_pair`."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.encoder, self.sanitizer, self.path = load_pair(
            job.encoder, job.sanitizer, job.device, concepts=job.concepts
        )
        self._settings = {
            "strength": job.strength,
            "threshold": job.threshold,
            "concepts": job.concepts,
            "reader": default_reader(job.readings),
            "re_encoder": default_re_encoder(self.encoder, self.sanitizer, job.concepts, job.re_encode),
        }

    @cached_property
    def digest(self) -> str:
        """Of the sanitizer's file, see :func:`.files.sha256_of`."""
        return sha256_of(self.path)

    def __call__(self, prompts: Iterable[str]) -> Iterator[Result]:
        """See :func:`process`."""
        return process(self.encoder, self.sanitizer, prompts, **self._settings)


def load_pair(
    encoder_name: str,
    sanitizer_name: str,
    device: str = "cpu",
    folders: Sequence[Path] = (artifact.WEIGHTS_FOLDER,),
    concepts: Sequence[str] | None = None,
) -> tuple[TextEncoder, EmbeddingSanitizer, Path]:
    """See :func:`.model.artifact.load_pair`; also refuses a device that cannot be used, and a sanitizer that finds too
    little of the concepts, all of its own for None. Says on standard error where it is weak or was not measured."""
    check_device(device)
    if sanitizer_name != "auto":
        # Before the encoder is loaded, which may take minutes.
        info = artifact.read_info(sanitizer_name)
        require(info.header, concepts or info.erasable, sanitizer_name)
    encoder, sanitizer, path = artifact.load_pair(encoder_name, sanitizer_name, device, folders, program(), concepts)
    sanitizer.places(concepts)
    quality = require(sanitizer.header, concepts or sanitizer.erasable, str(path))
    if quality.line:
        note(f"{path.name}: {quality.line}")
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
    reader: Deobfuscator | None = None,
    re_encoder: ReEncoder | None = None,
) -> Iterator[Result]:
    """Encode, score and sanitize prompts in their order, holding no more than a few hundred of them.

    At strength 0 the rows come back unchanged, and only the score net runs. With a reader, a prompt that reads
    differently from what is written, such as n4k3d, is scored as it reads too, and the higher score counts. With a
    re-encoder, which is of this encoder and sanitizer, flagged prompts are re-encoded and not just rewritten.
    """
    for span in batches(prompts, SPAN, SPAN_CHARACTERS):
        found: dict[int, Result] = {}
        order = sorted(range(len(span)), key=lambda i: len(span[i]))
        for index in _groups(order, span):
            chosen = [span[i] for i in index]
            results = _batch(encoder, sanitizer, chosen, strength, threshold, concepts, reader, re_encoder)
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


def default_reader(wanted: bool = True) -> Deobfuscator | None:
    """A reader with the vocabulary of the pack's concept files; None where none is wanted."""
    return Deobfuscator.from_concepts(load_concepts(), load_templates()) if wanted else None


def default_re_encoder(
    encoder: TextEncoder, sanitizer: EmbeddingSanitizer, concepts: Sequence[str] | None, wanted: bool = True
) -> ReEncoder | None:
    """With the pairs of the chosen concepts, all of them for None; None where none is wanted.

    Raises SanitizerError for a concept whose pairs are not known.
    """
    if not wanted:
        return None
    with Bars() as bars:
        return ReEncoder(encoder, sanitizer, Replacements.known(encoder, sanitizer, concepts, progress=bars))


def _batch(encoder, sanitizer, prompts, strength, threshold, concepts, reader, re_encoder) -> Iterator[Result]:
    encoding = encoder.encode(prompts)
    mask = encoding.mask.cpu()
    reading = deobfuscated(encoder, sanitizer, reader, prompts, encoding)
    settings = {"strength": strength, "threshold": threshold, "concepts": concepts}
    if re_encoder is None:
        own = encoding.embeddings, encoding.mask, encoding.pooled
        out = sanitizer.sanitize(*own, **settings, also=reading.scores, trusted=True)
        mask_out = mask
    else:
        out = re_encoder.sanitize(prompts, encoding, **settings, reading=reading)
        mask_out = out.mask.cpu()
    embeddings, sanitized = encoding.embeddings.cpu(), out.embeddings.cpu()
    prompt_scores, token_scores = out.scores.prompt.cpu(), out.scores.tokens.cpu().clone()
    pooled, pooled_out = (None if v is None else v.cpu() for v in (encoding.pooled, out.pooled))
    for b, read in reading.words.items():
        # Where the reading is what fired, its words are at fault.
        if reading.scores is not None and (out.fired[b] & (reading.scores[b] >= out.scores.prompt[b])).any():
            token_scores[b] = raised(prompts[b], encoding.tokens[b], encoding.offsets[b], token_scores[b], read)
    flagged, fired = out.flagged.tolist(), out.fired.tolist()
    for b, prompt in enumerate(prompts):
        length, length_out = _length(mask[b]), _length(mask_out[b])
        scores = prompt_scores[b].tolist()
        hit = sorted((k for k, yes in enumerate(fired[b]) if yes), key=lambda k: -scores[k])
        # Clones: a slice would keep the whole padded batch in memory.
        yield Result(
            prompt=prompt,
            embeddings=torch.where(mask[b, :length, None], embeddings[b, :length], 0.0),
            sanitized=torch.where(mask_out[b, :length_out, None], sanitized[b, :length_out], 0.0),
            mask=mask[b, :length].clone(),
            mask_sanitized=mask_out[b, :length_out].clone(),
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


def _length(mask: Tensor) -> int:
    """Rows up to the last visible one."""
    visible = mask.nonzero().squeeze(1)
    return int(visible[-1]) + 1 if len(visible) else 0


def raised(
    prompt: str,
    tokens: Sequence[str],
    offsets: Sequence[tuple[int, int]],
    token_scores: Tensor,
    read: Sequence[Word],
) -> Tensor:
    """Token scores (L, K) with those of a changed word raised to the word's in the reading.

    Only where prompt and reading have as many words, so that it is known which became which.
    """
    names = tuple(read[0].scores) if read else ()
    written = words(prompt, tokens, offsets, token_scores, names) if names else []
    token_scores = token_scores.clone()
    if len(written) != len(read):
        return token_scores
    for old, new in zip(written, read, strict=True):
        if old.text.lower() != new.text.lower():
            floor = token_scores.new_tensor(list(new.scores.values()))
            for row, (token, (start, end)) in enumerate(zip(tokens, offsets, strict=True)):
                if token and start < old.end and end > old.start:
                    token_scores[row] = torch.maximum(token_scores[row], floor)
    return token_scores
