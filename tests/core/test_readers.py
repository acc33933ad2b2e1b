"""Prompts out of files of every kind of mess, and out of large ones in constant memory."""

import json
import os
import threading
import tracemalloc

import pytest

from sanitizer.cli.io import batches
from sanitizer.cli.rows import given_prompts, read_prompts
from sanitizer.errors import SanitizerError


@pytest.fixture
def read(tmp_path):
    def of(name, content, **options):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return list(read_prompts(str(path), **options))

    return of


def refused(read, *arguments, **options):
    with pytest.raises(SanitizerError) as caught:
        read(*arguments, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("content", "prompts"),
    [
        ("a fox\na dog\n", ["a fox", "a dog"]),
        ("a fox\na dog", ["a fox", "a dog"]),
        ("a fox\r\na dog\r\n", ["a fox", "a dog"]),
        ("a fox\n\n  spaces stay  \n", ["a fox", "", "  spaces stay  "]),
        ("\ufeffa fox\n", ["a fox"]),
        ("one\u2028line\x0bof\x85text\n", ["one\u2028line\x0bof\x85text"]),
        ("NUL \0 inside\n", ["NUL \0 inside"]),
        ("🦊👨‍👩‍👧 שלום مرحبا 狐\n", ["🦊👨‍👩‍👧 שלום مرحبا 狐"]),
        ("", []),
    ],
)
def test_text(read, content, prompts):
    assert read("p.txt", content) == prompts


def test_a_prompt_of_ten_thousand_words(read):
    prompt = "word " * 10_000
    assert read("p.txt", prompt + "\nnext\n") == [prompt, "next"]


def test_invalid_utf8_is_named_by_its_line(read):
    message = refused(read, "p.txt", b"fine\nbad \xff here\n")
    assert "p.txt, line 2: no UTF-8 (byte 0xff at place 5)" in message


def test_utf16_is_recognised(read):
    assert "UTF-16" in refused(read, "p.txt", "a fox".encode("utf-16"))


def test_a_line_without_end_is_refused(read, monkeypatch):
    monkeypatch.setattr("sanitizer.cli.rows.LONGEST", 1000)
    assert "line 2: longer than 1,000 bytes" in refused(read, "p.txt", "a\n" + "x" * 5000)


@pytest.mark.parametrize(
    ("content", "prompts"),
    [
        ("prompt\na fox\n", ["a fox"]),
        ("id,prompt,x\n1,a fox,2\n2,,3\n", ["a fox", ""]),
        ('id,prompt\n1,"a fox,\nand ""a"" dog"\n2,b\n', ['a fox,\nand "a" dog', "b"]),
        ("\ufeffprompt,x\r\na fox,1\r\n\r\nb,2\r\n", ["a fox", "b"]),
        ("prompt\nNUL \0 inside\n", ["NUL \0 inside"]),
        (" prompt , x\na,b\n", ["a"]),
        ("prompt,x\nshort row is long enough\n", ["short row is long enough"]),
    ],
)
def test_csv(read, content, prompts):
    assert read("p.csv", content) == prompts


def test_csv_takes_a_field_far_above_the_limit_of_the_standard_library(read):
    assert read("p.csv", "page,prompt\n" + "x" * 300_000 + ",a fox\n") == ["a fox"]


def test_csv_another_column(read):
    assert read("p.csv", "caption,prompt\na,b\n", column="caption") == ["a"]


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("id,text\n1,a\n", ["no column 'prompt'", "It has: id, text", "--column"]),
        ("id,prompt\n1,a\n2\n", ["line 3: expected a value in column 'prompt' (number 2), found 1 column."]),
        ('id,prompt\n1,"a\nb"\n2\n', ["line 4"]),
        ('id,prompt\n1,a\n2,"never closed\nmore\n', ["line 3: no valid CSV row"]),
        ('prompt\n"a" b\n', ["line 2: no valid CSV row"]),
        ("prompt,prompt\na,b\n", ["several columns"]),
        ("", ["empty"]),
    ],
)
def test_bad_csv(read, content, parts):
    message = refused(read, "p.csv", content)
    assert "p.csv" in message
    for part in parts:
        assert part in message


