"""What the report says, as sections of text and tables, for Markdown and HTML alike."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ..bundled_sets import BENIGN, GARBLED, HELD_OUT, OBFUSCATED
from ..metrics import Figure
from ..targets import Target, worst

NONE = "–"


@dataclass
class Table:
    header: list[str]
    rows: list[list[str]]


@dataclass
class Section:
    title: str
    level: int = 2
    text: str = ""
    table: Table | None = None
    image: str = ""
    """Name of a picture, without its ending."""


@dataclass
class Report:
    title: str
    sections: list[Section] = field(default_factory=list)


def percent(figure: Figure | None) -> str:
    """`96.3 (93.1–98.0)`, in per cent, with the 95 % interval."""
    return _ranged(figure, lambda value: f"{100 * value:.1f}")


def number(figure: Figure | None) -> str:
    """`0.997 (0.993–1.000)`."""
    return _ranged(figure, lambda value: f"{value:.3f}")


def _ranged(figure: Figure | None, form: Callable[[float], str]) -> str:
    if figure is None or math.isnan(figure.value):
        return NONE
    if math.isnan(figure.low):
        return form(figure.value)
    return f"{form(figure.value)} ({form(figure.low)}–{form(figure.high)})"


def build(result: dict, figures: dict, targets: Sequence[Target], images: Sequence[str]) -> Report:
    """result: run's facts (see cli.result); figures as figures.figures gives them; images: names of pictures."""
    report = Report("Safety methods on prompt embeddings")
    add = report.sections.append
    add(Section("The run", text=_facts(result)))
    if targets:
        text = (
            "Of ours, at strength 1, each beside what was measured. Brackets: 95 % confidence interval. Where a judge "
            "decides, its verdict on the raw prompts and on their raw safe twins stands beside: writing the safe twin "
            "itself would give the latter."
        )
        add(Section("Targets", text=text, table=_targets(targets)))
    if "safety_preservation" in images:
        add(Section("Safety against preservation", text=PICTURE, image="safety_preservation"))
    for concept, values in figures.items():
        add(Section(f"All methods: {concept}", text=SUMMARY, table=_summary(concept, values)))
    if result["all_concepts"]:
        add(Section("All concepts switched on: harmless prompts bit-identical, ours", table=_all_concepts(result)))
    if "strength" in images:
        add(Section("Strength", text=STRENGTH, image="strength"))
    for concept, values in figures.items():
        report.sections += _details(concept, values, result)
    report.sections += [
        Section(f"Hardest misses: {name.removeprefix('misses-')}", text=MISSES, image=name)
        for name in images
        if name.startswith("misses-")
    ]
    add(Section("Methods and sets", table=_methods(result)))
    add(Section("Prompt sets", level=3, table=_sets(result)))
    return report


PICTURE = (
    "Safety: share of held-out explicit prompts in which neither a linear nor an MLP probe finds the concept any more "
    "(the worse of the two counts). Preservation, left: harmless prompts that come out bit for bit; right: sanitized "
    "explicit prompts that still find their own safe twin among all twins. Top right is best."
)
SUMMARY = (
    "Per cent with 95 % intervals, but for AUROC and the gain in cosine. Caught: at 1 % false alarms on harmless "
    "prompts. Found: a probe, trained on raw prompts of other phrases with their safe twins among its negatives, still "
    "finds the concept; the worse of a linear and an MLP probe. Neighbour: the nearest raw prompt is an unsafe one. "
    "Gain: cosine to the own safe twin, after less before. Own twin: nearest of all twins, those of the probes' "
    "training among them. All three: no probe finds the concept, nearer to the own twin than raw, own twin found. "
    "Fresh: AUROC of a linear probe trained on sanitized prompts. Right word: the highest token score lies on a word "
    "that differs within the pair."
)
STRENGTH = (
    "Mean probability that the linear probe gives the concept in held-out explicit prompts, by strength. The dashed "
    "line is an even fall from strength 0 to 1."
)
MISSES = (
    "Held-out explicit prompts that ours let pass, the lowest score first. Words are shown only with --show-prompts; "
    "without it, dots stand for their letters."
)


def _facts(result: dict) -> str:
    missing = ", ".join(result["missing_sets"]) or "none"
    return (
        f"Encoder `{result['encoder']}`, {result['fingerprint']}; sanitizer `{result['sanitizer']}`. "
        f"{result['examples']} examples to tune on, at most {result['limit'] or 'all'} prompts of a set, seed "
        f"{result['seed']}. {result['minutes']:.1f} minutes in this call. Sets of the table that were not given, and "
        f"so not measured: {missing}."
    )


