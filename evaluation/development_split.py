"""The split that every method is tuned on: training phrases in training frames, and an encoder that remembers them."""

import torch

from sanitizer.encoders import Encoding, TextEncoder
from sanitizer.errors import SanitizerError
from sanitizer.prompts.concepts import load_concepts
from sanitizer.prompts.generator import PromptGenerator
from sanitizer.prompts.templates import load_templates

from .base import Development
from .bundled_sets import cycled, harmless


def make_development(encoder: TextEncoder, concept: str, seed: int, limit: int) -> Development:
    """`limit` unsafe prompts of the concept's training phrases with their safe twins, as many harmless ones (a third of
    them look-alikes), and as many for thresholds, of prompts and frames that are in no other part.

    Raises SanitizerError for a concept that is unknown or only scored, never erased.
    """
    if limit < 1:
        raise SanitizerError(f"Examples: expected at least 1, found {limit}.")
    concepts, templates = load_concepts([concept]), load_templates()
    chosen = next(c for c in concepts if c.name == concept)
    generator = PromptGenerator(concepts, templates, seed)
    units = [generator.unit(chosen, pair) for pair in cycled(chosen, generator.rng, limit)]
    pairs = [pair for pair in chosen.pairs if not pair.held_out]
    return Development(
        encoder=encoder,
        concept=concept,
        unsafe=[unsafe.text for unsafe, _ in units],
        safe=[safe for _, safe in units],
        benign=harmless(generator, limit),
        calibration=PromptGenerator(concepts, templates, seed, split="calibration").plain(limit),
        phrases=[pair.target for pair in pairs],
        anchors=[pair.anchor for pair in pairs],
        seed=seed,
    )


class RememberingEncoder:
    """A text encoder that encodes every prompt once: all methods are fitted on the same prompts.

    Anything but `encode` goes to the encoder itself. Rows come out padded with zeros, as the encoder pads them.
    """

    def __init__(self, encoder: TextEncoder, memory: int = 3 * 2**30) -> None:
        self.encoder = encoder
        self.left = memory
        """Bytes that may still be kept; what exceeds them is encoded anew each time."""
        self.kept: dict[str, tuple] = {}

    def __getattr__(self, name: str):
        return getattr(self.encoder, name)

    def encode(self, prompts) -> Encoding:
        """Encode a batch, see TextEncoder."""
        prompts = list(prompts)
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self.kept]
        fresh = self._encode(new) if new else {}
        return _joined([fresh.get(prompt) or self.kept[prompt] for prompt in prompts])

    def _encode(self, prompts: list[str]) -> dict[str, tuple]:
        e = self.encoder.encode(prompts)
        found = {}
        for b, prompt in enumerate(prompts):
            visible = e.mask[b].nonzero()
            length = int(visible[-1]) + 1 if len(visible) else 1
            # Clones: a slice would keep the whole padded batch in memory.
            piece = (
                e.embeddings[b, :length].clone(),
                e.mask[b, :length].clone(),
                None if e.pooled is None else e.pooled[b].clone(),
                e.tokens[b][:length],
                e.offsets[b][:length],
            )
            found[prompt] = piece
            self.left -= piece[0].numel() * piece[0].element_size()
            if self.left > 0:
                self.kept[prompt] = piece
        return found


def _joined(pieces: list[tuple]) -> Encoding:
    longest = max(len(rows) for rows, *_ in pieces)
    first = pieces[0][0]
    rows = first.new_zeros((len(pieces), longest, first.shape[1]))
    mask = torch.zeros((len(pieces), longest), dtype=torch.bool, device=first.device)
    tokens, offsets = [], []
    for b, (own, seen, _, token, offset) in enumerate(pieces):
        rows[b, : len(own)] = own
        mask[b, : len(own)] = seen
        tokens.append(token + [""] * (longest - len(own)))
        offsets.append(list(offset) + [(0, 0)] * (longest - len(own)))
    pooled = None if pieces[0][2] is None else torch.stack([piece[2] for piece in pieces])
    return Encoding(rows, mask, pooled, tokens, offsets)
