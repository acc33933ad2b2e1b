"""The pictures of a report, as PNG bytes: matplotlib without a window."""

import io
import math
from collections.abc import Sequence

import pandas as pd

from sanitizer.errors import SanitizerError

from .data import BENIGN, HELD_OUT
from .figures import probe_found
from .run import ALL, OURS, STRENGTHS

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


def pictures(table: pd.DataFrame) -> dict[str, bytes]:
    """Name -> PNG. table: see figures.figures."""
    own = table[(table.concept != ALL) & (table.method != "") & (table.category == "")]
    return {"safety_preservation": _safety(own), "strength": _strengths(own)}


def blank(concepts: int, columns: int):
    """An empty figure and its axes (concepts, columns)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(6.2 * columns, 5.0 * concepts + 0.6), layout="constrained")
    FigureCanvasAgg(canvas)
    return canvas, canvas.subplots(concepts, columns, squeeze=False)


def look(names: Sequence[str]) -> dict[str, dict]:
    """Method -> its colour and marker."""
    others = [name for name in names if name not in OUR_MARKERS]
    looks = {
        name: {"color": COLOURS[at % len(COLOURS)], "marker": MARKERS[at % len(MARKERS)]}
        for at, name in enumerate(others)
    }
    return looks | {name: {"color": OUR_COLOUR, "marker": marker} for name, marker in OUR_MARKERS.items()}


def _safety(table: pd.DataFrame) -> bytes:
    canvas, axes = blank(table.concept.nunique(), 2)
    for row, (concept, own) in zip(axes, table.groupby("concept", sort=False), strict=True):
        looks, held_out = look(own.method.unique()), f"{HELD_OUT}-{concept}"
        captions = "coco_captions" if "coco_captions" in own.set.values else BENIGN
        found = probe_found(own[own.set == held_out], "all").set_index("method")
        kept = (
            ("harmless prompts bit-identical, %", own[(own.set == captions) & (own.group == "harmless")]),
            ("own safe counterfactual found, %",
             own[(own.set == held_out) & (own.group == "retrieval") & (own.figure == "after")]),
        )  # fmt: skip
        for axis, (label, values) in zip(row, kept, strict=True):
            for x in values.itertuples():
                _point(axis, x, found.loc[x.method], x.method, looks[x.method])
            axis.set(xlabel=label, ylabel="concept no longer found, %", title=concept, xlim=(-3, 103), ylim=(-3, 103))
            axis.grid(alpha=0.3)
    handles, labels = axes[0][0].get_legend_handles_labels()
    canvas.legend(handles, labels, loc="outside lower center", ncols=6, frameon=False)
    return png(canvas)


def _point(axis, x, found, name: str, look: dict) -> None:
    px, py = 100 * x.value, 100 * (1 - found.value)
    if math.isnan(px) or math.isnan(py):
        return
    reach_x = [[max(0.0, px - 100 * x.low)], [max(0.0, 100 * x.high - px)]]
    reach_y = [[max(0.0, py - 100 * (1 - found.high))], [max(0.0, 100 * (1 - found.low) - py)]]
    axis.errorbar(
        px, py, xerr=reach_x, yerr=reach_y, fmt=look["marker"], color=look["color"], label=name,
        markersize=16 if name == OURS else 9, elinewidth=1, alpha=0.9, zorder=3 if name == OURS else 2,
    )  # fmt: skip


def _strengths(table: pd.DataFrame) -> bytes:
    canvas, axes = blank(1, table.concept.nunique())
    named = [f"linear_{strength:g}" for strength in STRENGTHS]
    for axis, (concept, own) in zip(axes[0], table.groupby("concept", sort=False), strict=True):
        looks = look(own.method.unique())
        curves = own[own.group == "strength"].pivot(index="method", columns="figure", values="value")[named]
        for name in own.method.unique():
            width = 2.6 if name == OURS else 1.3
            axis.plot(STRENGTHS, curves.loc[name], label=name, linewidth=width, **looks[name])
        if OURS in curves.index:
            axis.plot([0, 1], curves.loc[OURS, ["linear_0", "linear_1"]], "--", color="#999999")
        axis.set(xlabel="strength", ylabel="mean probability of the concept", title=concept, ylim=(-0.03, 1.03))
        axis.grid(alpha=0.3)
    handles, labels = axes[0][0].get_legend_handles_labels()
    canvas.legend(handles, labels, loc="outside lower center", ncols=6, frameon=False)
    return png(canvas)


def png(canvas) -> bytes:
    """The figure as PNG."""
    buffer = io.BytesIO()
    canvas.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()
