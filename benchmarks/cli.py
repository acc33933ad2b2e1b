"""The command line: time of sanitizing a prompt, memory and time of training a sanitizer, what adoption keeps, and how
many prompts are scored in a second."""

import argparse
from collections.abc import Sequence

from evaluation.cli import Parser, positive, seed
from sanitizer.exits import exit_code


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m benchmarks", description="What the sanitizer costs, measured.")
    commands = parser.add_subparsers(dest="command", required=True)
    cost = commands.add_parser("cost", help="time of each method as a share of encoding the same prompts")
    cost.add_argument(
        "--encoder", default="minilm", help="as for python -m sanitizer: minilm, minilm-causal, a folder, …"
    )
    cost.add_argument("--sanitizer", default="auto", help="a file, or auto: the one in weights/ for this encoder")
    cost.add_argument("--methods", default="ours,ours_text,re_encode", help="all, or names divided by commas")
    cost.add_argument("--concept", default="nudity")
    cost.add_argument("--prompts", type=positive, default=320, help="prompts of each kind (320)")
    memory = commands.add_parser("memory", help="train on a stand-in for a wide encoder and print the peak memory")
    memory.add_argument("--width", type=positive, default=4096, help="channels (4096)")
    memory.add_argument("--rows", type=positive, default=256, help="token embeddings of every prompt (256)")
    memory.add_argument("--examples", type=positive, help="training prompts (the full set)")
    training = commands.add_parser("training", help="train one concept and print the time of each stage")
    training.add_argument("--encoder", default="minilm", help="as above (minilm)")
    training.add_argument("--concept", default="nudity")
    training.add_argument("--examples", type=positive, help="training prompts (the full set)")
    training.add_argument("--seed", type=seed, default=0)
    adoption = commands.add_parser("adoption", help="adopt a sanitizer for the encoder with its weights changed")
    adoption.add_argument("--encoder", default="minilm", help="minilm or minilm-causal")
    adoption.add_argument("--sanitizer", default="auto", help="as above")
    adoption.add_argument(
        "--changes",
        default="0.01,0.05,0.1,0.2,0.3,layer,shuffled",
        help="shares of the weights' norm by which a random change of rank 8 turns them, layer for the last layer but "
        "one, shuffled for weights in random order, divided by commas",
    )
    adoption.add_argument("--train", action="store_true", help="train where it is not adopted, as auto does")
    adoption.add_argument("--seed", type=seed, default=0)
    table = commands.add_parser("table", help="one table: sanitizing beside encoding, start, training, memory")
    table.add_argument("--encoder", default="minilm", help="as above (minilm)")
    table.add_argument("--sanitizer", default="auto", help="as above")
    table.add_argument("--concept", default="nudity")
    table.add_argument("--examples", type=positive, help="training prompts (the full set)")
    table.add_argument("--seed", type=seed, default=0)
    table.add_argument("--device", default="cpu")
    scale = commands.add_parser("scale", help="prompts scored in a second, without Ray and by workers of Ray")
    scale.add_argument("--encoder", default="minilm", help="as above (minilm)")
    scale.add_argument("--sanitizer", default="auto", help="as above")
    scale.add_argument("--input", help="prompts, as for python -m sanitizer score; else four harmless ones in five")
    scale.add_argument("--prompts", type=positive, default=100_000, help="without --input, so many (100,000)")
    scale.add_argument("--workers", default="1,2", help="numbers of workers, divided by commas (1,2)")
    scale.add_argument("--shard-rows", type=positive, default=4096, help="prompts of a shard (4096)")
    scale.add_argument("--device", default="cpu")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one benchmark and return its exit code: 0 done, 1 refused with one line, 130 interrupted, 143 terminated."""
    with exit_code("it has to begin anew.") as end:
        options = build_parser().parse_args(arguments)
        if options.command == "cost":
            from . import cost as benchmark
        elif options.command == "memory":
            from . import memory as benchmark
        elif options.command == "training":
            from . import training as benchmark
        elif options.command == "adoption":
            from . import adoption as benchmark
        elif options.command == "table":
            from . import table as benchmark
        else:
            from . import scale as benchmark
        end.code = benchmark.main(options)
    return end.code
