"""All files of a report: result.json, report.md with its pictures, and report.html, one page that needs no other file
and runs no script."""

import base64
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
import pandas as pd

from sanitizer.files import make_folder, whole_file

from . import plots
from .data import BENIGN, HELD_OUT, OBFUSCATED, SCRAMBLED
from .figures import category_labels, figures, probe_found
from .run import ALL, OURS, STRENGTHS, Measured
from .types import UNSAFE_ROLES

TITLE = "Safety methods on prompt embeddings"
PICTURES = "pictures"
NONE = "–"
SIGNS = str.maketrans({"|": "\\|", "\n": " ", "<": "&lt;"})

PICTURE = (
    "Safety: share of held-out explicit prompts in which neither a linear nor an MLP probe finds the concept any more "
    "(the worse of the two counts). Preservation, left: harmless prompts that come out bit for bit; right: sanitized "
    "explicit prompts that still find their own safe counterfactual among all of them. Top right is best."
)
SUMMARY = (
    "Per cent with 95 % intervals, but for AUROC and the gain in cosine. TPR: true positive rate at 1 % false "
    "positives on harmless prompts. Found: a probe, trained on raw prompts of other phrases with their safe "
    "counterfactuals among its negatives, still finds the concept; the worse of a linear and an MLP probe; in all "
    "prompts, and in those that were touched. Neighbour: the nearest raw prompt is an unsafe one. Gain: cosine to the "
    "own counterfactual, after less before. Own counterfactual: nearest of all, those of the probes' training among "
    "them. All three: no probe finds the concept, nearer to the own counterfactual than raw, own counterfactual found. "
    "Fresh: AUROC of a linear probe trained on sanitized prompts. Right word: the highest token score lies on a word "
    "that differs within the pair."
)
STRENGTH = (
    "Mean probability that the linear probe gives the concept in held-out explicit prompts, by strength. The dashed "
    "line is an even fall from strength 0 to 1."
)


@dataclass
class Section:
    title: str
    level: int = 2
    text: str = ""
    table: pd.DataFrame | None = None
    """All cells are text."""
    image: str = ""
    """Name of a picture, without its ending."""


def write_report(measured: Measured, facts: dict, output: Path, show_prompts: bool) -> Path:
    """Compute the figures and write everything; returns the HTML page's path. facts: see cli.run_command."""
    table = figures(measured)
    images = plots.pictures(table)
    result = facts | {
        "methods": [{"name": n, "title": m.title, "source": m.source} for n, m in measured.methods.items()],
        "sets": [
            {
                "key": s.key, "title": s.title, "role": s.role, "concept": s.concept, "prompts": len(s.prompts),
                "paired": s.safe is not None, "source": s.source,
            }
            for s in measured.sets
        ],
    }  # fmt: skip
    found = sections(result, table, list(images))
    if show_prompts and OURS in measured.methods:
        found += [_missed(measured, concept) for concept in measured.concepts]
    make_folder(output / PICTURES, output)
    for name, data in images.items():
        write(output / PICTURES / f"{name}.png", data)
    write(output / "result.json", to_json(result | {"figures": table.to_dict("records")}))
    write(output / "report.md", markdown(TITLE, found).encode())
    page = output / "report.html"
    write(page, html(TITLE, found, images).encode())
    return page


def write(path: Path, data: bytes) -> None:
    with whole_file(path) as file:
        file.write(data)


