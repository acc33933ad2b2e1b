"""All files of a report: result.json, report.md with its pictures, report.html."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from sanitizer.errors import SanitizerError
from sanitizer.files import whole_file

from ..bundled_sets import HELD_OUT
from ..figures import all_concepts, figures
from ..metrics import Figure
from ..misses import as_words
from ..runner import OURS, Clock, Measured
from ..targets import Target, targets
from . import content, html, markdown, plots

PICTURES = "pictures"


def write_report(measured: Measured, facts: dict, output: Path, show_prompts: bool, clock: Clock) -> Path:
    """Compute the figures and write everything; returns the HTML page's path. facts: see cli.run_command."""
    found = figures(measured)
    aims = targets(found, OURS)
    images = plots.pictures(found, {c: _misses(measured, c, show_prompts) for c in measured.concepts})
    result = facts | {
        "all_concepts": all_concepts(measured),
        "minutes": clock.minutes,
        "methods": [{"name": n, "title": m.title, "source": m.source} for n, m in measured.methods.items()],
        "sets": [
            {
                "key": s.key, "title": s.title, "role": s.role, "concept": s.concept, "prompts": len(s.prompts),
                "paired": s.safe is not None, "source": s.source,
            }
            for s in measured.sets
        ],
    }  # fmt: skip
    report = content.build(result, found, aims, list(images))
    try:
        (output / PICTURES).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SanitizerError(f"{output}: the folder cannot be made ({error.strerror or error}).") from error
    for name, data in images.items():
        _write(output / PICTURES / f"{name}.png", data)
    whole = result | {"targets": aims, "concepts": found}
    _write(output / "result.json", (json.dumps(plain(whole), indent=1, allow_nan=False) + "\n").encode())
    _write(output / "report.md", markdown.render(report, PICTURES).encode())
    page = output / "report.html"
    _write(page, html.render(report, images).encode())
    return page


def _misses(measured: Measured, concept: str, show: bool) -> list[tuple[list, float]]:
    prompts = measured.named(concept, HELD_OUT)
    return [
        (as_words(prompts.prompts[miss["place"]], miss["words"], concept, show), _probability(miss["score"]))
        for miss in measured.misses(concept)
    ]


def _probability(score: float) -> float:
    """A method's score may be a probability or a logit; the heat map speaks of probabilities."""
    return score if 0 <= score <= 1 else 1 / (1 + math.exp(min(-score, 700.0)))


def plain(value):
    """Figures and targets as dictionaries, NaN as None: what JSON can hold."""
    if isinstance(value, Figure | Target):
        return plain(value.to_dict())
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write(path: Path, data: bytes) -> None:
    with whole_file(path) as file:
        file.write(data)
