"""`cost`: how long methods take to sanitize, as a share of encoding the same prompts in the same run."""

import argparse
from functools import partial

from evaluation.cli import choose_methods
from evaluation.data import HELD_OUT, benign_set, bundled_sets
from evaluation.methods import OWN
from evaluation.metrics import median
from evaluation.run import check_erasable, load, measure_set
from evaluation.split import make_development

EXAMPLES = 200
"""Prompts to tune the methods on, which have to be fitted before they can be timed."""


def main(options: argparse.Namespace) -> int:
    """Measure and print a line for each method."""
    factories = choose_methods(options.methods)
    own = [name for name in OWN if name in factories]
    encoder, sanitizer, path = load(options.encoder, options.sanitizer if own else None)
    if sanitizer is not None:
        check_erasable(sanitizer, path, [options.concept], "--concept")
        factories |= {name: partial(factories[name], sanitizer) for name in own}
    development = make_development(encoder, options.concept, 0, EXAMPLES)
    methods = {(options.concept, name): factory() for name, factory in factories.items()}
    for method in methods.values():
        method.fit(development)
    explicit = next(s for s in bundled_sets(options.concept, 1, options.prompts, 0) if s.name == HELD_OUT)
    print(f"{'per cent of encoding':24}{'harmless':>24}{'explicit':>24}")
    lines = dict.fromkeys(factories, "")
    for prompts in (benign_set(options.prompts, 0), explicit):
        _, found = measure_set(encoder, development.normalizer, prompts, methods, lambda *_: None)
        for (_, name), entry in found.items():
            figure = median(entry.info["cost"])
            lines[name] += f"{100 * figure.value:.1f} ({100 * figure.low:.1f}–{100 * figure.high:.1f})".rjust(24)
    for name, line in lines.items():
        print(f"{name:24}{line}")
    return 0
