"""Files of prompts as records: a dictionary a row, whatever the format."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path

from sanitizer.cli.readers import LONGEST, read_prompts
from sanitizer.errors import SanitizerError

ENDINGS = (".csv", ".tsv", ".txt", ".jsonl", ".ndjson", ".json")


def read_records(path: Path) -> list[dict[str, str]]:
    """All rows of a file, values as text. A .txt file has one column, "prompt", a line each.

    Raises SanitizerError that names the file for one that cannot be read or is no table.
    """
    ending = path.suffix.lower()
    if ending not in ENDINGS:
        raise SanitizerError(f"{path}: expected a name that ends in {', '.join(ENDINGS)}.")
    if ending == ".txt":
        return [{"prompt": line} for line in read_prompts(str(path))]
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise SanitizerError(f"{path}: cannot be read ({error.strerror or error}).") from error
    except UnicodeDecodeError as error:
        raise SanitizerError(f"{path}: no UTF-8 ({error.reason}). Save the file as UTF-8.") from error
    if ending in (".csv", ".tsv"):
        return list(_table(path, text, "\t" if ending == ".tsv" else ","))
    return list(_json(path, text, ending == ".json"))


def _table(path: Path, text: str, delimiter: str) -> Iterator[dict[str, str]]:
    csv.field_size_limit(LONGEST)
    # Only a line feed ends a line here, as in the sanitizer's own readers: prompts hold other separators.
    reader = csv.DictReader((line + "\n" for line in text.split("\n")), delimiter=delimiter, strict=True)
    try:
        for row in reader:
            yield {(key or "").strip(): (value or "").strip() for key, value in row.items() if key is not None}
    except csv.Error as error:
        raise SanitizerError(f"{path}, line {reader.line_num}: no valid row ({error}).") from error


def _json(path: Path, text: str, whole: bool) -> Iterator[dict[str, str]]:
    try:
        values = json.loads(text) if whole else [json.loads(line) for line in text.split("\n") if line.strip()]
    except (ValueError, RecursionError) as error:
        raise SanitizerError(f"{path}: no valid JSON ({error}).") from error
    if not isinstance(values, list):
        raise SanitizerError(f"{path}: expected a list of prompts or of objects, found {type(values).__name__}.")
    for number, value in enumerate(values, 1):
        if isinstance(value, str):
            yield {"prompt": value}
        elif isinstance(value, dict):
            yield {str(key): "" if entry is None else str(entry) for key, entry in value.items()}
        else:
            raise SanitizerError(f"{path}, entry {number}: expected text or an object, found {type(value).__name__}.")