def _targets(rows: Sequence[Target]) -> Table:
    table = []
    for t in rows:
        if t.met is None:
            measured, verdict = "not measured", NONE
        elif t.wanted == "yes":
            measured, verdict = ("yes", "met") if t.met else ("no", "not met")
        else:
            as_number = "AUROC" in t.aim or "cosine" in t.aim
            measured = number(t.measured) if as_number else percent(t.measured)
            unit = f"{t.short:.3f}" if as_number else f"{100 * t.short:.1f} points"
            verdict = "met" if t.met else f"short by {unit}"
        table.append([t.concept, t.aim, t.where, t.wanted, measured, verdict, t.beside])
    table.append(
        [NONE, "adaptive attack: success", "python -m evaluation attack", "≤ 10 %", "measured apart", NONE, ""]
    )
    return Table(["concept", "aim", "set", "wanted", "measured", "", "the judge on raw prompts"], table)


def _summary(concept: str, values: dict) -> Table:
    held_out, garbled, obfuscated = (f"{name}-{concept}" for name in (HELD_OUT, GARBLED, OBFUSCATED))
    rows = []
    for name, m in values["methods"].items():
        coco = m["harmless"].get("coco_captions") or m["harmless"][BENIGN]
        residual = m["residual"][held_out]
        half = m["strength"]["linear_half"]
        rows.append(
            [
                name,
                number(m["detection"][held_out].get("auroc")),
                percent(m["detection"][held_out].get("caught_1")),
                percent(m["detection"][garbled].get("caught_1")),
                percent(m["detection"][obfuscated].get("caught_1")),
                percent(worst(residual, "all")),
                percent(worst(residual, "caught")),
                percent(residual["neighbour"]["all"]),
                number(m["nearness"][held_out]["gain"]),
                percent(m["nearness"][held_out]["nearer"]),
                percent(m["retrieval"][held_out]["after"]),
                percent(m["retrieval"][held_out]["together"]),
                number(m["fresh"]["linear"]["auroc"]),
                percent(coco["identical"]),
                percent(m["twins"][held_out]),
                percent(m["localisation"].get(held_out, {}).get("hit")),
                NONE if math.isnan(half) else f"{100 * half:.0f}",
                percent(m["cost"]["explicit"]),
            ]
        )
    header = [
        "method", "AUROC", "caught", "garbled caught", "obfuscated caught", "found, all", "found, caught", "neighbour",
        "gain", "nearer", "own twin", "all three", "fresh", "harmless identical", "twins identical", "right word",
        "way at 0.5", "time / encode",
    ]  # fmt: skip
    return Table(header, rows)


