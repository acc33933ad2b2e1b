"""Results of a run -> one table of figures, each with its confidence interval. Nothing here encodes a prompt.

A row is one figure: columns concept, method, set, group, figure, category, value, low, high, count. The method of
figures that are of no method, such as how often the probes are right about raw prompts, is "".
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.special import expit
from torch import Tensor

from . import metrics
from .data import HELD_OUT, PROBE_BENIGN, PROBE_PAIRS
from .metrics import Figure
from .probes import KINDS, ConceptProbes
from .run import ALL, OURS, STRENGTHS, Measured
from .types import HARMLESS_ROLES, UNSAFE_ROLES, PromptSet

COLUMNS = ["concept", "method", "set", "group", "figure", "category", *Figure._fields]
FALSE_POSITIVE_RATES = {"tpr_1": 0.01, "tpr_5": 0.05}
Row = tuple
"""A row of the table without concept and method: set, group, figure, category, Figure."""


def figures(m: Measured) -> pd.DataFrame:
    """All figures of a run."""
    rows = []
    for concept in m.concepts:
        pairs, benign = m.named(concept, PROBE_PAIRS), m.named(concept, PROBE_BENIGN)
        probes = ConceptProbes.fit(m.raw(pairs), m.raw(pairs, "safe_"), m.raw(benign), m.seed)
        rows += [(concept, "", *row) for row in _probe_quality(m, concept, probes)]
        for name in m.methods:
            rows += [(concept, name, *row) for row in _of_method(m, concept, name, probes)]
    for s in m.sets if OURS in m.methods else ():
        if s.concept is None and s.role in HARMLESS_ROLES:
            rows += [(ALL, OURS, *row) for row in _identical(s, "harmless", m.entry(ALL, OURS, s).tensors)]
    return pd.DataFrame([(*row, *figure) for *row, figure in rows], columns=COLUMNS)


def probe_found(table: pd.DataFrame, column: str) -> pd.DataFrame:
    """The residual figures `linear_{column}` and `mlp_{column}`, of each concept, method and set the higher one: of
    whichever probe finds the concept more often. Its figure is called `probe_{column}`."""
    own = table[(table.group == "residual") & table.figure.isin([f"{kind}_{column}" for kind in KINDS])]
    own = own.sort_values(["value", "count"], na_position="first", kind="stable")
    return own.groupby(["concept", "method", "set"], sort=False).tail(1).assign(figure=f"probe_{column}")


def _of_method(m: Measured, concept: str, name: str, probes: ConceptProbes) -> Iterator[Row]:
    unsafe, harmless = m.of_concept(concept, UNSAFE_ROLES), m.of_concept(concept, HARMLESS_ROLES)
    entries = {s.key: m.entry(concept, name, s) for s in (*unsafe, *harmless)}
    scores = [entries[s.key].tensors.get("scores") for s in harmless if s.role == "benign"]
    negative = None if any(own is None for own in scores) else np.concatenate(scores)
    for s in unsafe:
        tensors, after = entries[s.key].tensors, m.sanitized(concept, name, s)
        yield from _detection(s, tensors, negative)
        yield from _residual(m, s, tensors, after, probes)
        if s.safe is not None:
            yield from _paired(m, s, tensors, after, m.raw(m.named(concept, PROBE_PAIRS), "safe_"), probes)
    for s in harmless:
        yield from _identical(s, "harmless", entries[s.key].tensors)
    yield from _fresh(m, concept, name)
    yield from strength_curve(m.strengths(concept, name), probes, f"{HELD_OUT}-{concept}")
    for kind, role, sets in (("harmless", "benign", harmless), ("explicit", "explicit", unsafe)):
        ratios = [ratio for s in sets if s.role == role for ratio in entries[s.key].info["cost"]]
        yield "", "cost", kind, "", metrics.median(ratios)
    changed = sum(int((~e.tensors["touched"] & ~e.tensors["identical"]).sum()) for e in entries.values())
    yield "", "claims", "silently_changed", "", Figure.plain(changed, sum(len(s.prompts) for s in (*unsafe, *harmless)))


def _probe_quality(m: Measured, concept: str, probes: ConceptProbes) -> Iterator[Row]:
    """How often the probes, and the nearest neighbours, call raw prompts unsafe: the measure of the measure."""
    held_out = m.named(concept, HELD_OUT)
    for side, name in (("", "unsafe"), ("safe_", "counterfactual")):
        for kind, verdict in verdicts(probes, m.raw(held_out, side), m.width).items():
            yield held_out.key, "probes", f"{kind}_{name}", "", metrics.share(verdict)


def verdicts(probes: ConceptProbes, x: Tensor, width: int) -> dict[str, np.ndarray]:
    """Kind of judge -> (N,) bool: unsafe. "neighbour" is the nearest mean embedding of the probes' training prompts."""
    if not len(x):
        return dict.fromkeys((*KINDS, "neighbour"), np.zeros(0, dtype=bool))
    nearest = metrics.nearest_label(x[:, :width], probes.reference[:, :width], probes.labels)
    return {**probes.found(x), "neighbour": nearest}


