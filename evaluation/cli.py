"""The command line: `run` measures all methods on all prompt sets, `attack` attacks one sanitizer, `length` measures
it on long prompts, `pictures` measures all methods on pictures, `picture-model`, `picture-autoencoder` and
`picture-reader` train what draws and reads them, `memory` measures what training takes."""

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from types import ModuleType

from sanitizer.errors import SanitizerError
from sanitizer.exits import exit_code
from sanitizer.files import keep_apart, make_folder

WRITTEN = ("parts", "attacks", "pictures", "report.html", "report.md", "result.json", "length.md", "length.json")
"""What lies in the folder of a report."""
CONCEPTS = "nudity,violence"
EXAMPLES, LIMIT = 1000, 2000
QUICK_EXAMPLES, QUICK_LIMIT = 200, 80
SAMPLES, BUDGET, JUDGE_EXAMPLES = 20, 2000, 1000
QUICK_SAMPLES, QUICK_BUDGET, QUICK_JUDGE_EXAMPLES = 4, 300, 300
PUBLISHED_BUDGET = 512_000
LENGTH_SAMPLES = 200


class Parser(argparse.ArgumentParser):
    """One whose help that cannot be written is an error; argparse's own drops it without a word."""

    def _print_message(self, message: str, file=None) -> None:
        (file or sys.stderr).write(message)


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m evaluation", description="Prompt sets in, figures out.")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="measure all methods on all prompt sets and write a report")
    _add_pair(run)
    run.add_argument("--methods", default="all", help="all, or names divided by commas")
    run.add_argument("--concepts", default=CONCEPTS, help=f"names divided by commas ({CONCEPTS})")
    run.add_argument("--prompt-sets", type=Path, help="folder with prompt sets, see evaluation/prompt_sets.toml")
    run.add_argument(
        "--output", type=Path, required=True, help="folder of the report; a run that was cut off goes on in it"
    )
    quick = f"small samples: {QUICK_EXAMPLES} examples, {QUICK_LIMIT} prompts a set"
    run.add_argument("--quick", action="store_true", help=quick)
    run.add_argument("--limit", type=positive, help=f"most prompts of a set ({LIMIT})")
    run.add_argument("--examples", type=positive, help=f"unsafe prompts to tune methods and probes on ({EXAMPLES})")
    run.add_argument("--seed", type=seed, default=0)
    run.add_argument("--show-prompts", action="store_true", help="list the missed prompts in the report")
    run.set_defaults(main=run_command)
    attack = commands.add_parser("attack", help="attack a sanitizer through its text encoder")
    _add_pair(attack)
    names = "obfuscation, mma, ring-a-bell, adaptive-mma, adaptive-ring-a-bell, substitution, control"
    attack.add_argument("--attacks", default="all", help=f"all, or names divided by commas: {names}")
    attack.add_argument("--concept", default="nudity", help="the concept to bring through (nudity)")
    attack.add_argument("--targets", help="file of unsafe target prompts, .txt, .csv or .jsonl; else held-out phrases")
    attack.add_argument("--column", default="prompt", help="the targets' column or key (prompt)")
    attack.add_argument("--samples", type=positive, help=f"targets to attack with ({SAMPLES})")
    attack.add_argument(
        "--budget", type=_budget,
        help=f"prompts that a search may encode for a target ({BUDGET}); 'published': {PUBLISHED_BUDGET:,}",
    )  # fmt: skip
    attack.add_argument("--examples", type=positive, help=f"prompts to train the judge on ({JUDGE_EXAMPLES})")
    attack.add_argument("--seed", type=seed, default=0)
    attack.add_argument(
        "--output", type=Path, required=True, help="folder of the report; attacks that were cut off go on in it"
    )
    quick = f"{QUICK_SAMPLES} targets, a budget of {QUICK_BUDGET}, {QUICK_JUDGE_EXAMPLES} examples"
    attack.add_argument("--quick", action="store_true", help=quick)
    attack.add_argument("--show-prompts", action="store_true", help="write the adversarial prompts into the results")
    attack.set_defaults(main=attack_command)
    length = commands.add_parser("length", help="what is flagged among harmless words, and what harmless texts lose")
    _add_pair(length)
    length.add_argument("--concepts", default=CONCEPTS, help=f"names divided by commas ({CONCEPTS})")
    length.add_argument("--captions", type=Path, help="file of harmless captions, .txt, .csv or .jsonl")
    length.add_argument("--samples", type=positive, default=LENGTH_SAMPLES, help=f"prompts a kind ({LENGTH_SAMPLES})")
    length.add_argument("--seed", type=seed, default=0)
    length.add_argument("--output", type=Path, required=True, help="folder for length.md and length.json")
    length.set_defaults(main=length_command)
    pictures = commands.add_parser("pictures", help="draw what all methods make of prompts, read the pictures, count")
    pictures.add_argument("--encoder", required=True, help="minilm-causal or minilm: it needs a picture model")
    pictures.add_argument("--methods", default="all", help="all, or names divided by commas")
    pictures.add_argument("--model", type=Path, help="the picture model (evaluation/pictures/weights/)")
    pictures.add_argument("--sanitizer", type=Path, help="one trained on evaluation/pictures/weapon.toml; else trained")
    pictures.add_argument("--seed", type=seed, default=0)
    pictures.add_argument("--quick", action="store_true", help="few prompts, three strengths, a small training")
    pictures.add_argument(
        "--output", type=Path, required=True, help="folder of the report; a measurement that was cut off goes on in it"
    )
    pictures.set_defaults(main=pictures_command)
    model = commands.add_parser("picture-model", help="train the diffusion model that draws scenes")
    model.add_argument("--encoder", required=True, help="as for python -m sanitizer: minilm, minilm-causal, …")
    model.add_argument("--steps", type=positive, help="optimiser steps (as the committed ones)")
    model.add_argument("--device", default="cpu", help="cpu, or cuda")
    model.add_argument("--compile", action="store_true", help="a third faster on a CPU; needs a C++ compiler")
    model.add_argument("--output", type=Path, required=True, help="folder; a training that was cut off goes on in it")
    model.set_defaults(main=picture_model_command)
    autoencoder = commands.add_parser("picture-autoencoder", help="train the autoencoder that the model works in")
    autoencoder.add_argument("--output", type=Path, required=True, help="folder for autoencoder.safetensors")
    autoencoder.set_defaults(main=picture_autoencoder_command)
    reader = commands.add_parser("picture-reader", help="train the classifier that reads pictures")
    reader.add_argument("--output", type=Path, required=True, help="folder for reader.safetensors")
    reader.set_defaults(main=picture_reader_command)
    memory = commands.add_parser("memory", help="the same as python -m benchmarks memory")
    memory.add_argument("--width", type=positive, default=4096, help="channels (4096)")
    memory.add_argument("--rows", type=positive, default=256, help="token embeddings of every prompt (256)")
    memory.add_argument("--examples", type=positive, help="training prompts (the full set)")
    memory.set_defaults(main=memory_command)
    return parser


