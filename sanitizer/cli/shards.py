"""Long runs in shards, on this machine or on many: a shard is a stretch of rows of one input, done once and written to
one file.

The folder of results holds the plan, so that a run that was cut off goes on with the shards that it lacks. Rows that
are no prompts, and prompts that cannot be sanitized, are listed beside their shard, and the others go on.
"""

import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..errors import SanitizerError
from ..files import check_settings, keep_apart, make_folder, whole_file
from . import records, sanitize
from .io import Bars, encoder_files, note
from .pipeline import SPAN, Job, Processor
from .rows import ENDINGS, read_rows

ROWS = 4096
"""Rows of a shard, if nothing else is wanted."""
PLAN = "plan.json"
REJECTED = ".rejected.jsonl"
BLOCKS = 10_000
"""Blocks of a Ray dataset, at most."""


class Shard(NamedTuple):
    """Some rows of one input."""

    name: str
    source: str
    start: int
    """Byte that they start at, see :func:`.rows.read_rows`."""
    number: int
    """Lines (Parquet: rows) before them."""
    rows: int


class Done(NamedTuple):
    """What became of a shard, or of several."""

    prompts: int = 0
    flagged: int = 0
    rejected: int = 0


@dataclass(frozen=True)
class Task:
    """What is done with every shard."""

    job: Job
    form: str
    """Of the results: one of records.WRITERS, or `safetensors` for sanitized embeddings."""
    column: str
    input_form: str | None

    def target(self, folder: Path, shard: Shard) -> Path:
        """The file of its results."""
        return folder / f"{shard.name}.{self.form}"


class Worker:
    """An encoder with its sanitizer, which does shards one after the other."""

    def __init__(self, task: Task, folder: str, cores: int | None) -> None:
        """cores: of this worker alone, None for as many as torch takes. Errors as of :class:`.pipeline.Processor`."""
        if cores is not None:
            torch.set_num_threads(cores)
        self.task, self.folder = task, Path(folder)
        self.processor = Processor(task.job)

    def do(self, shard: Shard) -> Done:
        """Raises SanitizerError where the input cannot be read or the results cannot be written."""
        rejected, prompts = [], []
        rows = read_rows(shard.source, self.task.column, self.task.input_form, shard.start, shard.number)
        for row in islice(rows, shard.rows):
            if row.problem:
                rejected.append((row.where, row.problem))
            else:
                prompts.append((row.where, row.text))
        try:
            total, flagged = self._write(shard, [text for _, text in prompts], rejected)
        except SanitizerError:
            # Which prompt it was shows when each is tried alone; what cannot be written fails again.
            good = []
            for where, text in prompts:
                try:
                    list(self.processor([text]))
                    good.append(text)
                except SanitizerError as error:
                    rejected.append((where, str(error)))
            total, flagged = self._write(shard, good, rejected)
        return Done(total, flagged, len(rejected))

    def _write(self, shard: Shard, prompts: Sequence[str], rejected: Sequence[tuple[str, str]]) -> tuple[int, int]:
        """The file of results comes last: where it is there, the shard is done."""
        if rejected:
            with whole_file(self.folder / (shard.name + REJECTED)) as file:
                for where, problem in rejected:
                    line = {"input": shard.source, "row": where, "problem": problem}
                    file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
        results, target = self.processor(prompts), self.task.target(self.folder, shard)
        if self.task.form == "safetensors":
            moved = self.task.job.re_encode
            return sanitize.write(results, target, sanitize.header(self.processor), moved=moved)
        with whole_file(target) as file:
            return records.writer(self.task.form)(results, file, self.processor.sanitizer.concepts)


class _RayWorker:
    """A worker for Ray Data. What is refused comes back as a value: Ray would make a traceback of it."""

    def __init__(self, *arguments) -> None:
        self._worker, self._problem = None, ""
        try:
            self._worker = Worker(*arguments)
        except SanitizerError as error:
            self._problem = str(error)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list]:
        """A batch of one: the column of shards -> columns of what became of them."""
        [shard], done = batch["shard"], Done()
        if self._worker is not None:
            try:
                done = self._worker.do(Shard(*json.loads(shard)))
            except SanitizerError as error:
                self._problem = str(error)
        return {name: [value] for name, value in (done._asdict() | {"problem": self._problem}).items()}


def run(
    task: Task,
    source: str,
    folder: Path,
    rows: int | None,
    engine: str,
    workers: int | None = None,
    cores: int | None = None,
) -> None:
    """Do the shards of the source, a file or a folder of files, that the folder of results lacks.

    rows: of a shard, None for ROWS. engine: `local`, or `ray` with so many workers at once (None: as many as there are
    GPUs, or groups of so many cores, each 1 for None). Raises SanitizerError for what is wrong with all of it, and
    where the folder holds another run.
    """
    rows = rows or ROWS
    if rows % SPAN:
        raise SanitizerError(f"--shard-rows: expected a multiple of {SPAN}, found {rows}.")
    sources = inputs(source)
    keep_apart(folder, [*sources, task.job.sanitizer, encoder_files(task.job.encoder)])
    if task.form != "safetensors":
        records.writer(task.form)
    if engine == "ray":
        _ray()
    make_folder(folder)
    # With Ray, too: what is refused is refused once, and not by every worker.
    worker = Worker(task, str(folder), cores)
    shards = planned(task, sources, folder, _facts(task, worker.processor, rows))
    missing = [shard for shard in shards if not task.target(folder, shard).exists()]
    began, done, work = time.monotonic(), Done(), map(worker.do, missing)
    if engine == "ray" and missing:
        chosen = replace(task, job=replace(task.job, sanitizer=str(worker.processor.path.resolve())))
        work = _on_ray(chosen, missing, folder, workers, cores or 1)
    with Bars(lines=False) as bars:
        for at, one in enumerate(work, 1):
            done = Done(*map(sum, zip(done, one, strict=True)))
            bars("shards", at, len(missing), {})
    for left in folder.glob(".*.tmp"):  # by workers that were killed
        left.unlink(missing_ok=True)
    before = f"; {len(shards) - len(missing)} had been done before" if len(missing) < len(shards) else ""
    note(
        f"{folder}: {len(missing)} shards of {len(shards)}, {done.prompts} prompts, {done.flagged} flagged, "
        f"{done.rejected} rejected, {time.monotonic() - began:.1f} s{before}."
    )
    if lists := sum(1 for _ in folder.glob(f"*{REJECTED}")):
        note(f"{folder}: rows that could not be read or sanitized are listed in {lists} files *{REJECTED}.")