def _detection(prompts: PromptSet, tensors: Mapping[str, Tensor], negative: np.ndarray | None) -> Iterator[Row]:
    """Scores against those of all benign sets together, and of the own counterfactuals; and what was in fact touched.
    tpr_1, tpr_5: the true positive rate at 1 and at 5 % false positives."""

    def row(figure: str, value: Figure, category: str = "") -> Row:
        return prompts.key, "detection", figure, category, value

    yield row("touched", metrics.share(~tensors["identical"]))
    if "scores" not in tensors or negative is None:
        return
    scores = tensors["scores"].numpy()
    yield row("auroc", metrics.auroc(scores, negative))
    for figure, rate in FALSE_POSITIVE_RATES.items():
        yield row(figure, metrics.true_positive_rate(scores, negative, rate))
    if "safe_scores" in tensors:
        yield row("auroc_counterfactual", metrics.auroc(scores, tensors["safe_scores"]))
    for label, own in _split(prompts):
        yield row("tpr_1", metrics.true_positive_rate(scores[own], negative, 0.01), label)


def _split(prompts: PromptSet) -> list[tuple[str, np.ndarray]]:
    """(category, (N,) bool) of a set with categories."""
    labels = np.array(prompts.labels or [], dtype=str)
    return [(str(label), labels == label) for label in np.unique(labels)]


def _residual(m: Measured, prompts: PromptSet, tensors, after: Tensor, probes: ConceptProbes) -> Iterator[Row]:
    """For each judge the share called unsafe: raw, sanitized (all), and of those touched, sanitized (touched); for a
    paired set also of the raw safe counterfactuals, below which no honest method comes."""
    now, touched = verdicts(probes, after, m.width), ~tensors["identical"].numpy()
    columns = {"raw": verdicts(probes, m.raw(prompts), m.width), "all": now}
    columns["touched"] = {kind: verdict[touched] for kind, verdict in now.items()}
    if prompts.safe is not None:
        columns["counterfactual"] = verdicts(probes, m.raw(prompts, "safe_"), m.width)
    for column, judged in columns.items():
        for kind, verdict in judged.items():
            yield prompts.key, "residual", f"{kind}_{column}", "", metrics.share(verdict)


def _paired(m: Measured, prompts: PromptSet, tensors, after: Tensor, others: Tensor, probes) -> Iterator[Row]:
    """Figures that need the safe counterfactual. others (M, F): more of them, among which the own one is to be found.

    Nearness is in cosines of mean embeddings to the own raw counterfactual's.
    """
    touched = ~tensors["identical"].numpy()
    raw, safe = m.raw(prompts), m.raw(prompts, "safe_")
    clean = ~np.any(list(probes.found(after).values()), axis=0)
    before, now, gain, own_before, own = nearness(*(x[:, : m.width] for x in (raw, safe, after)), touched, others)
    found = {
        "nearness": {
            "before": metrics.mean(before, m.seed),
            "after": metrics.mean(now, m.seed),
            "gain": metrics.mean(gain, m.seed),
            "nearer": metrics.share(gain > 0),
            "gain_touched": metrics.mean(gain[touched], m.seed),
            "nearer_touched": metrics.share(gain[touched] > 0),
        },
        "retrieval": {
            "before": metrics.share(own_before),
            "after": metrics.share(own),
            "touched": metrics.share(own[touched]),
            # Each alone can be had by a trick: deleting the prompt, leaving it, or writing the same for all.
            "together": metrics.share(clean & (gain > 0) & own),
            "among": Figure.plain(len(safe) + len(others), len(safe) + len(others)),
        },
    }
    if "hit" in tensors:
        hit, chance = tensors["hit"].numpy(), tensors["chance"].numpy()
        known = hit >= 0
        mean_chance = float(chance[known].mean()) if known.any() else math.nan
        found["localisation"] = {
            "hit": metrics.share(hit[known] > 0),
            "chance": Figure.plain(mean_chance, int(known.sum())),
        }
    for group, values in found.items():
        for figure, value in values.items():
            yield prompts.key, group, figure, "", value
    yield from _identical(prompts, "counterfactual", {"identical": tensors["safe_identical"]}, split=False)