def test_jsonl(read):
    lines = [{"prompt": "a fox", "x": 1}, "a dog", {"prompt": ""}, {"prompt": "two\nlines \0 🦊"}]
    content = "\n".join(json.dumps(line) for line in lines[:2]) + "\n\n" + "\n".join(map(json.dumps, lines[2:]))
    assert read("p.jsonl", content) == ["a fox", "a dog", "", "two\nlines \0 🦊"]


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ('{"text": "a"}', "no key 'prompt'. It has: text."),
        ("{}", "It has: none"),
        ("{broken", "no valid JSON"),
        ('{"prompt": null}', "expected text, found null"),
        ('{"prompt": 3}', "expected text, found a number"),
        ('["a"]', "expected text, found a list"),
        ("[" * 100_000, "no valid JSON"),
        (r'"\ud83d alone"', "half a surrogate pair"),
    ],
)
def test_bad_jsonl_is_named_by_its_line(read, line, part):
    message = refused(read, "p.jsonl", f'"fine"\n{line}\n')
    assert "p.jsonl, line 2" in message
    assert part in message


def test_prompts_before_a_bad_row_are_given(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('"one"\n"two"\n3\n')
    prompts = read_prompts(str(path))
    assert [next(prompts), next(prompts)] == ["one", "two"]
    with pytest.raises(SanitizerError, match="line 3"):
        next(prompts)


def test_files_that_are_none(tmp_path):
    """Refused when it is called, and not when the first prompt is asked for: an encoder may be loaded between."""
    for source in ("missing.txt", ".", "bad\0name.txt"):
        with pytest.raises(SanitizerError):
            read_prompts(str(tmp_path / source))
    with pytest.raises(SanitizerError, match="found an empty name"):
        read_prompts("")
    (tmp_path / "other.csv").write_text("caption\na fox\n")
    with pytest.raises(SanitizerError, match="no column 'prompt'"):
        read_prompts(str(tmp_path / "other.csv"))


def test_a_prompt_that_is_too_long_is_named_by_its_line(read):
    """A tokenizer makes up to a token of every byte, and a megabyte of them takes minutes to encode."""
    longest = "x" * 2**16
    assert read("p.txt", f"{longest}\na\n") == [longest, "a"]
    for name, content in {
        "p.txt": f"a fox\n{longest}x\n",
        "p.csv": f"prompt\n{'狐' * 30_000}\n",
        "p.jsonl": f'"a fox"\n"{longest}x"\n',
    }.items():
        message = refused(read, name, content)
        assert f"{name}, line 2: a prompt of" in message
        assert "Expected at most 65,536" in message
    with pytest.raises(SanitizerError, match="Prompt 2: a prompt of 65,537 bytes"):
        list(given_prompts(["a", longest + "x"]))


def test_an_unknown_ending_needs_a_format(read):
    assert "--format" in refused(read, "p.xlsx", "a")
    assert read("p.data", '"a"\n', form="jsonl") == ["a"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_named_pipe_is_text(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=("a\nb\n",))
    writer.start()
    assert list(read_prompts(str(pipe))) == ["a", "b"]
    writer.join()


def test_given_prompts():
    assert list(given_prompts(["a", ""])) == ["a", ""]
    with pytest.raises(SanitizerError, match="Prompt 2"):
        list(given_prompts(["a", b"\xff".decode("utf-8", "surrogateescape")]))


def test_batches_keep_order_and_limits():
    prompts = ["x" * n for n in (3, 3, 3, 50, 1, 1, 1, 1)]
    found = list(batches(prompts, 3, 10))
    assert [prompt for batch in found for prompt in batch] == prompts
    assert [len(batch) for batch in found] == [3, 1, 2, 2]
    assert [len(batch) for batch in batches(prompts[:3] + prompts[4:], 3, 10)] == [3, 3, 1]
    assert list(batches([], 3, 10)) == []


@pytest.mark.parametrize("name", ["p.txt", "p.csv", "p.jsonl"])
def test_a_large_file_streams_in_constant_memory(tmp_path, name):
    path = tmp_path / name
    line = '"a photograph of a red fox in the snow"\n'
    with path.open("w") as file:
        file.write("prompt\n" if name == "p.csv" else "")
        for _ in range(100):
            file.write(line * 1000)
    tracemalloc.start()
    count = sum(1 for _ in read_prompts(str(path)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 100_000
    assert peak < 1_000_000
