"""The report of a measurement with pictures: report.md with its images, report.html, and result.json."""

import io
import math
from pathlib import Path

import pandas as pd
from PIL import Image, ImageDraw, ImageFont

from sanitizer.files import make_folder

from ..plots import OUR_COLOUR, blank, look, png
from ..report import PICTURES, Section, html, markdown, number, percent, to_json, write
from .measure import Measured, agreement, drawn_as_asked, figures
from .methods import NONE
from .prompts import DILUTED, PLAIN, SYNONYM, TWO, UNSAFE
from .reader import holds_weapon

TITLE = "Pictures as judge"
STRIPS, PLOT = "strips", "harm_rest"
SHOWN = (PLAIN, SYNONYM, TWO, DILUTED)
"""Kinds of prompts of which the strips show one each."""
TILE, LABEL, LINE = 72, 120, 16
"""Pixels of a picture's side, of the column of names, and of a line of text."""

SUMMARY = (
    "Per cent with 95 % intervals, but for the distance. Harm: unsafe prompts whose picture holds a weapon. Object, "
    "places, background: of what unsafe prompts ask for beside their weapons, what is still drawn; rest: the mean of "
    "the three. Untouched: harmless prompts, look-alikes among them, whose picture stays the same to the pixel. "
    "Confidence: the reader's, of its least certain place. Distance: of the pictures of unsafe prompts to the oracle's."
)
CURVES = "Top left is best. A line is a method, from strength to strength; the large mark is strength 1."
AGREEMENT = (
    "Spearman's rank correlation over all methods and strengths, but for the negative prompt, which leaves the "
    "embedding as it is. A figure that predicts harm well has a value near 1 or -1 in the first column."
)


def write_report(measured: Measured, facts: dict, output: Path) -> Path:
    """Compute the figures and write everything; returns the HTML page's path."""
    table = figures(measured)
    images = {PLOT: plot(table), STRIPS: strips(measured)}
    facts = facts | {"as_asked": {name: figure._asdict() for name, figure in drawn_as_asked(measured).items()}}
    together = agreement(table)
    found = sections(measured, table, together, facts)
    make_folder(output / PICTURES, output)
    for name, data in images.items():
        write(output / PICTURES / f"{name}.png", data)
    result = facts | {"figures": table.to_dict("records"), "agreement": together.to_dict("records")}
    write(output / "result.json", to_json(result))
    write(output / "report.md", markdown(TITLE, found).encode())
    page = output / "report.html"
    write(page, html(TITLE, found, images).encode())
    return page


def sections(measured: Measured, table: pd.DataFrame, together: pd.DataFrame, facts: dict) -> list[Section]:
    """What the report says."""
    known = {(r.method, r.strength, r.group, r.figure): r for r in table.itertuples()}
    cells = list(dict.fromkeys(zip(table.method, table.strength, strict=True)))
    columns = {
        "harm": ("harm", "all"), "rest": ("rest", "all"), "object": ("rest", "object"), "places": ("rest", "places"),
        "background": ("rest", "background"), "untouched": ("harmless", "all"),
        "confidence": ("natural", "confidence"), "unclear": ("natural", "unclear"),
    }  # fmt: skip

    def summary(chosen: list[tuple[str, float]]) -> pd.DataFrame:
        rows = []
        for method, strength in chosen:
            row = {"method": method, "strength": f"{strength:g}"}
            row |= {title: percent(known[method, strength, *key]) for title, key in columns.items()}
            rows.append(row | {"distance": number(known[method, strength, "natural", "distance"])})
        return pd.DataFrame(rows)

    kinds = pd.DataFrame(
        [
            {"method": method, "strength": f"{strength:g}"}
            | {kind: percent(known[method, strength, "harm", kind]) for kind in UNSAFE}
            for method, strength in cells
        ]
    )
    at_one = [(method, strength) for method, strength in cells if strength == 1 or method == NONE]
    signed = {column: together[column].map(_signed) for column in ("harm", "rest")}
    numbers = together.assign(**signed, cells=together.cells.map(str))
    return [
        Section("The run", text=_facts(facts)),
        Section("Harm drawn against rest kept", text=CURVES, image=PLOT),
        Section("All methods at strength 1", text=SUMMARY, table=summary(at_one)),
        Section("All strengths", table=summary(cells)),
        Section("Harm drawn, by kind of prompt", table=kinds),
        Section("Which figure of the embedding predicts the picture", text=AGREEMENT, table=numbers),
        Section("Pictures", text="A row a method, strength from left to right.", image=STRIPS),
    ]  # fmt: skip


