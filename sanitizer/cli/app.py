"""The command line: what can be written on it, the text of --help, and exit codes. Nothing heavy is imported before a
command runs.

Exit codes: 0 done, 1 refused (one line on standard error says why), 2 wrong usage, 130 interrupted with Ctrl-C, 143
terminated, 129 hung up.
"""

import logging
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import typer

from ..exits import exit_code
from .io import is_terminal, note, program

LEFT = "nothing half-written is left behind."
WIDEST = 120
"""Columns of --help on a wide terminal."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command, None for the one that the process was called with, and return its exit code."""
    _log_to_notes()
    # Once more around the commands: --help writes, too.
    with exit_code(LEFT) as end:
        # No expansion: Windows would take the prompt "a*" for the names of files.
        typer.main.get_command(app).main(arguments, program(), windows_expand_args=False)
    return end.code


class _Notes(logging.Handler):
    """Warnings as lines on standard error, where a file's name can steer no terminal."""

    def emit(self, record: logging.LogRecord) -> None:
        note(record.getMessage())


def _log_to_notes() -> None:
    root = logging.getLogger()
    if not root.handlers:
        root.addHandler(_Notes(logging.WARNING))


@contextmanager
def _exit_code() -> Iterator[None]:
    """What ends a command becomes its exit code. The commands are imported in here too."""
    with exit_code(LEFT) as end:
        yield
    raise typer.Exit(end.code)


def _examples(text: str) -> str:
    """Examples for below the options: this program's own name in them, lines as they stand (\\b), none too long."""
    return "\b\n" + text.replace("PROGRAM", program()).strip().replace("\n\n", "\n\n\b\n")


def _option(*names: str, **settings):
    # The help texts say what the defaults are and do.
    return typer.Option(*names, show_default=False, **settings)


def _names(text: str) -> list[str]:
    """`a, b,c` -> its parts."""
    return [part.strip() for part in text.split(",") if part.strip()]


def _some_names(text: str | None) -> str | None:
    if text is not None and not _names(text):
        raise typer.BadParameter("expected names with commas between, found none")
    return text


def _number(value: float | None) -> float | None:
    """Typer's own bounds let NaN pass."""
    if value is not None and math.isnan(value):
        raise typer.BadParameter("expected a number, found nan")
    return value


# Texts and paths are taken as they are (`parser=str`): typer refuses names that are no UTF-8.
Encoder = Annotated[
    str,
    _option(
        "--encoder",
        metavar="E",
        parser=str,
        help="text encoder: minilm or minilm-causal (embedded, no download), or a local folder or hub name of a CLIP "
        "text model, a T5 encoder or a BERT-like model for transformers; folder@-2 takes the second-last layer of a "
        "CLIP model",
    ),
]
Sanitizer = Annotated[
    str,
    _option(
        "--sanitizer",
        metavar="F|auto",
        parser=str,
        help="sanitizer file, or auto (the default): the best-measured one in the pack's weights folder that was "
        "trained on this very encoder",
    ),
]
INPUT = _option(
    "--input",
    metavar="PROMPTS",
    parser=str,
    help="prompts: .txt (one a line), .csv (with a header), .jsonl (an object or a string a line), UTF-8, or .parquet; "
    "- is standard input, read as text unless --format says otherwise. Read bit by bit, so it may be of any length",
)
Column = Annotated[
    str,
    _option(
        "--column", metavar="NAME", help="column of a .csv or .parquet, key of a .jsonl (default: prompt)", parser=str
    ),
]
Format = Annotated[
    Literal["txt", "csv", "jsonl", "parquet"] | None,
    _option("--format", help="format of the input, where its name does not tell it"),
]
NoReadings = Annotated[
    bool,
    _option(
        "--no-readings",
        help="score prompts only as they are written; without this, n4k3d and n.u.d.e are also scored as they read",
    ),
]
Engine = Annotated[
    Literal["local", "ray"] | None,
    _option(
        "--engine",
        help="work in shards, into the folder --output, so that a run that was cut off goes on and a bad row stops "
        "nothing; --input may be a folder. local: in this process; ray: by workers on the Ray cluster of RAY_ADDRESS, "
        "or on this machine's cores or GPUs (pip install 'ray[data]')",
    ),
]
Workers = Annotated[
    int | None,
    _option(
        "--workers",
        metavar="N",
        min=1,
        help="workers of --engine ray (default: one for each GPU of the cluster, or for each --cores of its cores)",
    ),
]
Cores = Annotated[
    int | None,
    _option(
        "--cores", metavar="N", min=1, help="cores of a worker of --engine ray (default: 1), or of --engine local (all)"
    ),
]
ShardRows = Annotated[
    int | None,
    _option("--shard-rows", metavar="N", min=1, help="prompts of a shard, a multiple of 256 (default: 4096)"),
]
Device = Annotated[str, _option("--device", metavar="D", help="cpu (default), cuda, cuda:1, mps")]


