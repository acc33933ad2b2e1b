"""`inspect`: what a sanitizer file is, for whom, and how good. Reads the header only."""

import hashlib
import json
from pathlib import Path

from ..model import artifact
from ..render.terminal import printable
from ..training.report import Report


def run(file: Path, as_json: bool) -> None:
    """Print a page about the file, or its whole header as JSON."""
    info = artifact.read_info(file)
    if as_json:
        print(json.dumps(info.to_dict(), indent=2, ensure_ascii=False))
    else:
        print("\n".join(printable(line) for line in describe(file, info).split("\n")))


def describe(path: Path, info: artifact.Info) -> str:
    """A page about the file, for a person."""
    config, header = info.config, info.header
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    context = [
        f"{spec.name} (lowers the thresholds of {', '.join(sorted(spec.lowers)) or 'nothing'})"
        for spec in config.concepts
        if spec.context
    ]
    facts = {
        "file": f"{path}, {path.stat().st_size / 1e6:.1f} MB",
        "sha256": digest,
        "what": f"Embedding Sanitizer, format version {info.version}",
        "encoder": str(header.encoder),
        "erases": ", ".join(spec.name for spec in config.concepts if not spec.context),
        "context": ", ".join(context) or "none",
        "training": _settings({key: value for key, value in header.training.items() if key != "config"}),
        "licence": _settings(header.licence),
    }
    wide = max(map(len, facts))
    lines = [f"{key:<{wide}}  {value}" for key, value in facts.items()]
    return "\n".join(lines) + f"\n\nOn phrases and prompts kept from training:\n{_report(header.report)}"


def _settings(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items()) or "not said"
    return str(value)


def _report(values: object) -> str:
    """As training printed it; a report of other keys, from a later version perhaps, as it stands in the header."""
    try:
        if not isinstance(values, dict) or not values:
            raise ValueError
        return Report.from_dict(values).to_text()
    except (TypeError, ValueError, KeyError, AttributeError):
        return json.dumps(values, indent=2, ensure_ascii=False) if values else "no report"