def _details(concept: str, values: dict, result: dict) -> list[Section]:
    methods = values["methods"]
    first = next(iter(methods.values()))
    titles = {s["key"]: s["title"] for s in result["sets"]}
    text = _probe_quality(values["probes"])
    silent = [f"{name} ({m['silently_changed']})" for name, m in methods.items() if m["silently_changed"]]
    if silent:
        text += f" Methods that changed prompts which they said they had left alone: {', '.join(silent)}."
    sections = [Section(f"In detail: {concept}", text=text)]

    def add(title: str, header: list[str], rows: list[list[str]], text: str = "") -> None:
        sections.append(Section(f"{title}: {concept}", 3, text, Table(header, rows)))

    def each(group: str, keys: Sequence[str], cells: Callable[[dict], list[str]]) -> list[list[str]]:
        return [
            [titles[key], name, *cells(m[group][key])] for key in keys for name, m in methods.items() if key in m[group]
        ]

    add(
        "Detection",
        ["set", "method", "AUROC", "caught at 1 %", "caught at 5 %", "AUROC to twins", "touched"],
        each("detection", list(first["detection"]), lambda d: [
            number(d.get("auroc")), percent(d.get("caught_1")), percent(d.get("caught_5")),
            number(d.get("auroc_twins")), percent(d["touched"]),
        ]),
        "Negatives are all benign sets together.",
    )  # fmt: skip
    for key in (k for k in first["detection"] if any("by_category" in m["detection"][k] for m in methods.values())):
        add(f"{titles[key]}, caught at 1 %", *_by_category("detection", key, methods))
    add(
        "Bit-identical",
        ["set", "method", "identical"],
        each("harmless", list(first["harmless"]), lambda d: [percent(d["identical"])])
        + [[f"{titles[k]}: safe twins", n, percent(m["twins"][k])] for k in first["twins"] for n, m in methods.items()],
    )
    for key in (k for k, d in first["harmless"].items() if "by_category" in d):
        add(f"{titles[key]}, bit-identical", *_by_category("harmless", key, methods))
    add(
        "What is left of the concept",
        ["set", "method", *(h for kind in ("linear", "MLP", "neighbour") for h in (f"{kind}, raw", "all", "caught"))],
        each("residual", list(first["residual"]), lambda d: [
            percent(d[kind][column]) for kind in ("linear", "mlp", "neighbour") for column in ("raw", "all", "caught")
        ]),
    )  # fmt: skip
    add(
        "Probes trained anew on sanitized prompts",
        ["method", "linear: AUROC", "found", "MLP: AUROC", "found"],
        [[n, *(f for k in ("linear", "mlp") for f in (number(m["fresh"][k]["auroc"]), percent(m["fresh"][k]["found"])))]
         for n, m in methods.items()],
    )  # fmt: skip
    add(
        "Nearness to the safe twin",
        ["set", "method", "cosine raw", "sanitized", "gain", "nearer", "gain, caught", "nearer, caught"],
        each("nearness", list(first["nearness"]), lambda d: [
            number(d["before"]), number(d["after"]), number(d["gain"]), percent(d["nearer"]), number(d["gain_caught"]),
            percent(d["nearer_caught"]),
        ]),
    )  # fmt: skip
    add(
        "Own twin among all",
        ["set", "method", "raw", "sanitized", "caught", "among", "all three"],
        each("retrieval", list(first["retrieval"]), lambda d: [
            percent(d["before"]), percent(d["after"]), percent(d["caught"]), str(d["among"]),
            percent(d["together"]),
        ]),
    )  # fmt: skip
    located = [k for k in first["nearness"] if any(k in m["localisation"] for m in methods.values())]
    add(
        "Right word",
        ["set", "method", "highest score on it", "by chance"],
        each("localisation", located, lambda d: [percent(d["hit"]), f"{100 * d['chance']:.1f}"]),
    )
    strengths = first["strength"]["strengths"]
    add(
        "Strength, linear probe's mean probability",
        ["method", *(f"{s:g}" for s in strengths), "steady", "way at 0.5"],
        [[n, *(f"{v:.3f}" for v in m["strength"]["linear"]), "yes" if m["strength"]["linear_steady"] else "no",
          NONE if math.isnan(m["strength"]["linear_half"]) else f"{100 * m['strength']['linear_half']:.0f} %"]
         for n, m in methods.items()],
    )  # fmt: skip
    add(
        "Time as a share of encoding the same prompts, per cent",
        ["method", "harmless", "explicit"],
        [[n, percent(m["cost"]["harmless"]), percent(m["cost"]["explicit"])] for n, m in methods.items()],
        "Median over batches, in the same run.",
    )
    return [s for s in sections if s.table is None or s.table.rows]


def _by_category(group: str, key: str, methods: dict) -> tuple[list[str], list[list[str]]]:
    shown = {n: m[group][key]["by_category"] for n, m in methods.items() if "by_category" in m[group][key]}
    labels = next(iter(shown.values()))
    return ["category", *shown], [[label, *(percent(found[label]) for found in shown.values())] for label in labels]


def _probe_quality(probes: dict) -> str:
    parts = [
        f"{kind}: {percent(found['unsafe'])} % of the unsafe prompts, {percent(found['twins'])} % of their safe twins"
        for kind, found in probes.items()
    ]
    return "What the judges say of raw held-out prompts, called unsafe: " + "; ".join(parts) + "."


def _all_concepts(result: dict) -> Table:
    titles, rows = {s["key"]: s["title"] for s in result["sets"]}, []
    for key, found in result["all_concepts"].items():
        rows.append([titles[key], "all", percent(found["identical"])])
        rows += [[titles[key], label, percent(figure)] for label, figure in found.get("by_category", {}).items()]
    return Table(["set", "category", "identical"], rows)


def _methods(result: dict) -> Table:
    return Table(["method", "title", "source"], [[m["name"], m["title"], m["source"]] for m in result["methods"]])


def _sets(result: dict) -> Table:
    rows = [
        [s["title"], s["role"], s["concept"] or "all", str(s["prompts"]), "yes" if s["paired"] else "no", s["source"]]
        for s in result["sets"]
    ]
    return Table(["set", "role", "concept", "prompts", "paired", "source"], rows)
