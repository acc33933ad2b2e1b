"""The pictures, as PNG bytes: matplotlib without a window, and the sanitizer's own heat map."""

import io
import math
from collections.abc import Sequence

from sanitizer.errors import SanitizerError
from sanitizer.render.image import render_image

from ..bundled_sets import BENIGN, HELD_OUT
from ..metrics import Figure
from ..targets import worst

OURS = "ours"
OUR_COLOUR = "#b30000"
OUR_MARKERS = {OURS: "*", "ours_text": "p"}
# Okabe and Ito's palette, which stays apart without colour vision, and markers, which need no colour at all.
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#7f7f7f", "#8c6d31", "#393b79", "#000000")
MARKERS = "osD^vPXh<>"
DPI = 130


def check_matplotlib() -> None:
    """Raises SanitizerError where matplotlib is missing: before a run, not at its end."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise SanitizerError(
            f"The report needs matplotlib ({error}). Run: pip install -r requirements-evaluation.txt"
        ) from error


def pictures(figures: dict, misses: dict[str, list[tuple[list, float]]]) -> dict[str, bytes]:
    """Name -> PNG. misses: concept -> (words, score) of prompts that ours let pass."""
    found = {"safety_preservation": _safety(figures), "strength": _strengths(figures)}
    for concept, entries in misses.items():
        if entries:
            found[f"misses-{concept}"] = _misses(concept, entries)
    return found


def _canvas(concepts: int, columns: int):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(6.2 * columns, 5.0 * concepts + 0.6), layout="constrained")
    FigureCanvasAgg(canvas)
    return canvas, canvas.subplots(concepts, columns, squeeze=False)


def _look(names: Sequence[str]) -> dict[str, dict]:
    others = [name for name in names if name not in OUR_MARKERS]
    looks = {
        name: {"color": COLOURS[at % len(COLOURS)], "marker": MARKERS[at % len(MARKERS)]}
        for at, name in enumerate(others)
    }
    return looks | {name: {"color": OUR_COLOUR, "marker": marker} for name, marker in OUR_MARKERS.items()}


def _safety(figures: dict) -> bytes:
    canvas, axes = _canvas(len(figures), 2)
    for row, (concept, values) in zip(axes, figures.items(), strict=True):
        methods, looks = values["methods"], _look(list(values["methods"]))
        held_out = f"{HELD_OUT}-{concept}"
        for axis, label in zip(row, ("harmless prompts bit-identical, %", "own safe twin found, %"), strict=True):
            for name, m in methods.items():
                coco = m["harmless"].get("coco_captions") or m["harmless"][BENIGN]
                x = coco["identical"] if axis is row[0] else m["retrieval"][held_out]["after"]
                _point(axis, x, worst(m["residual"][held_out], "all"), name, looks[name])
            axis.set(xlabel=label, ylabel="concept no longer found, %", title=concept, xlim=(-3, 103), ylim=(-3, 103))
            axis.grid(alpha=0.3)
    handles, labels = axes[0][0].get_legend_handles_labels()
    canvas.legend(handles, labels, loc="outside lower center", ncols=6, frameon=False)
    return _png(canvas)


def _point(axis, x: Figure, found: Figure, name: str, look: dict) -> None:
    px, py = 100 * x.value, 100 * (1 - found.value)
    if math.isnan(px) or math.isnan(py):
        return
    reach_x = [[max(0.0, px - 100 * x.low)], [max(0.0, 100 * x.high - px)]]
    reach_y = [[max(0.0, py - 100 * (1 - found.high))], [max(0.0, 100 * (1 - found.low) - py)]]
    axis.errorbar(
        px, py, xerr=reach_x, yerr=reach_y, fmt=look["marker"], color=look["color"], label=name,
        markersize=16 if name == OURS else 9, elinewidth=1, alpha=0.9, zorder=3 if name == OURS else 2,
    )  # fmt: skip


def _strengths(figures: dict) -> bytes:
    canvas, axes = _canvas(1, len(figures))
    for axis, (concept, values) in zip(axes[0], figures.items(), strict=True):
        looks = _look(list(values["methods"]))
        for name, m in values["methods"].items():
            curve = m["strength"]
            width = 2.6 if name == OURS else 1.3
            axis.plot(curve["strengths"], curve["linear"], label=name, linewidth=width, **looks[name])
        ours = values["methods"].get(OURS)
        if ours:
            line = ours["strength"]["linear"]
            axis.plot([0, 1], [line[0], line[ours["strength"]["strengths"].index(1.0)]], "--", color="#999999")
        axis.set(xlabel="strength", ylabel="mean probability of the concept", title=concept, ylim=(-0.03, 1.03))
        axis.grid(alpha=0.3)
    handles, labels = axes[0][0].get_legend_handles_labels()
    canvas.legend(handles, labels, loc="outside lower center", ncols=6, frameon=False)
    return _png(canvas)


def _misses(concept: str, entries: Sequence[tuple[list, float]]) -> bytes:
    prompts = [(words, (), {concept: score}) for words, score in entries]
    image = render_image(prompts, concepts=[concept], title=f"Hardest misses, {concept}")
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _png(canvas) -> bytes:
    buffer = io.BytesIO()
    canvas.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()
