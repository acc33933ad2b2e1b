"""`score`: coloured words on a terminal, JSON lines everywhere else."""

import json
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..files import keep_apart, whole_file
from ..model.config import readable
from ..render.terminal import culprit, paint, printable, render_legend, render_terminal
from .io import check_output, colour_depth, counted, encoder_files, given_prompts, is_terminal, note, read_prompts
from .pipeline import Result, default_reader, load_pair, process

DIGITS = 6


def run(
    prompts: Sequence[str],
    source: str | None,
    column: str,
    form: str | None,
    output: str | None,
    encoder_name: str,
    sanitizer_name: str,
    readings: bool,
    device: str,
) -> None:
    """Score the prompts given, or those of the source where there are none, which is standard input for None."""
    source = "-" if source is None else source
    texts = given_prompts(prompts) if prompts else read_prompts(source, column, form)
    target = None
    if output not in (None, "-"):
        inputs = (None if prompts else source, sanitizer_name, encoder_files(encoder_name))
        target = check_output(Path(output), None, *inputs)
    encoder, sanitizer, path = load_pair(encoder_name, sanitizer_name, device)
    if target is not None:
        keep_apart(target, [path])
    # A bar in the midst of printed results would tear them apart.
    with counted(texts, shown=target is not None or not is_terminal(sys.stdout)) as texts:
        results = process(encoder, sanitizer, texts, reader=default_reader(readings))
        if target is None:
            print_results(results, sanitizer.erasable, colours=output is None)
            return
        began = time.monotonic()
        with whole_file(target) as file:
            total, flagged = write_lines(results, file)
    note(f"{output}: {total} prompts, {flagged} flagged, by {path.name}, {time.monotonic() - began:.1f} s.")


def print_results(results: Iterable[Result], erasable: tuple[str, ...], colours: bool) -> None:
    """Coloured words where they are wanted and standard output is a terminal, else JSON lines."""
    if colours and is_terminal(sys.stdout):
        show(results, erasable, colour_depth())
        return
    for result in results:
        sys.stdout.write(line(result) + "\n")


def write_lines(results: Iterable[Result], file) -> tuple[int, int]:
    """JSON lines into a binary file; the number of prompts, and of flagged ones."""
    total = flagged = 0
    for result in results:
        file.write(line(result).encode() + b"\n")
        total += 1
        flagged += result.flagged
    return total, flagged


def line(result: Result) -> str:
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
    return json.dumps(record, ensure_ascii=False, allow_nan=False)


def _by_name(names: Iterable[str], scores: Iterable[float]) -> dict[str, float]:
    return {name: round(score, DIGITS) for name, score in zip(names, scores, strict=True)}


def show(results: Iterable[Result], erasable: tuple[str, ...], depth: int) -> None:
    """Print every prompt with its words coloured, and what was found in it."""
    print(render_legend(depth) + "\n")
    for result in results:
        print(render_terminal(result.prompt, result.words(), concepts=erasable, depth=depth) or "(empty)")
        print(f"    {verdict(result, erasable, depth)}\n", flush=True)


def verdict(result: Result, erasable: tuple[str, ...], depth: int) -> str:
    """`flagged: nudity 0.97 (most in "nude")`, or the highest score of a harmless prompt."""
    scores = result.scores()
    if result.fired:
        words, found = result.words(), []
        for name in result.fired:
            label = paint(f"{_readable(name)} {scores[name]:.2f}", scores[name], depth)
            word = culprit(words, name)
            found.append(label + (f' (most in "{word}")' if word else ""))
        return f"flagged: {', '.join(found)}"
    name = max(erasable, key=lambda one: scores[one])
    return f"harmless (highest: {_readable(name)} {scores[name]:.2f})"


def _readable(name: str) -> str:
    return printable(readable(name))