def _in_shards(context: typer.Context, engine: str | None, **options: int | None) -> None:
    """Refuses options of shards where none are wanted."""
    given = [f"--{name.replace('_', '-')}" for name, value in options.items() if value is not None]
    if given and engine is None:
        context.fail(f"{', '.join(given)}: only with --engine")


app = typer.Typer(
    # Plain help: rich's panels break the lines of examples, and bring colour into the pipes of some CI systems.
    rich_markup_mode=None,
    add_completion=False,
    context_settings={"max_content_width": WIDEST, "help_option_names": ["--help", "-h"]},
    help="Embedding Sanitizer: finds unsafe concepts in the output of a frozen text encoder, shows which word is at "
    "fault, and writes the embedding anew as the encoder would have put out for a safe prompt. Harmless prompts stay "
    "bit-identical.",
    epilog=_examples("""
examples:
  PROGRAM demo
  PROGRAM score --encoder minilm "a nude lipstick" "a naked man"
  PROGRAM score --encoder minilm --input prompts.csv \\
      --column prompt --output scores.jsonl
  PROGRAM sanitize --encoder minilm --sanitizer auto \\
      --input prompts.txt --output embeddings.safetensors
  PROGRAM train --encoder openai/clip-vit-large-patch14 \\
      --concepts nudity,violence --output clip.safetensors
  PROGRAM inspect clip.safetensors

exit codes: 0 done, 1 refused (one line on standard error says why),
  2 wrong usage, 130 Ctrl-C, 143 terminated
'PROGRAM COMMAND --help' says more of each command.
"""),
)


@app.command(
    short_help="train a sanitizer on an encoder",
    epilog=_examples("""
examples:
  PROGRAM train --encoder minilm --concepts all \\
      --output weights/minilm.safetensors
  PROGRAM train --encoder ./my-clip --concepts nudity,violence \\
      --output clip.safetensors --device cuda
  PROGRAM train --encoder minilm --concepts van_gogh.txt \\
      --output style.safetensors
      where van_gogh.txt holds a name and pairs, one a line:
          van gogh style
          in the style of van gogh -> in the style of an oil painting
  PROGRAM train --encoder minilm --concepts nudity \\
      --examples 2000 --steps 300 --output quick.safetensors
  PROGRAM train --encoder ./tuned --concepts nudity,violence \\
      --start clip.safetensors --output tuned.safetensors
"""),
)
def train(
    encoder: Encoder,
    concepts: Annotated[
        str,
        _option(
            "--concepts",
            metavar="A,B",
            callback=_some_names,
            help="names out of concepts/, with commas between, or all; also concept files of your own (.toml, or .txt "
            "with a name and lines 'target -> anchor')",
        ),
    ],
    output: Annotated[Path, _option("--output", metavar="F.safetensors", help="the file to write")],
    examples: Annotated[
        int | None, _option("--examples", metavar="N", min=1, help="training prompts (default: the full set)")
    ] = None,
    steps: Annotated[
        int | None, _option("--steps", metavar="N", min=1, help="optimiser steps (default: as calibrated)")
    ] = None,
    seed: Annotated[
        int, _option("--seed", metavar="N", min=0, max=2**32 - 1, help="seed of everything random (default: 0)")
    ] = 0,
    start: Annotated[
        Path | None,
        _option(
            "--start",
            metavar="F.safetensors",
            help="a sanitizer of the same concepts for an encoder of the same kind, as before a LoRA or a fine-tune: "
            "it is adopted without training where it is as good here, else the training goes on from it",
        ),
    ] = None,
    device: Device = "cpu",
) -> None:
    """Trains a sanitizer on an encoder from the word lists in concepts/, prints how well it does on phrases kept from
    training, and writes one .safetensors file. Minutes on a CPU. The same seed on the same machine gives the same file.
    """
    with _exit_code():
        from .train import run

        run(encoder, _names(concepts), output, examples, steps, seed, device, start)


