"""`python -m evaluation attack`: its options, and what it does. See the options of add_arguments."""

import argparse
import sys
from pathlib import Path

DEFAULT_SAMPLES, DEFAULT_BUDGET, DEFAULT_EXAMPLES = 20, 2000, 1000
QUICK_SAMPLES, QUICK_BUDGET, QUICK_EXAMPLES = 4, 300, 300
PUBLISHED = 512_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--encoder", required=True, help="as for python -m sanitizer: minilm, minilm-causal, a folder, …"
    )
    parser.add_argument("--sanitizer", default="auto", help="a file, or auto: the one in weights/ for this encoder")
    names = "obfuscation, mma, ring-a-bell, adaptive-mma, adaptive-ring-a-bell, substitution, control"
    parser.add_argument("--attacks", default="all", help=f"all, or names divided by commas: {names}")
    parser.add_argument("--concept", default="nudity", help="the concept to bring through (nudity)")
    parser.add_argument("--targets", help="file of unsafe target prompts, .txt, .csv or .jsonl; else held-out phrases")
    parser.add_argument("--column", default="prompt", help="the targets' column or key (prompt)")
    parser.add_argument("--samples", type=_positive, help=f"targets to attack with ({DEFAULT_SAMPLES})")
    parser.add_argument(
        "--budget", type=_budget,
        help=f"prompts that a search may encode for a target ({DEFAULT_BUDGET}); 'published': {PUBLISHED:,}",
    )  # fmt: skip
    parser.add_argument("--examples", type=_positive, help=f"prompts to train the judge on ({DEFAULT_EXAMPLES})")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--output", type=Path, required=True, help="folder of the report; attacks that were cut off go on in it"
    )
    quick = f"{QUICK_SAMPLES} targets, a budget of {QUICK_BUDGET}, {QUICK_EXAMPLES} examples"
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--show-prompts", action="store_true", help="write the adversarial prompts into the results")


def main(options: argparse.Namespace) -> int:
    """Attack, resume, report; returns the exit code 0. Raises SanitizerError for what cannot work."""
    from .table import choose_attacks

    attacks = choose_attacks(options.attacks)

    from sanitizer.cli.train import Bars

    from .. import cli, runner
    from . import run, summary

    clock = runner.Clock()
    samples = options.samples or (QUICK_SAMPLES if options.quick else DEFAULT_SAMPLES)
    budget = options.budget or (QUICK_BUDGET if options.quick else DEFAULT_BUDGET)
    examples = options.examples or (QUICK_EXAMPLES if options.quick else DEFAULT_EXAMPLES)
    pool = run.read_targets(options.targets, options.column, options.concept, options.seed)
    encoder, sanitizer, path = cli.load(options.encoder, options.sanitizer, True)
    check_erasable(sanitizer, path, options.concept)
    settings = {
        "encoder": encoder.fingerprint.to_dict(),
        "sanitizer": runner.sanitizer_digest(path),
        "attack code": code_digest(),
        "concept": options.concept,
        "concept files": runner.concept_digest(),
        "budget": budget,
        "examples": examples,
        "seed": options.seed,
    }
    journal = run.Journal(options.output, settings)
    if journal.dropped:
        print(f"{journal.path}: the last line was torn and is left out; that attack is run again.", file=sys.stderr)
    with Bars() as bars:

        def say(stage: str, done: int, total: int) -> None:
            bars(stage, done, total, {})

        setup = make_setup(encoder, sanitizer, options.concept, budget, examples, options.seed, say)
        targets, x, looked_at = run.choose_targets(pool, samples, setup.judge, encoder)
        run.attack_all(setup, attacks, targets, x, journal, options.show_prompts, say)
    rows = summary.figures(attacks, setup, targets, journal)
    facts = {
        "encoder": options.encoder,
        "fingerprint": str(encoder.fingerprint),
        "sanitizer": path.name,
        "sanitizer_sha256": runner.file_digest(path),
        "concept": options.concept,
        "chosen": attacks,
        "targets": len(targets),
        "looked_at": looked_at,
        "source": options.targets or "held-out phrases of concepts/",
        "budget": budget,
        "examples": examples,
        "seed": options.seed,
        "minutes": clock.minutes,
        "judge": {
            "bound": setup.judge.bound,
            "unrelated": setup.judge.unrelated,
            "twins": setup.judge.twins,
            "twins_count": setup.judge.twins_count,
        },
    }
    report = summary.write(facts, rows, journal, options.output, options.show_prompts)
    print(summary.terminal_table(rows))
    print(f"{report}: written. {clock.minutes:.1f} minutes.", file=sys.stderr)
    return 0


def make_setup(encoder, sanitizer, concept: str, budget: int, examples: int, seed: int, say):
    """Judge, word lists and the sanitizer as the attacks see it. Raises SanitizerError for an unknown concept."""
    from sanitizer.prompts.concepts import load_concepts
    from sanitizer.prompts.generator import PromptGenerator
    from sanitizer.prompts.templates import load_templates

    from . import surrogate
    from .banned import load_banned
    from .disguises import disguises
    from .judge import held_out, make_judge
    from .table import Setup

    return Setup(
        encoder=encoder,
        hard=surrogate.hard(sanitizer, concept),
        soft=surrogate.soft(sanitizer, concept),
        judge=make_judge(encoder, concept, examples, seed, say),
        banned=load_banned(concept),
        words=PromptGenerator(load_concepts([concept]), load_templates(), seed).words,
        twins=held_out(concept, seed).safe,
        disguises=disguises(concept),
        budget=budget,
        seed=seed,
    )


def check_erasable(sanitizer, path: Path, concept: str) -> None:
    """Raises SanitizerError where the sanitizer does not know the concept."""
    from sanitizer.errors import SanitizerError

    if concept not in sanitizer.erasable:
        known = ", ".join(sanitizer.erasable)
        raise SanitizerError(f"{path}: knows nothing of {concept!r}, only of {known}. Choose --concept among them.")


def code_digest() -> str:
    """Of everything that decides what an attack finds and how it is judged."""
    import sanitizer.audit.space as audit

    from .. import runner

    here = Path(__file__).resolve().parent
    unconcerned = {"cli.py", "summary.py", "journal.py", "__init__.py"}
    files = [path for path in here.iterdir() if path.suffix in (".py", ".toml") and path.name not in unconcerned]
    names = ("space", "trace", "genetic", "substitution", "paraphrases")
    searches = [Path(audit.__file__).with_name(f"{name}.py") for name in names]
    return runner.file_digest(*sorted(files), *searches)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, found {value}")
    return value


def _budget(text: str) -> int:
    return PUBLISHED if text == "published" else _positive(text)
