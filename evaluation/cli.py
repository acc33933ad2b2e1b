"""The command line: `run` measures all methods on all prompt sets, `attack` attacks one sanitizer, `memory` measures
what training takes."""

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from sanitizer.errors import SanitizerError
from sanitizer.render.terminal import printable

REFUSED, INTERRUPTED = 1, 130
CONCEPTS = "nudity,violence"
EXAMPLES, LIMIT = 1000, 2000
QUICK_EXAMPLES, QUICK_LIMIT = 200, 80


def build_parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    """The attack's own options are loaded only where an attack is asked for."""
    parser = argparse.ArgumentParser(prog="python -m evaluation", description="Prompt sets in, figures out.")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="measure all methods on all prompt sets and write a report")
    run.add_argument("--encoder", required=True, help="as for python -m sanitizer: minilm, minilm-causal, a folder, …")
    run.add_argument("--sanitizer", default="auto", help="a file, or auto: the one in weights/ for this encoder")
    run.add_argument("--methods", default="all", help="all, or names divided by commas")
    run.add_argument("--concepts", default=CONCEPTS, help=f"names divided by commas ({CONCEPTS})")
    run.add_argument("--prompt-sets", type=Path, help="folder with prompt sets, see evaluation/prompt_sets.toml")
    run.add_argument(
        "--output", type=Path, required=True, help="folder of the report; a run that was cut off goes on in it"
    )
    quick = f"small samples: {QUICK_EXAMPLES} examples, {QUICK_LIMIT} prompts a set"
    run.add_argument("--quick", action="store_true", help=quick)
    run.add_argument("--limit", type=_positive, help=f"most prompts of a set ({LIMIT})")
    run.add_argument("--examples", type=_positive, help=f"unsafe prompts to tune methods and probes on ({EXAMPLES})")
    run.add_argument("--seed", type=int, default=0)
    run.add_argument("--show-prompts", action="store_true", help="show the words of missed prompts in the report")
    run.set_defaults(main=run_command)
    attack = commands.add_parser("attack", help="attack a sanitizer through its text encoder")
    if arguments[:1] == ["attack"]:
        from .attacks import cli as attacks

        attacks.add_arguments(attack)
        attack.set_defaults(main=attacks.main)
    memory = commands.add_parser("memory", help="train on a stand-in for a wide encoder and print the peak memory")
    memory.add_argument("--width", type=_positive, default=4096, help="channels (4096)")
    memory.add_argument("--rows", type=_positive, default=256, help="rows of every prompt (256)")
    memory.add_argument("--examples", type=_positive, help="training prompts (the full set)")
    memory.set_defaults(main=memory_command)
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, found {value}")
    return value


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 1 refused with one line, 130 interrupted."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    options = build_parser(arguments).parse_args(arguments)
    try:
        return options.main(options)
    except SanitizerError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return REFUSED
    except KeyboardInterrupt:
        print("Interrupted; the same command goes on from here.", file=sys.stderr)
        return INTERRUPTED


def run_command(options: argparse.Namespace) -> int:
    """`run`: see the options of build_parser."""
    from sanitizer.cli.train import Bars

    from . import runner
    from .report.plots import check_matplotlib
    from .report.write import write_report

    clock = runner.Clock()
    check_matplotlib()
    factories = choose_methods(options.methods)
    concepts = choose_concepts(options.concepts)
    given, missing = _given(options.prompt_sets, concepts)
    for name in missing:
        print(f"{name}: not in {options.prompt_sets}, skipped.", file=sys.stderr)
    own = [name for name in runner.OWN if name in factories]
    encoder, sanitizer, path = load(options.encoder, options.sanitizer, bool(own))
    if sanitizer is not None:
        _check_erasable(sanitizer, path, concepts)
        factories |= {name: partial(factories[name], sanitizer) for name in own}
    examples = options.examples or (QUICK_EXAMPLES if options.quick else EXAMPLES)
    limit = options.limit or (QUICK_LIMIT if options.quick else LIMIT)
    settings = {
        "encoder": encoder.fingerprint.to_dict(),
        "examples": examples,
        "limit": limit,
        "seed": options.seed,
        "concept files": runner.concept_digest(),
    }
    sets = runner.collect_sets(concepts, given, examples, limit, options.seed)
    store = runner.Store(options.output / "parts", settings)
    with Bars() as bars:
        measured = runner.run(
            encoder, factories, concepts, sets, store,
            examples=examples, seed=options.seed,
            progress=lambda stage, done, total: bars(stage, done, total, {}),
            sanitizer=sanitizer if runner.OURS in own else None,
            digest=runner.sanitizer_digest(path),
        )  # fmt: skip
    facts = {
        "encoder": options.encoder,
        "fingerprint": str(encoder.fingerprint),
        "sanitizer": path.name if path else "none",
        "sanitizer_sha256": runner.file_digest(path) if path else None,
        "examples": examples,
        "limit": limit,
        "seed": options.seed,
        "missing_sets": missing,
    }
    report = write_report(measured, facts, options.output, options.show_prompts, clock)
    print(f"{report}: written. {clock.minutes:.1f} minutes.", file=sys.stderr)
    return 0


def memory_command(options: argparse.Namespace) -> int:
    """`memory`: see evaluation/memory.py."""
    from . import memory

    return memory.main(options)


def choose_methods(names: str) -> dict[str, Callable]:
    """Name -> factory, in the order of the methods' own table. Raises SanitizerError for an unknown name."""
    from .methods import METHODS

    wanted = _names(names)
    if wanted == ["all"]:
        return dict(METHODS)
    for name in wanted:
        if name not in METHODS:
            raise SanitizerError(f"--methods: there is no method {name!r}. There are: {', '.join(METHODS)}.")
    if not wanted:
        raise SanitizerError(f"--methods: expected all or names out of {', '.join(METHODS)}, found none.")
    return {name: METHODS[name] for name in METHODS if name in wanted}


def choose_concepts(names: str) -> list[str]:
    """Names of concept files that can be erased. Raises SanitizerError for any other."""
    from sanitizer.prompts.concepts import load_concepts

    wanted = _names(names)
    if not wanted:
        raise SanitizerError("--concepts: expected names of concept files, found none.")
    for name in wanted:
        for concept in load_concepts([name]):
            if concept.name == name and not any(pair.held_out for pair in concept.pairs):
                raise SanitizerError(f"--concepts: {name!r} has no held-out phrases to measure on.")
    return wanted


def _names(text: str) -> list[str]:
    return list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def _given(folder: Path | None, concepts: Sequence[str]):
    from .prompt_sets import load_sets

    return ([], []) if folder is None else load_sets(folder, concepts)


def load(encoder: str, sanitizer: str, with_sanitizer: bool):
    """(encoder, sanitizer or None, its file or None). Raises SanitizerError where one is missing or they do not fit."""
    if not with_sanitizer:
        from sanitizer.encoders import load_encoder

        return load_encoder(encoder), None, None
    from sanitizer.cli.pipeline import load_pair

    return load_pair(encoder, sanitizer)


def _check_erasable(sanitizer, path: Path, concepts: Sequence[str]) -> None:
    for name in concepts:
        if name not in sanitizer.erasable:
            known = ", ".join(sanitizer.erasable)
            raise SanitizerError(f"{path}: knows nothing of {name!r}, only of {known}. Choose --concepts among them.")
