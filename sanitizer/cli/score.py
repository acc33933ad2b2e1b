"""`score`: coloured words on a terminal, JSON lines everywhere else."""

import argparse
import json
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..errors import SanitizerError
from ..files import whole_file
from ..render.terminal import culprit, paint, printable, render_legend, render_terminal
from . import terminal
from .readers import given_prompts, read_prompts
from .writers import check_output

DIGITS = 6


def run(arguments: argparse.Namespace) -> None:
    prompts = _prompts(arguments)
    to_file = arguments.output not in (None, "-")
    target = check_output(Path(arguments.output), source=arguments.input) if to_file else None

    from .pipeline import default_reader, load_pair, process

    encoder, sanitizer, path = load_pair(arguments.encoder, arguments.sanitizer, arguments.device)
    results = process(encoder, sanitizer, counted(prompts), reader=default_reader(arguments.readings))
    if target is not None:
        began = time.monotonic()
        with whole_file(target) as file:
            total, flagged = write_lines(results, file)
        seconds = time.monotonic() - began
        terminal.note(f"{arguments.output}: {total} prompts, {flagged} flagged, by {path.name}, {seconds:.1f} s.")
    elif arguments.output is None and terminal.is_terminal(sys.stdout):
        show(results, sanitizer.erasable, terminal.colour_depth())
    else:
        for result in results:
            sys.stdout.write(line(result) + "\n")


def _prompts(arguments: argparse.Namespace) -> Iterator[str]:
    if arguments.prompts and arguments.input:
        arguments.usage_error("give prompts or --input, not both")
    if arguments.prompts:
        return given_prompts(arguments.prompts)
    if not arguments.input and terminal.is_terminal(sys.stdin):
        arguments.usage_error("no prompts: give some, or --input FILE, or pipe them in")
    return read_prompts(arguments.input or "-", arguments.column, arguments.format)


def counted(prompts: Iterable[str]) -> Iterator[str]:
    """The prompts, with a bar on a terminal. Raises SanitizerError at the end if there was none."""
    count = 0
    # A bar in the midst of printed results would tear them apart.
    with terminal.progress(quiet=terminal.is_terminal(sys.stdout), unit=" prompts") as bar:
        for prompt in prompts:
            yield prompt
            count += 1
            bar.update()
    if not count:
        raise SanitizerError("No prompts: the input is empty. Expected at least one.")


def write_lines(results: Iterable, file) -> tuple[int, int]:
    """JSON lines into a binary file; the number of prompts, and of flagged ones."""
    total = flagged = 0
    for result in results:
        file.write(line(result).encode() + b"\n")
        total += 1
        flagged += result.flagged
    return total, flagged


def line(result) -> str:
    """One result as JSON on one line. Tokens are those that stand for text, in the order of the rows."""
    names = result.concepts
    tokens = [
        {"token": token, "start": start, "end": end, "scores": _by_name(names, scores)}
        for token, (start, end), scores in zip(result.tokens, result.offsets, result.token_scores.tolist(), strict=True)
        if token
    ]
    record = {
        "prompt": result.prompt,
        "flagged": result.flagged,
        "prompt_scores": _by_name(names, result.prompt_scores.tolist()),
        "tokens": tokens,
    }
    return json.dumps(record, ensure_ascii=False)


def _by_name(names: Iterable[str], scores: Iterable[float]) -> dict[str, float]:
    return {name: round(score, DIGITS) for name, score in zip(names, scores, strict=True)}


def show(results: Iterable, erasable: tuple[str, ...], depth: int) -> None:
    """Print every prompt with its words coloured, and what was found in it."""
    print(render_legend(depth) + "\n")
    for result in results:
        print(render_terminal(result.prompt, result.words(), concepts=erasable, depth=depth) or "(empty)")
        print(f"    {verdict(result, erasable, depth)}\n", flush=True)


def verdict(result, erasable: tuple[str, ...], depth: int) -> str:
    """`flagged: nudity 0.97 (most in "nude")`, or the highest score of a harmless prompt."""
    scores = result.scores()
    if result.fired:
        words, found = result.words(), []
        for name in result.fired:
            label = paint(f"{_readable(name)} {scores[name]:.2f}", scores[name], depth)
            word = culprit(words, name)
            found.append(label + (f' (most in "{word}")' if word else ""))
        return f"flagged: {', '.join(found)}"
    name = max(erasable, key=scores.get)
    return f"harmless (highest: {_readable(name)} {scores[name]:.2f})"


def _readable(name: str) -> str:
    return printable(name.replace("_", " "))