def inputs(source: str) -> list[str]:
    """The files of a folder in the order of their names, or the one file, by their whole names. Raises SanitizerError
    where there are none, and for standard input and pipes, which no other process could read."""
    path = Path(source)
    if path.is_dir():
        found = sorted(str(each.resolve()) for each in path.iterdir() if each.suffix.lower() in ENDINGS)
        if not found:
            raise SanitizerError(f"{source}: a folder without a file that ends in {', '.join(ENDINGS)}.")
        return found
    if path.is_file():
        return [str(path.resolve())]
    raise SanitizerError(f"{source}: expected a file, or a folder of files, for a run in shards.")


def planned(task: Task, sources: Sequence[str], folder: Path, facts: dict) -> list[Shard]:
    """The folder's shards; cut and written down where it has none. Raises SanitizerError where it holds a run of other
    inputs or settings."""
    path = folder / PLAN
    for name in sources:
        own = Path(name).stat()
        facts |= {f"inputs {name}": [own.st_size, own.st_mtime_ns]}
    if path.exists():
        try:
            return [Shard(*shard) for shard in check_settings(path, facts, ["shards"])["shards"]]
        except TypeError as error:
            raise SanitizerError(f"{path}: cannot be read ({error}). Choose another --output.") from error
    shards = []
    with Bars(lines=False) as bars:
        for name in sources:
            shards += _cut(task, name, facts["rows"], len(shards), lambda n: bars("rows read", n, None, {}))
    if not shards:
        raise SanitizerError("No prompts: the input is empty. Expected at least one.")
    with whole_file(path) as file:
        file.write(json.dumps(facts | {"shards": shards}, ensure_ascii=False).encode())
    return shards


def _facts(task: Task, processor: Processor, rows: int) -> dict:
    """All that the results hang on but the inputs."""
    return {
        "job": asdict(task.job),
        "form": task.form,
        "column": task.column,
        "input_form": task.input_form,
        "encoder": processor.encoder.fingerprint.to_dict(),
        "sanitizer": processor.digest,
        "rows": rows,
    }


def _cut(task: Task, source: str, rows: int, first: int, progress: Callable[[int], None]) -> Iterator[Shard]:
    """The shards of a file, numbered from `first`."""
    begin, count = None, 0
    for row in read_rows(source, task.column, task.input_form):
        if begin is None:
            begin = row
        count += 1
        if count % rows == 0:
            yield _shard(first + count // rows - 1, source, begin, rows)
            begin = None
            progress(count)
    if begin is not None:
        yield _shard(first + count // rows, source, begin, count % rows)


def _shard(number: int, source: str, begin, rows: int) -> Shard:
    return Shard(f"{number:06d}", source, begin.start, begin.number - 1, rows)


def _ray():
    """The packages. Raises SanitizerError where they are not installed."""
    # Ray reports its use to its makers unless it is told not to.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        import ray.data
        import ray.exceptions
    except ImportError as error:
        raise SanitizerError("--engine ray: Ray is not installed. Install it: pip install 'ray[data]'.") from error
    return ray


def _on_ray(task: Task, shards: Sequence[Shard], folder: Path, workers: int | None, cores: int) -> Iterator[Done]:
    """By Ray's actors, on the cluster of RAY_ADDRESS, or on this machine alone."""
    ray = _ray()
    began = not ray.is_initialized()
    if began:
        ray.init(log_to_driver=False, include_dashboard=False, logging_level=logging.ERROR)
    try:
        gpus = 0 if task.job.device == "cpu" else 1
        all_of = ray.cluster_resources()
        fit = int(all_of.get("GPU", 0) if gpus else all_of.get("CPU", 1) // cores)
        if fit < 1:
            raise SanitizerError(
                f"--engine ray: the cluster has {'no GPU' if gpus else f'fewer than {cores} cores'}. "
                "Choose another --device or fewer --cores."
            )
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        rows = [{"shard": json.dumps(shard)} for shard in shards]
        done = ray.data.from_items(rows, override_num_blocks=min(len(rows), BLOCKS)).map_batches(
            _RayWorker,
            fn_constructor_args=(task, str(folder.resolve()), cores),
            batch_size=1,
            concurrency=min(workers or fit, len(rows)),
            num_cpus=cores,
            num_gpus=gpus,
        )
        for one in done.iter_rows():
            if one["problem"]:
                raise SanitizerError(one["problem"])
            yield Done(*(int(one[name]) for name in Done._fields))
    except ray.exceptions.RayError as error:
        raise SanitizerError(
            f"Ray: a worker failed ({type(error).__name__}); Ray's logs say more. The same command goes on from what "
            "is done."
        ) from error
    finally:
        if began:
            ray.shutdown()