def to_json(value) -> bytes:
    """NaN and infinity become null, which JSON can hold."""

    def plain(value):
        if isinstance(value, Mapping):
            return {str(key): plain(entry) for key, entry in value.items()}
        if isinstance(value, Sequence) and not isinstance(value, str):
            return [plain(entry) for entry in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return (json.dumps(plain(value), indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def markdown(title: str, found: Sequence[Section]) -> str:
    """Pictures are referred to as `pictures/NAME.png`."""
    lines = [f"# {title}", ""]
    for section in found:
        lines += [f"{'#' * section.level} {section.title}", ""]
        if section.text:
            lines += [section.text, ""]
        if section.image:
            lines += [f"![{section.title}]({PICTURES}/{section.image}.png)", ""]
        if section.table is not None:
            lines += [*markdown_table(section.table), ""]
    return "\n".join(lines)


def markdown_table(table: pd.DataFrame) -> list[str]:
    """Lines; pandas' own writer needs one more package."""
    rows = [table.columns, *table.itertuples(index=False, name=None)]
    head, *body = ["| " + " | ".join(str(cell).translate(SIGNS) for cell in row) + " |" for row in rows]
    return [head, "| " + " | ".join("---" for _ in table.columns) + " |", *body]


def html(title: str, found: Sequence[Section], images: Mapping[str, bytes]) -> str:
    """images: name -> PNG."""
    loader = jinja2.FileSystemLoader(Path(__file__).resolve().parent)
    template = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True).get_template("report.html.j2")
    encoded = {name: base64.b64encode(data).decode() for name, data in images.items()}
    return template.render(title=title, sections=found, pictures=encoded, ours=OURS)


def percent(figure) -> str:
    """`96.3 (93.1–98.0)`, in per cent, with the 95 % interval, of anything with value, low and high."""
    return _ranged(figure, lambda value: f"{100 * value:.1f}")


def number(figure) -> str:
    """`0.997 (0.993–1.000)`."""
    return _ranged(figure, lambda value: f"{value:.3f}")


def _ranged(figure, form: Callable[[float], str]) -> str:
    if figure is None or math.isnan(figure.value):
        return NONE
    if math.isnan(figure.low):
        return form(figure.value)
    return f"{form(figure.value)} ({form(figure.low)}–{form(figure.high)})"


def _form(figure: str, group: str) -> Callable:
    """Cosines, AUROC and probabilities are numbers, shares are per cent."""
    cosines = group == "nearness" and not figure.startswith("nearer")
    return number if "auroc" in figure or cosines or group == "strength" else percent


def sections(result: dict, table: pd.DataFrame, images: Sequence[str]) -> list[Section]:
    """What the report says. result: the run's facts; table: see figures.figures; images: names of pictures."""
    titles = {s["key"]: s["title"] for s in result["sets"]}
    concepts = [concept for concept in table.concept.unique() if concept != ALL]
    found = [
        Section("The run", text=_facts(result)),
        Section("Safety against preservation", text=PICTURE, image="safety_preservation"),
    ]
    for concept in concepts:
        found.append(Section(f"All methods: {concept}", text=SUMMARY, table=_summary(table, concept)))
    together = table[table.concept == ALL]
    if len(together):
        cells = together.assign(
            set=together.set.map(titles), category=together.category.replace("", "all"),
            identical=[percent(row) for row in together.itertuples()],
        )[["set", "category", "identical"]]  # fmt: skip
        found.append(Section("All concepts switched on: harmless prompts bit-identical, ours", table=cells))
    found.append(Section("Strength", text=STRENGTH, image="strength"))
    for concept in concepts:
        found += _details(table[table.concept == concept], concept, titles)
    sets = pd.DataFrame(
        [(s["title"], s["role"], s["concept"] or "all", str(s["prompts"]), "yes" if s["paired"] else "no", s["source"])
         for s in result["sets"]],
        columns=["set", "role", "concept", "prompts", "paired", "source"],
    )  # fmt: skip
    methods = pd.DataFrame(result["methods"]).rename(columns={"name": "method"})
    found += [Section("Methods and sets", table=methods), Section("Prompt sets", 3, table=sets)]
    return [section for section in found if not section.image or section.image in images]


def _facts(result: dict) -> str:
    missing = ", ".join(result["missing_sets"]) or "none"
    return (
        f"Encoder `{result['encoder']}`, {result['fingerprint']}; sanitizer `{result['sanitizer']}`. "
        f"{result['examples']} examples to tune on, at most {result['limit'] or 'all'} prompts of a set, seed "
        f"{result['seed']}. {result['minutes']:.1f} minutes in this call. Sets of the table that were not given, and "
        f"so not measured: {missing}."
    )


def _summary(table: pd.DataFrame, concept: str) -> pd.DataFrame:
    own = table[(table.concept == concept) & (table.category == "")]
    own = pd.concat([own, probe_found(own, "all"), probe_found(own, "touched")])
    known = {(row.method, row.set, row.group, row.figure): row for row in own.itertuples()}
    held_out, scrambled, obfuscated = (f"{name}-{concept}" for name in (HELD_OUT, SCRAMBLED, OBFUSCATED))
    captions = "coco_captions" if "coco_captions" in own.set.values else BENIGN
    columns = {
        "AUROC": (held_out, "detection", "auroc"),
        "TPR": (held_out, "detection", "tpr_1"),
        "TPR, scrambled": (scrambled, "detection", "tpr_1"),
        "TPR, obfuscated": (obfuscated, "detection", "tpr_1"),
        "found, all": (held_out, "residual", "probe_all"),
        "found, touched": (held_out, "residual", "probe_touched"),
        "neighbour": (held_out, "residual", "neighbour_all"),
        "gain": (held_out, "nearness", "gain"),
        "nearer": (held_out, "nearness", "nearer"),
        "own counterfactual": (held_out, "retrieval", "after"),
        "all three": (held_out, "retrieval", "together"),
        "fresh": (held_out, "fresh", "linear_auroc"),
        "harmless identical": (captions, "harmless", "identical"),
        "counterfactuals identical": (held_out, "counterfactual", "identical"),
        "right word": (held_out, "localisation", "hit"),
    }
    rows = []
    for name in (method for method in own.method.unique() if method):
        row = {"method": name}
        for title, (where, group, figure) in columns.items():
            row[title] = _form(figure, group)(known.get((name, where, group, figure)))
        half = known[name, held_out, "strength", "linear_half"]
        row |= {"way at 0.5": _way(half), "time / encode": percent(known.get((name, "", "cost", "explicit")))}
        rows.append(row)
    return pd.DataFrame(rows)


def _way(figure) -> str:
    return NONE if math.isnan(figure.value) else f"{100 * figure.value:.0f}"


def _details(own: pd.DataFrame, concept: str, titles: Mapping[str, str]) -> list[Section]:
    plain, probes = own[own.category == ""], own[own.group == "probes"].set_index("figure")
    quality = "; ".join(
        f"{kind}: {percent(probes.loc[f'{kind}_unsafe'])} % of the unsafe prompts, "
        f"{percent(probes.loc[f'{kind}_counterfactual'])} % of their safe counterfactuals"
        for kind in ("linear", "mlp", "neighbour")
    )
    text = f"What the judges say of raw held-out prompts, called unsafe: {quality}."
    silent = plain[(plain.figure == "silently_changed") & (plain.value > 0)]
    if len(silent):
        names = ", ".join(f"{row.method} ({row.value:.0f})" for row in silent.itertuples())
        text += f" Methods that changed prompts which they said they had left alone: {names}."
    found = [Section(f"In detail: {concept}", text=text)]

    def add(title: str, group: str, columns: Mapping[str, str], text: str = "", by_set: bool = True) -> None:
        table = _wide(plain[plain.group == group], columns, titles, by_set)
        if len(table):
            found.append(Section(f"{title}: {concept}", 3, text, table))

    add(
        "Detection", "detection",
        {"auroc": "AUROC", "tpr_1": "TPR at 1 %", "tpr_5": "TPR at 5 %", "auroc_counterfactual":
         "AUROC to counterfactuals", "touched": "touched"},
        "Negatives are all benign sets together. TPR: true positive rate at this false positive rate.",
    )  # fmt: skip
    found += _by_category(own, "detection", "TPR at 1 %", concept, titles)
    add("Bit-identical", "harmless", {"identical": "identical"})
    add("Bit-identical safe counterfactuals", "counterfactual", {"identical": "identical"})
    found += _by_category(own, "harmless", "bit-identical", concept, titles)
    kinds = {"linear": "linear", "mlp": "MLP", "neighbour": "neighbour"}
    add(
        "What is left of the concept", "residual",
        {f"{kind}_{column}": f"{title}, {column}" for kind, title in kinds.items()
         for column in ("raw", "all", "touched", "counterfactual")},
    )  # fmt: skip
    fresh = {"linear_auroc": "linear: AUROC", "linear_found": "found", "mlp_auroc": "MLP: AUROC", "mlp_found": "found "}
    add("Probes trained anew on sanitized prompts", "fresh", fresh, by_set=False)
    add(
        "Nearness to the safe counterfactual", "nearness",
        {"before": "cosine raw", "after": "sanitized", "gain": "gain", "nearer": "nearer",
         "gain_touched": "gain, touched", "nearer_touched": "nearer, touched"},
    )  # fmt: skip
    add(
        "Own counterfactual among all", "retrieval",
        {"before": "raw", "after": "sanitized", "touched": "touched", "together": "all three"},
    )  # fmt: skip
    add("Right word", "localisation", {"hit": "highest score on it", "chance": "by chance"})
    strengths = {f"linear_{s:g}": f"{s:g}" for s in STRENGTHS}
    add("Strength, linear probe's mean probability", "strength", strengths, by_set=False)
    add(
        "Time as a share of encoding the same prompts, per cent", "cost",
        {"harmless": "harmless", "explicit": "explicit"}, "Median over batches, in the same run.", by_set=False,
    )  # fmt: skip
    return found


def _wide(own: pd.DataFrame, columns: Mapping[str, str], titles: Mapping[str, str], by_set: bool) -> pd.DataFrame:
    """One row a set and method, one column a figure, as text; empty columns are left out."""
    own = own[own.figure.isin(columns.keys()) & (own.method != "")]
    own = own.iloc[pd.Categorical(own.set, own.set.unique()).codes.argsort(kind="stable")]
    text = [_form(row.figure, row.group)(row) for row in own.itertuples()]
    index = ["set", "method"] if by_set else ["method"]
    order = pd.MultiIndex.from_frame(own[index].drop_duplicates()) if by_set else own.method.unique()
    wide = own.assign(text=text).pivot(index=index, columns="figure", values="text").reindex(order)
    wide = wide.reindex(columns=[name for name in columns if name in wide]).rename(columns=columns).fillna(NONE)
    wide = wide.reset_index(names=index).rename_axis(columns=None)
    return wide.assign(set=wide.set.map(titles)) if by_set else wide


def _by_category(own: pd.DataFrame, group: str, title: str, concept: str, titles) -> list[Section]:
    found = []
    split = own[(own.group == group) & (own.category != "")]
    for key, part in split.groupby("set", sort=False):
        text = [percent(row) for row in part.itertuples()]
        wide = part.assign(text=text).pivot(index="category", columns="method", values="text").fillna(NONE)
        wide = wide.reindex(index=category_labels(part), columns=part.method.unique())
        table = wide.reset_index().rename_axis(columns=None)
        found.append(Section(f"{titles[key]}, {title}: {concept}", 3, table=table))
    return found


def _missed(m: Measured, concept: str) -> Section:
    """The held-out explicit prompts that ours let pass, in their own words: only where the user asked for them."""
    rows = []
    for s in m.of_concept(concept, UNSAFE_ROLES):
        if s.role == "explicit":
            tensors = m.entry(concept, OURS, s).tensors
            scores, missed = tensors["scores"].tolist(), tensors["identical"].nonzero().squeeze(1).tolist()
            rows += [(s.title, f"{scores[i]:.3f}", s.prompts[i]) for i in missed]
    table = pd.DataFrame(rows, columns=["set", "score", "prompt"]).sort_values("score", kind="stable")
    return Section(f"Explicit prompts that ours let pass: {concept}", table=table)
