"""`score`: coloured words on a terminal, JSON lines everywhere else."""

import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..files import keep_apart, whole_file
from ..model.config import readable
from ..render.terminal import culprit, paint, printable, render_legend, render_terminal
from .io import check_output, colour_depth, counted, encoder_files, is_terminal, note
from .pipeline import Job, Processor, Result
from .records import form_of, line, write_jsonl, writer
from .rows import given_prompts, read_prompts


def run(
    job: Job,
    prompts: Sequence[str],
    source: str | None,
    column: str,
    form: str | None,
    output: str | None,
    output_form: str | None = None,
) -> None:
    """Score the prompts given, or those of the source where there are none, which is standard input for None."""
    source = "-" if source is None else source
    texts = given_prompts(prompts) if prompts else read_prompts(source, column, form)
    target, write = None, write_jsonl
    if output not in (None, "-"):
        inputs = (None if prompts else source, job.sanitizer, encoder_files(job.encoder))
        target = check_output(Path(output), None, *inputs)
        write = writer(output_form or form_of(target))
    processor = Processor(job)
    if target is not None:
        keep_apart(target, [processor.path])
    # A bar in the midst of printed results would tear them apart.
    with counted(texts, shown=target is not None or not is_terminal(sys.stdout)) as texts:
        results = processor(texts)
        if target is None:
            print_results(results, processor.sanitizer.erasable, colours=output is None)
            return
        began = time.monotonic()
        with whole_file(target) as file:
            total, flagged = write(results, file, processor.sanitizer.concepts)
    note(f"{output}: {total} prompts, {flagged} flagged, by {processor.path.name}, {time.monotonic() - began:.1f} s.")


def print_results(results: Iterable[Result], erasable: tuple[str, ...], colours: bool) -> None:
    """Coloured words where they are wanted and standard output is a terminal, else JSON lines."""
    if colours and is_terminal(sys.stdout):
        show(results, erasable, colour_depth())
        return
    for result in results:
        sys.stdout.write(line(result) + "\n")


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