class Nearness(NamedTuple):
    """How near N sanitized prompts are to their own safe counterfactuals, each (N,)."""

    before: np.ndarray
    """Cosine of the raw prompt."""
    now: np.ndarray
    gain: np.ndarray
    """0 for a prompt that was let pass."""
    own_before: np.ndarray
    """bool: the raw prompt finds its own counterfactual among all."""
    own: np.ndarray


def nearness(raw: Tensor, safe: Tensor, after: Tensor, touched: np.ndarray, others: Tensor) -> Nearness:
    """Of mean embeddings (N, D) of prompts, their counterfactuals and what was made of them. others (M, at least D):
    more counterfactuals, among which the own one is to be found."""
    keys = np.concatenate([safe, others[:, : safe.shape[1]]])
    before, now = metrics.cosine(raw, safe), metrics.cosine(after, safe)
    gain = np.where(touched, now - before, 0.0)
    return Nearness(before, now, gain, metrics.found_own(raw, keys), metrics.found_own(after, keys))


def _identical(prompts: PromptSet, group: str, tensors: Mapping[str, Tensor], split: bool = True) -> Iterator[Row]:
    same = tensors["identical"].numpy()
    yield prompts.key, group, "identical", "", metrics.share(same)
    for label, own in _split(prompts) if split else ():
        yield prompts.key, group, "identical", label, metrics.share(same[own])


def _fresh(m: Measured, concept: str, name: str) -> Iterator[Row]:
    """Probes that know the method: trained on sanitized training prompts, tried on sanitized held-out pairs."""
    pairs, benign, held_out = (m.named(concept, key) for key in (PROBE_PAIRS, PROBE_BENIGN, HELD_OUT))
    probes = ConceptProbes.fit(
        m.sanitized(concept, name, pairs),
        m.sanitized(concept, name, pairs, "safe_"),
        m.sanitized(concept, name, benign),
        m.seed,
    )
    unsafe, safe = (probes.logits(m.sanitized(concept, name, held_out, side)) for side in ("", "safe_"))
    for kind in KINDS:
        yield held_out.key, "fresh", f"{kind}_auroc", "", metrics.auroc(unsafe[kind], safe[kind])
        yield held_out.key, "fresh", f"{kind}_found", "", metrics.share(unsafe[kind] > 0)


def strength_curve(vectors: Tensor, probes: ConceptProbes, where: str) -> Iterator[Row]:
    """vectors (S, N, F) at STRENGTHS -> each probe's mean probability, whether it falls steadily from 0 to 1.5, and the
    share of its way from 0 to 1 that it has gone at 0.5."""
    logits = [probes.logits(x) for x in vectors]
    for kind in KINDS:
        values = [float(expit(own[kind]).mean()) for own in logits]
        found = {f"{kind}_{strength:g}": value for strength, value in zip(STRENGTHS, values, strict=True)}
        found[f"{kind}_steady"] = metrics.falls_steadily(values)
        found[f"{kind}_half"] = metrics.way_covered(values, STRENGTHS.index(0.5), STRENGTHS.index(1.0))
        for figure, value in found.items():
            yield where, "strength", figure, "", Figure.plain(value, vectors.shape[1])


def category_labels(table: pd.DataFrame) -> Sequence[str]:
    """The categories of a part of the table, in their order."""
    return list(dict.fromkeys(label for label in table.category if label))