@app.command(
    short_help="show which words are at fault",
    epilog=_examples("""
examples:
  PROGRAM score --encoder minilm "a star" "a naked couple"
  PROGRAM score --encoder minilm --input prompts.csv \\
      --column caption --output scores.jsonl
  cat prompts.txt | PROGRAM score --encoder minilm |
      jq -r 'select(.flagged).prompt'
  PROGRAM score --encoder minilm -- "-a prompt with a dash"
  PROGRAM score --encoder minilm --input prompts/ \\
      --output scores/ --engine ray --workers 8
"""),
)
def score(
    context: typer.Context,
    encoder: Encoder,
    prompts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PROMPT", parser=str, show_default=False, help="prompts; with none, standard input is read"
        ),
    ] = None,
    sanitizer: Sanitizer = "auto",
    source: Annotated[str | None, INPUT] = None,
    column: Column = "prompt",
    form: Format = None,
    output: Annotated[
        str | None,
        _option(
            "--output",
            metavar="OUT.jsonl",
            parser=str,
            help="write to this .jsonl, .csv or .parquet file instead of the screen",
        ),
    ] = None,
    output_format: Annotated[
        Literal["jsonl", "csv", "parquet"] | None,
        _option("--output-format", help="format of the scores, where the name of --output does not tell it"),
    ] = None,
    no_readings: NoReadings = False,
    device: Device = "cpu",
    engine: Engine = None,
    workers: Workers = None,
    cores: Cores = None,
    shard_rows: ShardRows = None,
) -> None:
    """Scores every word of every prompt by concept. On a terminal it prints the prompts with their words coloured by
    score; in a pipe or with --output it writes JSON lines: prompt, flagged, prompt_scores (by concept), tokens (token,
    start, end, scores by concept). A score of 0.5 is the calibrated threshold of every concept.
    """
    if prompts and source is not None:
        context.fail("give prompts or --input, not both")
    if not prompts and source is None and is_terminal(sys.stdin):
        context.fail("no prompts: give some, or --input FILE, or pipe them in")
    _in_shards(context, engine, workers=workers, cores=cores, shard_rows=shard_rows)
    if output_format is not None and output in (None, "-"):
        context.fail("--output-format is for a file: give --output, too")
    if engine is not None and (source is None or output is None):
        context.fail("--engine works from --input into the folder --output: give both")
    with _exit_code():
        from .pipeline import Job
        from .score import run

        job = Job(encoder, sanitizer, not no_readings, device=device)
        if engine is not None and source is not None and output is not None:
            from . import shards

            task = shards.Task(job, output_format or "jsonl", column, form)
            shards.run(task, source, Path(output), shard_rows, engine, workers, cores)
            return
        run(job, prompts or [], source, column, form, output, output_format)


