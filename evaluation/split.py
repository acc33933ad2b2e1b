"""The split that every method is tuned on: training phrases in training frames."""

from sanitizer.encoders import TextEncoder
from sanitizer.errors import SanitizerError
from sanitizer.prompts.concepts import Concept, load_concepts
from sanitizer.prompts.generator import PromptGenerator
from sanitizer.prompts.templates import load_templates

from .data import cycled, harmless
from .types import Development


def make_development(
    encoder: TextEncoder, concept: str, seed: int, limit: int, concepts: list[Concept] | None = None
) -> Development:
    """`limit` unsafe prompts of the concept's training phrases with their safe counterfactuals, as many harmless ones
    (a third of them hard negatives), and as many for thresholds, of prompts and frames that are in no other part.
    concepts: that concept and whatever belongs to it, None for its file in concepts/.

    Raises SanitizerError for a concept that is unknown or only scored, never erased.
    """
    if limit < 1:
        raise SanitizerError(f"Examples: expected at least 1, found {limit}.")
    concepts, templates = concepts or load_concepts([concept]), load_templates()
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
