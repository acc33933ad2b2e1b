"""`training`: how long a sanitizer of one concept takes to train, stage by stage."""

import argparse
import time
from itertools import pairwise

import torch

from sanitizer.encoders import load_encoder
from sanitizer.prompts.concepts import load_concepts
from sanitizer.training.fit import fit


class Stopwatch:
    """A progress callback that notes the seconds between the first calls of stages that follow each other."""

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.first: dict[str, float] = {}

    def __call__(self, stage: str, done: int, total: int, values: dict[str, float]) -> None:
        self.first.setdefault(stage, time.perf_counter())

    def seconds(self) -> dict[str, float]:
        """Stage -> seconds, in their order; what came before the first one counts as "prepare"."""
        times = pairwise([self.began, *self.first.values(), time.perf_counter()])
        return {name: end - start for name, (start, end) in zip(["prepare", *self.first], times, strict=True)}


def main(options: argparse.Namespace) -> int:
    """Train and print the seconds."""
    encoder = load_encoder(options.encoder)
    concepts = [concept for concept in load_concepts([options.concept]) if concept.name == options.concept]
    watch = Stopwatch()
    _, report = fit(encoder, concepts, examples=options.examples, seed=options.seed, progress=watch)
    found = watch.seconds()
    for stage, seconds in found.items():
        print(f"{stage:24}{seconds:9.1f} s")
    print(
        f"{options.concept} on {encoder.name}: {sum(found.values()):.1f} s for {report.examples} prompts, "
        f"{torch.get_num_threads()} threads."
    )
    return 0
