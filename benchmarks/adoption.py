"""`adoption`: whether a sanitizer is adopted for an encoder whose weights were changed, how it does there, and the time
that it takes; and what training from there, or anew, brings where it is not."""

import argparse
import time
from collections.abc import Sequence

import torch

from sanitizer.encoders import load_encoder
from sanitizer.errors import SanitizerError
from sanitizer.model import artifact
from sanitizer.prompts.concepts import load_concepts
from sanitizer.training.adopt import adopt
from sanitizer.training.fit import fit
from sanitizer.training.report import Report

RANK = 8
"""Of a change, as LoRA are made."""


def low_rank(weight: torch.Tensor, share: float, draw: torch.Generator) -> torch.Tensor:
    """A change of RANK whose norm is that share of the weight's (Frobenius)."""
    change = torch.randn(weight.shape[0], RANK, generator=draw) @ torch.randn(RANK, weight.shape[1], generator=draw)
    return share * change * (weight.norm() / change.norm())


def change(encoder, what: str, draw: torch.Generator) -> None:
    """Change an encoder in place: its weights by a share, or "shuffled", or "layer", to leave out the last one."""
    if what == "layer":
        del encoder.model.encoder.layer[-1]
        return
    for name, parameter in encoder.model.named_parameters():
        if parameter.ndim != 2 or "embeddings" in name:
            continue
        if what == "shuffled":
            mixed = parameter.data.flatten()[torch.randperm(parameter.numel(), generator=draw)]
            parameter.data = mixed.reshape(parameter.shape)
        else:
            parameter.data += low_rank(parameter.data, float(what), draw)


def main(options: argparse.Namespace) -> int:
    """Try each change and print a line for it."""
    _, known, path = artifact.load_pair(options.encoder, options.sanitizer, program="python -m sanitizer")
    concepts = load_concepts(known.concepts)
    print(f"{path.name} on {options.encoder}, {torch.get_num_threads()} threads")
    print(f"{'change':>10}{'':>10}{'found':>9}{'before':>8}{'untouched':>11}{'before':>8}{'seconds':>9}")
    for what in options.changes.split(","):
        encoder = load_encoder(options.encoder)
        change(encoder, what, torch.Generator().manual_seed(options.seed))
        began = time.perf_counter()
        try:
            adoption = adopt(encoder, known, concepts)
        except SanitizerError as error:
            print(f"{what:>10}{'refused':>10}  {error}", flush=True)
            continue
        said = "adopted" if adoption.kept else "near" if adoption.near else "refused"
        print(_line(what, said, adoption.after, adoption.before, began, known.erasable), flush=True)
        if options.train and not adoption.kept:
            start, began = known if adoption.near else None, time.perf_counter()
            _, report = fit(encoder, concepts, start=start)
            said = "trained" if start is None else "warm"
            print(_line(what, said, report, adoption.before, began, known.erasable), flush=True)
    return 0


def _line(what: str, said: str, after: Report, before: Report, began: float, names: Sequence[str]) -> str:
    shares = [
        100 * (value or 0.0)
        for pair in ((after.found(names), before.found(names)), (after.benign_identical, before.benign_identical))
        for value in pair
    ]
    seconds = time.perf_counter() - began
    return "{:>10}{:>10}{:8.1f}%{:7.1f}%{:10.1f}%{:7.1f}%{:9.0f}".format(what, said, *shares, seconds)