def _add_pair(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--encoder", required=True, help="as for python -m sanitizer: minilm, minilm-causal, a folder, …"
    )
    parser.add_argument("--sanitizer", default="auto", help="a file, or auto: the one in weights/ for this encoder")


def positive(text: str) -> int:
    """A whole number from 1, of an option."""
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a whole number, found {text!r}") from None
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, found {value}")
    return value


def seed(text: str) -> int:
    """A whole number that torch, numpy and Python take as a seed, of an option."""
    if not text.isdecimal() or not 0 <= int(text) < 2**32:
        raise argparse.ArgumentTypeError(f"expected a whole number from 0 to {2**32 - 1}, found {text!r}")
    return int(text)


def _budget(text: str) -> int:
    try:
        return PUBLISHED_BUDGET if text == "published" else positive(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{error}; or give 'published'") from None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 1 refused with one line, 130 interrupted, 143 terminated."""
    with exit_code("the same command goes on from here.") as end:
        options = build_parser().parse_args(arguments)
        end.code = options.main(options)
    return end.code


class Bars:
    """Progress as a bar on standard error; a line a stage where that is no terminal."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import Progress

        console = Console(stderr=True)
        self.stage, self.progress = "", Progress(console=console, disable=not console.is_terminal)
        self.task = self.progress.add_task("", total=None)

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage != self.stage:
            self.stage = stage
            self.progress.reset(self.task, description=stage, total=total)
            if self.progress.disable:
                print(f"{stage}: {total}", file=sys.stderr)
        self.progress.update(self.task, completed=done)

    def __enter__(self) -> "Bars":
        self.progress.start()
        return self

    def __exit__(self, *exception) -> None:
        self.progress.stop()


def _minutes(began: float) -> float:
    return (time.monotonic() - began) / 60


def run_command(options: argparse.Namespace) -> int:
    """`run`: see the options of build_parser."""
    from . import run
    from .data import load_sets
    from .methods import OWN
    from .plots import check_matplotlib
    from .report import write_report
    from .store import Store, file_digest

    began = time.monotonic()
    check_matplotlib()
    factories = choose_methods(options.methods)
    concepts = choose_concepts(options.concepts)
    given, missing = load_sets(options.prompt_sets, concepts) if options.prompt_sets else ([], [])
    for name in missing:
        print(f"{name}: not in {options.prompt_sets}, skipped.", file=sys.stderr)
    inputs = (options.prompt_sets, options.sanitizer, options.encoder.partition("@")[0])
    check_folder(options.output, *inputs)
    own = [name for name in OWN if name in factories]
    encoder, sanitizer, path = run.load(options.encoder, options.sanitizer if own else None)
    check_folder(options.output, path)
    if sanitizer is not None:
        run.check_erasable(sanitizer, path, concepts, "--concepts")
        factories |= {name: partial(factories[name], sanitizer) for name in own}
    examples = options.examples or (QUICK_EXAMPLES if options.quick else EXAMPLES)
    limit = options.limit or (QUICK_LIMIT if options.quick else LIMIT)
    settings = {"examples": examples, "limit": limit, "seed": options.seed}
    sets = run.collect_sets(concepts, given, examples, limit, options.seed)
    store = Store(options.output / "parts", {"encoder": encoder.fingerprint.to_dict(), **settings})
    with Bars() as bars:
        measured = run.run(
            encoder, factories, concepts, sets, store,
            examples=examples, seed=options.seed, progress=bars,
            sanitizer=sanitizer if run.OURS in own else None, weights=path,
        )  # fmt: skip
    facts = {
        "encoder": options.encoder,
        "fingerprint": str(encoder.fingerprint),
        "sanitizer": path.name if path else "none",
        "sanitizer_digest": file_digest(path) if path else None,
        **settings,
        "missing_sets": missing,
        "minutes": _minutes(began),
    }
    report = write_report(measured, facts, options.output, options.show_prompts)
    print(f"{report}: written. {_minutes(began):.1f} minutes.", file=sys.stderr)
    return 0


def attack_command(options: argparse.Namespace) -> int:
    """`attack`: attack, resume, report. Raises SanitizerError for what cannot work."""
    from .attacks import run as attacks
    from .attacks.search import SOURCES
    from .attacks.summary import figures, terminal_table, write_summary
    from .run import check_erasable, load
    from .store import Store, file_digest

    began = time.monotonic()
    attacked = chosen(options.attacks, SOURCES, "attack")
    samples = options.samples or (QUICK_SAMPLES if options.quick else SAMPLES)
    budget = options.budget or (QUICK_BUDGET if options.quick else BUDGET)
    examples = options.examples or (QUICK_JUDGE_EXAMPLES if options.quick else JUDGE_EXAMPLES)
    pool = attacks.read_targets(options.targets, options.column, options.concept, options.seed)
    check_folder(options.output, options.targets, options.sanitizer, options.encoder.partition("@")[0])
    encoder, sanitizer, path = load(options.encoder, options.sanitizer)
    check_folder(options.output, path)
    check_erasable(sanitizer, path, [options.concept], "--concept")
    settings = {"concept": options.concept, "budget": budget, "examples": examples, "seed": options.seed}
    store = Store(options.output / "attacks", {"encoder": encoder.fingerprint.to_dict(), **settings})
    with Bars() as bars:
        setup = attacks.make_setup(encoder, sanitizer, options.concept, budget, examples, options.seed, bars)
        targets, x, looked_at = attacks.choose_targets(pool, samples, setup.judge, encoder)
        made_of = [file_digest(path), "with prompts" if options.show_prompts else ""]
        records = attacks.attack_all(setup, attacked, targets, x, store, made_of, options.show_prompts, bars)
    rows = figures(records, setup.judge.bound)
    facts = {
        "encoder": options.encoder,
        "fingerprint": str(encoder.fingerprint),
        "sanitizer": path.name,
        "sanitizer_digest": file_digest(path),
        "chosen": attacked,
        "targets": len(targets),
        "looked_at": looked_at,
        "source": options.targets or "held-out phrases of concepts/",
        **settings,
        "minutes": _minutes(began),
        "judge": {
            name: getattr(setup.judge, name)
            for name in ("bound", "unrelated", "counterfactuals", "counterfactuals_count")
        },
    }
    report = write_summary(facts, rows, records, options.output, options.show_prompts)
    print(terminal_table(rows))
    print(f"{report}: written. {_minutes(began):.1f} minutes.", file=sys.stderr)
    return 0


def length_command(options: argparse.Namespace) -> int:
    """`length`: measure and write. Raises SanitizerError for what cannot work."""
    from . import length
    from .report import to_json, write
    from .run import check_erasable, load
    from .store import file_digest

    began = time.monotonic()
    concepts = choose_concepts(options.concepts)
    captions = length.read_captions(options.captions) if options.captions else []
    check_folder(options.output, options.captions, options.sanitizer, options.encoder.partition("@")[0])
    encoder, sanitizer, path = load(options.encoder, options.sanitizer)
    check_folder(options.output, path)
    check_erasable(sanitizer, path, concepts, "--concepts")
    asked = length.collect(concepts, captions, options.samples, options.seed)
    with Bars() as bars:
        found = length.measure(encoder, sanitizer, concepts, asked, bars)
    facts = {
        "encoder": options.encoder,
        "sanitizer": path.name,
        "sha256": file_digest(path)[:12],
        "concepts": " and ".join(concepts),
        "captions": options.captions.name if options.captions else "none",
        "samples": options.samples,
        "seed": options.seed,
    }
    make_folder(options.output)
    write(options.output / "length.json", to_json(facts | {"figures": found.to_dict("records")}))
    text = length.markdown(found, facts)
    write(options.output / "length.md", text.encode())
    print(text)
    print(f"{options.output / 'length.md'}: written. {_minutes(began):.1f} minutes.", file=sys.stderr)
    return 0


def pictures_command(options: argparse.Namespace) -> int:
    """`pictures`: draw, read, report. Raises SanitizerError for what cannot work."""
    from sanitizer.encoders import load_encoder

    from .pictures import diffusion, measure, reader
    from .pictures.methods import KNOWN
    from .pictures.prompts import HARMLESS, LOOK_ALIKE, UNSAFE
    from .pictures.report import write_report
    from .plots import check_matplotlib
    from .store import Store, file_digest

    began = time.monotonic()
    check_matplotlib()
    methods = chosen(options.methods, KNOWN, "method")
    check_folder(options.output, options.model, options.sanitizer)
    encoder = load_encoder(options.encoder)
    model, eyes = diffusion.load(encoder, options.model), reader.load()
    size = measure.QUICK if options.quick else measure.FULL
    make_folder(options.output)
    path = options.sanitizer or options.output / measure.SANITIZER
    with Bars() as bars:
        if options.sanitizer:
            sanitizer = measure.given_sanitizer(encoder, path)
        else:
            sanitizer = measure.own_sanitizer(encoder, path, size, options.seed, bars)
        settings = {
            "encoder": encoder.fingerprint.to_dict(), "model": model.digest,
            "sanitizer_digest": file_digest(path),
            "size": asdict(size), "seed": options.seed,
        }  # fmt: skip
        store = Store(options.output / "parts", settings)
        measured = measure.measure(encoder, model, eyes, sanitizer, size, store, options.seed, bars, methods)
    facts = settings | {
        "encoder": options.encoder,
        "fingerprint": str(encoder.fingerprint),
        "concept": measure.CONCEPT_FILE.name,
        "sanitizer": path.name,
        "unsafe": len(measured.of(*UNSAFE)),
        "harmless": len(measured.of(HARMLESS, LOOK_ALIKE)),
        "minutes": _minutes(began),
    }
    report = write_report(measured, facts, options.output)
    print(f"{report}: written. {_minutes(began):.1f} minutes.", file=sys.stderr)
    return 0


def picture_model_command(options: argparse.Namespace) -> int:
    """`picture-model`: train, or go on. Raises SanitizerError for what cannot work."""
    from sanitizer.encoders import load_encoder

    from .pictures.diffusion import PictureConfig, train

    began = time.monotonic()
    encoder, config = load_encoder(options.encoder), PictureConfig()
    config = replace(config, steps=options.steps or config.steps)
    with Bars() as bars:
        path = train(encoder, options.output, config, bars, device=options.device, compiled=options.compile)
    print(f"{path}: written. {_minutes(began):.1f} minutes in this call.", file=sys.stderr)
    return 0


def picture_autoencoder_command(options: argparse.Namespace) -> int:
    """`picture-autoencoder`: train and say how far off its pictures are."""
    from .pictures import autoencoder

    error = _trained(options, autoencoder, autoencoder.AutoencoderConfig())
    print(f"Mean squared error of unseen scenes, colours from -1 to 1: {error:.5f}.")
    return 0


def picture_reader_command(options: argparse.Namespace) -> int:
    """`picture-reader`: train and say how much of unseen scenes is read right."""
    from .pictures import reader

    right = _trained(options, reader, reader.ReaderConfig())
    found = ", ".join(f"{name} {100 * value:.2f} %" for name, value in right.items())
    print(f"Read right of unseen scenes: {found}.")
    return 0


def _trained(options: argparse.Namespace, part: ModuleType, config):
    """Train a part of the picture model, with the module's `train`, into the output folder; what that returns."""
    began, path = time.monotonic(), options.output / part.WEIGHTS.name
    make_folder(options.output)
    with Bars() as bars:
        found = part.train(path, config, bars)
    print(f"{path}: written. {_minutes(began):.1f} minutes.", file=sys.stderr)
    return found


def memory_command(options: argparse.Namespace) -> int:
    """`memory`: see benchmarks/memory.py."""
    from benchmarks import memory

    return memory.main(options)


def choose_methods(names: str) -> dict[str, Callable]:
    """Name -> factory, in the order of the methods' own table. Raises SanitizerError for an unknown name, or none."""
    from .methods import METHODS

    return {name: METHODS[name] for name in chosen(names, METHODS, "method")}


def chosen(names: str, known: Iterable[str], what: str) -> list[str]:
    """Names divided by commas, or all, in the order of the known ones. what: a method, an attack; its option is called
    like that. Raises SanitizerError for an unknown name, or none."""
    wanted, known = _names(names), list(known)
    if wanted == ["all"]:
        return known
    for name in wanted:
        if name not in known:
            raise SanitizerError(f"--{what}s: there is no {what} {name!r}. There are: {', '.join(known)}.")
    if not wanted:
        raise SanitizerError(f"--{what}s: expected all or names out of {', '.join(known)}, found none.")
    return [name for name in known if name in wanted]


def check_folder(folder: Path, *inputs: str | Path | None) -> None:
    """Raises SanitizerError where a file that the report's folder will hold is an input."""
    for name in WRITTEN:
        keep_apart(folder / name, inputs)


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