def _signed(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:+.2f}"


def _facts(facts: dict) -> str:
    asked = facts["as_asked"]
    objects, backgrounds = (f"{100 * asked[name]['value']:.1f} %" for name in ("objects", "backgrounds"))
    return (
        f"Encoder `{facts['encoder']}`, {facts['fingerprint']}; sanitizer of `{facts['concept']}`, "
        f"`{facts['sanitizer']}`; seed {facts['seed']}. {facts['unsafe']} unsafe prompts, {facts['harmless']} harmless "
        "ones. Of the raw prompts "
        f"the picture model draws {objects} of the objects where they were asked for, and {backgrounds} of the "
        f"backgrounds. {facts['minutes']:.1f} minutes in this call."
    )


def plot(table: pd.DataFrame) -> bytes:
    """Harm drawn against rest kept, all methods and strengths."""
    figure, axes = blank(1, 1)
    axis = axes[0][0]
    wide = table[table.figure == "all"].pivot(index=["method", "strength"], columns="group", values="value") * 100
    names = list(dict.fromkeys(table.method))
    looks = look(names)
    raw = wide.loc[(NONE, 0.0)]
    for name in names:
        own = wide.loc[name]
        x, y = list(own.harm), list(own.rest)
        if name != NONE:
            x, y = [raw.harm, *x], [raw.rest, *y]
        ours = looks[name]["color"] == OUR_COLOUR
        axis.plot(x, y, linewidth=2.4 if ours else 1.2, markersize=4, label=name, **looks[name])
        if 1.0 in own.index:
            axis.plot([own.harm[1.0]], [own.rest[1.0]], markersize=11, **looks[name])
    axis.set(xlabel="unsafe prompts whose picture holds a weapon, %", ylabel="rest of the picture kept, %")
    axis.grid(alpha=0.3)
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return png(figure)


def strips(measured: Measured) -> bytes:
    """PNG: for one prompt of each of SHOWN a row a method, strength from left to right."""
    strengths = sorted({cell.strength for cell in measured.cells})
    names = list(dict.fromkeys(cell.method for cell in measured.cells))
    found = {(cell.method, cell.strength): cell.entry for cell in measured.cells}
    raw = found[NONE, 0.0]
    width, height = LABEL + len(strengths) * TILE, 3 * LINE + len(names) * TILE
    page = Image.new("RGB", (2 * width + TILE // 2, math.ceil(len(SHOWN) / 2) * (height + TILE // 2)), "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(12)
    for at, kind in enumerate(SHOWN):
        # One whose raw picture shows what it is about.
        own = measured.of(kind)
        best = next((i for i in own if holds_weapon(raw.info["objects"][i])), own[0])
        left, top = at % 2 * (width + TILE // 2), at // 2 * (height + TILE // 2)
        for line, text in enumerate(_wrapped(f"{kind}: {measured.prompts[best].text}", width // 7)):
            pen.text((left, top + line * LINE), text, fill="black", font=font)
        for column, strength in enumerate(strengths):
            pen.text((left + LABEL + column * TILE, top + 2 * LINE), f"{strength:g}", fill="black", font=font)
        for row, name in enumerate(names):
            y = top + 3 * LINE + row * TILE
            pen.text((left, y + TILE // 2 - 6), name, fill="black", font=font)
            for column, strength in enumerate(strengths):
                entry = found.get((name, strength), raw if strength == 0 else None)
                if entry is not None:
                    picture = entry.tensors["pictures"][best].permute(1, 2, 0).numpy()
                    tile = Image.fromarray(picture).resize((TILE - 4, TILE - 4), Image.Resampling.NEAREST)
                    page.paste(tile, (left + LABEL + column * TILE, y))
    buffer = io.BytesIO()
    page.save(buffer, format="png", optimize=True)
    return buffer.getvalue()


def _wrapped(text: str, width: int) -> list[str]:
    """At most two lines."""
    cut = text.rfind(" ", 0, width) if len(text) > width else len(text)
    return [text[:cut], text[cut:].strip()[:width]]
