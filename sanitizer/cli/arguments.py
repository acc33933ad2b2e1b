"""What can be written on the command line, and the text of --help."""

import argparse
import importlib
from collections.abc import Callable
from pathlib import Path

DESCRIPTION = """\
Embedding Sanitizer: finds unsafe concepts in the output of a frozen text encoder, shows which word is at fault, and
writes the embedding anew as the encoder would have put out for a safe prompt. Harmless prompts stay bit-identical.
"""

MAIN_EXAMPLES = """\
examples:
  python -m sanitizer demo
  python -m sanitizer score --encoder minilm "a nude-coloured lipstick" "a naked man on a beach"
  python -m sanitizer score --encoder minilm --input prompts.csv --column prompt --output scores.jsonl
  python -m sanitizer sanitize --encoder minilm --sanitizer auto --input prompts.txt --output embeddings.safetensors
  python -m sanitizer train --encoder openai/clip-vit-large-patch14 --concepts nudity,violence --output clip.safetensors
  python -m sanitizer inspect clip.safetensors

exit codes: 0 done, 1 refused (one line on standard error says why), 2 wrong usage, 130 Ctrl-C, 143 terminated
'python -m sanitizer COMMAND --help' says more of each command.
"""

REWRITE, RE_ENCODE = "rewrite", "re-encode"

ENCODER_HELP = (
    "text encoder: minilm or minilm-causal (embedded, no download), or a local folder or hub name of a CLIP text "
    "model, a T5 encoder or a BERT-like model for transformers; folder@-2 takes the second-last layer of a CLIP model"
)
SANITIZER_HELP = (
    "sanitizer file, or auto (the default): the newest one in the pack's weights folder that was trained on this "
    "very encoder"
)
INPUT_HELP = (
    "prompts: .txt (one a line), .csv (with a header) or .jsonl (an object or a string a line), UTF-8; - is standard "
    "input, read as text unless --format says otherwise. Read bit by bit, so it may be of any length"
)

TRAIN = """\
Trains a sanitizer on an encoder from the word lists in concepts/, prints how well it does on phrases kept from
training, and writes one .safetensors file. Minutes on a CPU. The same seed on the same machine gives the same file.
"""
TRAIN_EXAMPLES = """\
examples:
  python -m sanitizer train --encoder minilm --concepts all --output weights/minilm.safetensors
  python -m sanitizer train --encoder ./my-clip --concepts nudity,violence --output clip.safetensors --device cuda
  python -m sanitizer train --encoder minilm --concepts van_gogh.txt --output style.safetensors
      where van_gogh.txt holds a name and pairs, one a line:
          van gogh style
          in the style of van gogh -> in the style of an oil painting
  python -m sanitizer train --encoder minilm --concepts nudity --examples 2000 --steps 300 --output quick.safetensors
"""
SCORE = """\
Scores every word of every prompt by concept. On a terminal it prints the prompts with their words coloured by score;
in a pipe or with --output it writes JSON lines: prompt, flagged, prompt_scores (by concept), tokens (token, start,
end, scores by concept). A score of 0.5 is the calibrated threshold of every concept.
"""
SCORE_EXAMPLES = """\
examples:
  python -m sanitizer score --encoder minilm "a shooting star" "a naked couple by the sea"
  python -m sanitizer score --encoder minilm --input prompts.csv --column caption --output scores.jsonl
  cat prompts.txt | python -m sanitizer score --encoder minilm | jq -r 'select(.flagged).prompt'
  python -m sanitizer score --encoder minilm -- "-a prompt that begins with a dash"
"""
SANITIZE = """\
Encodes prompts, sanitizes the embeddings and writes both into one .safetensors file: embeddings and sanitized
(N, L, D), mask (N, L), prompt_scores (N, K), token_scores (N, L, K), and pooled and pooled_sanitized (N, P) where the
encoder has them. N prompts in the order of the input, L rows of the longest one; rows beyond a prompt's own are zero
and have mask False. The file's header names the encoder, the sanitizer, the K concepts, mode, strength and threshold.

With --mode re-encode the words at fault are replaced by safe ones, the prompt is encoded again, and what remains is
erased. It comes nearer to the safe prompt, and takes a flagged one about seven times as long as encoding it; first the
word lists of the concepts that were found are encoded, once. The rows may move, so sanitized is (N, L', D), and
mask_sanitized (N, L') is written too.
"""
SANITIZE_EXAMPLES = """\
examples:
  python -m sanitizer sanitize --encoder minilm --sanitizer auto --input prompts.txt --output out.safetensors
  python -m sanitizer sanitize --encoder minilm --sanitizer my.safetensors --input prompts.jsonl \\
      --output out.safetensors --strength 1.25 --threshold 0.4 --concepts nudity,violence
  python -m sanitizer sanitize --encoder minilm --input prompts.txt --output out.safetensors --mode re-encode
"""
INSPECT = "Says what a sanitizer file is, which encoder it serves, and how it did on phrases kept from training."
DEMO = """\
A dozen prompts, harmless, treacherous and unsafe (fit to show), through the embedded encoder and its sanitizer:
coloured words in the terminal, a picture heatmap.png, and a table of how near each sanitized prompt came to its safe
counterpart. Needs no network and less than a minute.
"""