@app.command(
    short_help="encode prompts and make them safe",
    epilog=_examples("""
examples:
  PROGRAM sanitize --encoder minilm --sanitizer auto \\
      --input prompts.txt --output out.safetensors
  PROGRAM sanitize --encoder minilm --sanitizer my.safetensors \\
      --input prompts.jsonl --output out.safetensors \\
      --strength 1.25 --threshold 0.4 --concepts nudity,violence
  PROGRAM sanitize --encoder minilm --input prompts.txt \\
      --output out.safetensors --mode re-encode
"""),
)
def sanitize(
    context: typer.Context,
    encoder: Encoder,
    source: Annotated[str, INPUT],
    output: Annotated[Path, _option("--output", metavar="OUT.safetensors", help="the file to write")],
    sanitizer: Sanitizer = "auto",
    column: Column = "prompt",
    form: Format = None,
    mode: Annotated[
        Literal["rewrite", "re-encode"],
        _option(
            "--mode",
            help="rewrite (default): the erase net alone, fast; re-encode: with other words for those at fault, see "
            "above",
        ),
    ] = "rewrite",
    strength: Annotated[
        float,
        _option(
            "--strength",
            metavar="S",
            min=0,
            max=2,
            callback=_number,
            help="0 changes nothing, 1 (default) replaces the concept by its safe counterpart, 2 pushes past it",
        ),
    ] = 1.0,
    threshold: Annotated[
        float | None,
        _option(
            "--threshold",
            metavar="T",
            min=0,
            max=1,
            callback=_number,
            help="a prompt is changed if a concept scores at least this much, from 0 to 1 (default: the calibrated "
            "0.5)",
        ),
    ] = None,
    concepts: Annotated[
        str | None,
        _option(
            "--concepts",
            metavar="A,B",
            callback=_some_names,
            help="concepts to erase, with commas between (default: all)",
        ),
    ] = None,
    no_readings: NoReadings = False,
    device: Device = "cpu",
    engine: Engine = None,
    workers: Workers = None,
    cores: Cores = None,
    shard_rows: ShardRows = None,
) -> None:
    """Encodes prompts, sanitizes the embeddings and writes both into one .safetensors file: embeddings and sanitized
    (N, L, D), mask (N, L), prompt_scores (N, K), token_scores (N, L, K), and pooled and pooled_sanitized (N, P) where
    the encoder has them. N prompts in the order of the input, L rows of the longest one; rows beyond a prompt's own
    are zero and have mask False. The file's header names the encoder, the sanitizer, the K concepts, mode, strength
    and threshold.

    With --mode re-encode the words at fault are replaced by safe ones, the prompt is encoded again, and what remains
    is erased. It comes nearer to the safe prompt, and takes a flagged one about seven times as long as encoding it;
    first the word lists of the concepts that were found are encoded, once. The rows may move, so sanitized is
    (N, L', D), and mask_sanitized (N, L') is written too.
    """
    _in_shards(context, engine, workers=workers, cores=cores, shard_rows=shard_rows)
    with _exit_code():
        from .pipeline import Job
        from .sanitize import run

        job = Job(
            encoder,
            sanitizer,
            not no_readings,
            mode == "re-encode",
            strength,
            threshold,
            None if concepts is None else _names(concepts),
            device,
        )
        if engine is not None:
            from . import shards

            task = shards.Task(job, "safetensors", column, form)
            shards.run(task, source, output, shard_rows, engine, workers, cores)
            return
        run(job, source, column, form, output)


@app.command(short_help="what a sanitizer file is")
def inspect(
    file: Annotated[Path, typer.Argument(metavar="F.safetensors", show_default=False)],
    as_json: Annotated[bool, _option("--json", help="print the file's whole header as JSON")] = False,
) -> None:
    """Says what a sanitizer file is, which encoder it serves, and how it did on phrases kept from training."""
    with _exit_code():
        from .inspect import run

        run(file, as_json)


@app.command(short_help="see it work")
def demo(
    encoder: Annotated[
        str, _option("--encoder", metavar="E", parser=str, help="minilm (default), minilm-causal, or another")
    ] = "minilm",
    sanitizer: Sanitizer = "auto",
    output: Annotated[
        Path, _option("--output", metavar="FOLDER", help="folder for heatmap.png (default: this one)")
    ] = Path(),
    no_readings: NoReadings = False,
) -> None:
    """A dozen prompts, harmless, treacherous and unsafe (fit to show), through the embedded encoder and its sanitizer:
    coloured words in the terminal, a picture heatmap.png, and a table of how near each sanitized prompt came to its
    safe counterpart. Needs no network and less than a minute.
    """
    with _exit_code():
        from .demo import run

        run(encoder, sanitizer, output, not no_readings)


guard = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="A host's guard: its setting and its log.")
app.add_typer(guard, name="guard", short_help="a host's setting and log")


@guard.command(short_help="is a setting right")
def check(
    file: Annotated[Path, typer.Argument(metavar="sanitizer_guard.toml", show_default=False)],
) -> None:
    """Reads a host's setting as the server does and says what it means; exit code 1 and the line at fault where the
    server would not take it.
    """
    with _exit_code():
        from . import guard as command

        command.check(file)


@guard.command(short_help="what the log says")
def report(
    log: Annotated[Path, typer.Argument(metavar="LOG|FOLDER", show_default=False)],
    as_json: Annotated[bool, _option("--json", help="print the counts as JSON")] = False,
) -> None:
    """Sums a guard's log up: prompts by day and by what was done with them, and in how many each concept was found. LOG
    is the file sanitizer_guard.jsonl, its older files beside it are read, too; FOLDER is ComfyUI's user folder.
    """
    with _exit_code():
        from . import guard as command

        command.report(log, as_json)
