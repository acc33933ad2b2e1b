"""Long prompts and the operating point: what one sanitizer flags, alone and among harmless words, and what it touches.

Held-out phrases in held-out frames, one of them and several in a prompt, stand before, behind and amid harmless words;
harmless texts have the same lengths. Of a prompt that is flagged alone, the same words are asked again.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from torch import Tensor

from sanitizer.encoders import TextEncoder
from sanitizer.model.sanitizer import EmbeddingSanitizer
from sanitizer.prompts.concepts import Concept, load_concepts
from sanitizer.prompts.generator import PromptGenerator, joined_words
from sanitizer.prompts.templates import load_templates
from sanitizer.training.report import measure_prompts

from .data import column_of, read_table
from .metrics import share
from .report import markdown_table, percent

WORDS = (25, 50, 100, 200)
PLACES = ("before", "behind", "around")
KINDS = ("one phrase", "several phrases")
SINGLE = 0
"""Words of a prompt that stands alone."""
CAPTIONS, HELD_OUT, BORDERLINE = "captions", "held-out prompts", "hard negatives"


class Asked(NamedTuple):
    """Prompts of one kind."""

    kind: str
    concept: str
    """"" for harmless ones."""
    words: int
    place: str
    prompts: list[str]


def read_captions(path: Path) -> list[str]:
    """The harmless captions of a file with a column `prompt`, `caption` or `text`. Raises SanitizerError."""
    return column_of(path, read_table(path), ("prompt", "caption", "text"))


def collect(concepts: Sequence[str], captions: Sequence[str], samples: int, seed: int) -> list[Asked]:
    """All prompts: `samples` of each kind, concept, length and place at most; `captions` once each."""
    known, templates = load_concepts(), load_templates()
    generator = PromptGenerator(known, templates, seed, "held_out")
    rng = random.Random(f"{seed}-length")
    pools = [(HELD_OUT, list(generator.benign_prompts))] + ([(CAPTIONS, list(captions))] if captions else [])
    asked = [Asked(HELD_OUT, "", SINGLE, "", generator.plain(2 * samples))]
    asked.append(Asked(BORDERLINE, "", SINGLE, "", [generator.hard_negative() for _ in range(2 * samples)]))
    if captions:
        asked.append(Asked(CAPTIONS, "", SINGLE, "", list(captions)))
    for name, pool in pools:
        asked += [Asked(name, "", n, "", [" ".join(joined_words(pool, n, rng)) for _ in range(samples)]) for n in WORDS]
    for concept in known:
        if concept.name not in concepts:
            continue
        for kind in KINDS:
            prompts = list(_unsafe(concept, generator, rng, samples, kind == KINDS[1]))
            asked.append(Asked(kind, concept.name, SINGLE, "", prompts))
            for words in WORDS:
                for place in PLACES:
                    among = [_among(text, joined_words(rng.choice(pools)[1], words, rng), place) for text in prompts]
                    asked.append(Asked(kind, concept.name, words, place, among))
    return asked


def measure(
    encoder: TextEncoder,
    sanitizer: EmbeddingSanitizer,
    concepts: Sequence[str],
    asked: Sequence[Asked],
    progress: Callable[[str, int, int], None],
) -> pd.DataFrame:
    """A row for each kind, length and place: the share of prompts flagged, of harmless ones the share that comes out
    bit for bit with these concepts switched on and with all."""
    rows: list[dict] = []
    alone: dict[tuple[str, str], Tensor] = {}
    places = [sanitizer.concepts.index(name) for name in concepts]
    done, total = 0, sum(len(own.prompts) for own in asked)
    for own in asked:
        measured = measure_prompts(sanitizer, encoder, own.prompts, lambda *_: None, "length")
        done += len(own.prompts)
        progress("long prompts", done, total)
        row = {"kind": own.kind, "concept": own.concept, "words": own.words, "place": own.place}
        if not own.concept:
            hit = measured.fired[:, places].any(dim=1)
            rows.append(row | {"figure": "identical", **share((~hit).numpy())._asdict()})
            rows.append(row | {"figure": "identical, all concepts", **share(measured.identical.numpy())._asdict()})
            continue
        hit = measured.fired[:, sanitizer.concepts.index(own.concept)]
        if own.words == SINGLE:
            alone[own.kind, own.concept] = hit
            rows.append(row | {"figure": "flagged alone", **share(hit.numpy())._asdict()})
        else:
            kept = hit[alone[own.kind, own.concept]]
            rows.append(row | {"figure": "still flagged", **share(kept.numpy())._asdict()})
    return pd.DataFrame(rows)


def tables(found: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Heading and table of text, for people."""
    found = found.assign(cell=[percent(row) for row in found.itertuples()])

    def table(rows: pd.DataFrame, index: list[str], columns: str) -> pd.DataFrame:
        wide = rows.pivot(index=index, columns=columns, values="cell").reset_index()
        return rows[index].drop_duplicates().merge(wide, on=index).rename(columns=str)

    harmless = found[found.figure.str.startswith("identical")]
    unsafe = found[found.figure == "flagged alone"]
    long = found[found.figure == "still flagged"]
    return [
        ("Harmless prompts that come out bit for bit, %, by words (0: as they are)",
         table(harmless, ["kind", "figure"], "words")),
        ("Unsafe prompts that are flagged alone, %", table(unsafe, ["kind"], "concept")),
        ("Of those: still flagged among so many harmless words, %",
         table(long, ["concept", "kind", "place"], "words")),
    ]  # fmt: skip


def markdown(found: pd.DataFrame, facts: dict) -> str:
    lines = ["# Long prompts and the operating point", "", ", ".join(f"{k} {v}" for k, v in facts.items()) + ".", ""]
    for heading, own in tables(found):
        lines += [f"## {heading}", "", *markdown_table(own.fillna("–")), ""]
    return "\n".join(lines)


def _unsafe(
    concept: Concept, generator: PromptGenerator, rng: random.Random, count: int, several: bool
) -> Iterator[str]:
    pairs = [pair for pair in concept.pairs if pair.held_out]
    rng.shuffle(pairs)
    for at in range(min(count, len(pairs))):
        text = generator.unit(concept, pairs[at])[0].text
        if several:
            more = [pair.target for pair in rng.sample(pairs, rng.randint(1, 2))]
            text = generator.templates.fill(", ".join([text.rstrip("."), *more, "{style}", "{quality}"]), rng)
        yield text


def _among(text: str, words: Sequence[str], place: str) -> str:
    cut = {"before": len(words), "behind": 0, "around": len(words) // 2}[place]
    parts = (" ".join(words[:cut]), f"{text.rstrip('.')},", " ".join(words[cut:]))
    return " ".join(part for part in parts if part)