def build_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m sanitizer",
        description=DESCRIPTION,
        epilog=MAIN_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND", required=True)
    _add_train(commands)
    _add_score(commands)
    _add_sanitize(commands)
    command = _command(commands, "inspect", "what a sanitizer file is", INSPECT, "")
    command.add_argument("file", metavar="F.safetensors", type=Path)
    command.add_argument("--json", action="store_true", help="print the file's whole header as JSON")
    command = _command(commands, "demo", "see it work", DEMO, "")
    command.add_argument("--encoder", metavar="E", default="minilm", help="minilm (default), minilm-causal, or another")
    command.add_argument("--sanitizer", metavar="F|auto", default="auto", help=SANITIZER_HELP)
    command.add_argument(
        "--output", metavar="FOLDER", type=Path, default=Path(), help="folder for heatmap.png (default: this one)"
    )
    _add_readings(command)
    return parser


def _add_train(commands) -> None:
    command = _command(commands, "train", "train a sanitizer on an encoder", TRAIN, TRAIN_EXAMPLES)
    command.add_argument("--encoder", metavar="E", required=True, help=ENCODER_HELP)
    command.add_argument(
        "--concepts",
        metavar="A,B",
        type=names,
        required=True,
        help="names out of concepts/, with commas between, or all; also concept files of your own (.toml, or .txt with "
        "a name and lines 'target -> anchor')",
    )
    command.add_argument("--output", metavar="F.safetensors", type=Path, required=True, help="the file to write")
    command.add_argument("--examples", metavar="N", type=positive, help="training prompts (default: the full set)")
    command.add_argument("--steps", metavar="N", type=positive, help="optimiser steps (default: as calibrated)")
    command.add_argument("--seed", metavar="N", type=int, default=0, help="seed of everything random (default: 0)")
    _add_device(command)


def _add_score(commands) -> None:
    command = _command(commands, "score", "show which words are at fault", SCORE, SCORE_EXAMPLES)
    command.add_argument("--encoder", metavar="E", required=True, help=ENCODER_HELP)
    command.add_argument("--sanitizer", metavar="F|auto", default="auto", help=SANITIZER_HELP)
    command.add_argument("prompts", metavar="PROMPT", nargs="*", help="prompts; with none, standard input is read")
    _add_input(command, required=False)
    command.add_argument("--output", metavar="OUT.jsonl", help="write JSON lines to this file instead of the screen")
    _add_readings(command)
    _add_device(command)


def _add_sanitize(commands) -> None:
    command = _command(commands, "sanitize", "encode prompts and make them safe", SANITIZE, SANITIZE_EXAMPLES)
    command.add_argument("--encoder", metavar="E", required=True, help=ENCODER_HELP)
    command.add_argument("--sanitizer", metavar="F|auto", default="auto", help=SANITIZER_HELP)
    _add_input(command, required=True)
    command.add_argument("--output", metavar="OUT.safetensors", type=Path, required=True, help="the file to write")
    command.add_argument(
        "--mode",
        choices=(REWRITE, RE_ENCODE),
        default=REWRITE,
        help="rewrite (default): the erase net alone, fast; re-encode: with other words for those at fault, see above",
    )
    command.add_argument(
        "--strength",
        metavar="S",
        type=number_to(2),
        default=1.0,
        help="0 changes nothing, 1 (default) replaces the concept by its safe counterpart, 2 pushes past it",
    )
    command.add_argument(
        "--threshold",
        metavar="T",
        type=number_to(1),
        help="a prompt is changed if a concept scores at least this much, from 0 to 1 (default: the calibrated 0.5)",
    )
    command.add_argument(
        "--concepts", metavar="A,B", type=names, help="concepts to erase, with commas between (default: all)"
    )
    _add_readings(command)
    _add_device(command)


def _add_input(command: argparse.ArgumentParser, required: bool) -> None:
    command.add_argument("--input", metavar="PROMPTS", required=required, help=INPUT_HELP)
    command.add_argument(
        "--column", metavar="NAME", default="prompt", help="column of a .csv, key of a .jsonl (default: prompt)"
    )
    command.add_argument(
        "--format", choices=("txt", "csv", "jsonl"), help="format of the input, where its name does not tell it"
    )


def _add_readings(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--no-readings",
        dest="readings",
        action="store_false",
        help="score prompts only as they are written; without this, n4k3d and n.u.d.e are also scored as they read",
    )


def _add_device(command: argparse.ArgumentParser) -> None:
    command.add_argument("--device", metavar="D", default="cpu", help="cpu (default), cuda, cuda:1, mps")


class _Parser(argparse.ArgumentParser):
    """Options may not be abbreviated: a script must not change its meaning when an option is added."""

    def __init__(self, **kwargs) -> None:
        super().__init__(**{**kwargs, "allow_abbrev": False})


def _command(commands, name: str, short: str, description: str, examples: str) -> argparse.ArgumentParser:
    command = commands.add_parser(
        name,
        help=short,
        description=description,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(run=_runner(name), usage_error=command.error)
    return command


def _runner(name: str) -> Callable[[argparse.Namespace], None]:
    """The command's `run`, imported when it is called: --help need not wait for torch."""

    def run(arguments: argparse.Namespace) -> None:
        module = {"inspect": "inspect_file"}.get(name, name)
        importlib.import_module(f".{module}", __package__).run(arguments)

    return run


def names(text: str) -> list[str]:
    """`a, b,c` -> its parts. At least one."""
    found = [part.strip() for part in text.split(",") if part.strip()]
    if not found:
        raise argparse.ArgumentTypeError("expected names with commas between, found none")
    return found


def positive(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, found {text!r}")
    return number


def number_to(high: float) -> Callable[[str], float]:
    """A type: a number from 0 to `high`."""

    def number(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = -1.0
        # Written so that NaN fails too.
        if not 0 <= value <= high:
            raise argparse.ArgumentTypeError(f"expected a number from 0 to {high:g}, found {text!r}")
        return value

    return number
