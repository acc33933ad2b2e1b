"""`inspect`: what a sanitizer file is, for whom, and how good. Reads the header only."""

import json
from pathlib import Path

from ..files import sha256_of
from ..model import artifact
from ..model.header import TRAINED_ON
from ..model.quality import GOOD, judge, own_lists
from ..model.report import Report
from ..render.terminal import printable


def run(file: Path, as_json: bool) -> None:
    """Print a page about the file, or its whole header as JSON."""
    info = artifact.read_info(file)
    if as_json:
        print(json.dumps(info.to_dict(), indent=2, ensure_ascii=False, allow_nan=False))
    else:
        print("\n".join(printable(line) for line in describe(file, info).split("\n")))


def describe(path: Path, info: artifact.Info) -> str:
    """A page about the file, for a person."""
    config, header = info.config, info.header
    digest = sha256_of(path)
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
        "erases": ", ".join(info.erasable),
        "context": ", ".join(context) or "none",
        "training": _settings({k: v for k, v in header.training.items() if k not in ("config", TRAINED_ON)}),
        "licence": _settings(header.licence),
        "worth": _worth(info),
    }
    foreign = sorted(own_lists(header))
    if foreign:
        facts["word lists"] = f"of its own, not the pack's: {', '.join(foreign)}; auto does not take it for them"
    report = Report.from_dict(header.report).to_text() if header.report else "no report"
    wide = max(map(len, facts))
    lines = [f"{key:<{wide}}  {value}" for key, value in facts.items()]
    return "\n".join(lines) + f"\n\nOn phrases and prompts kept from training:\n{report}"


def _settings(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items()) or "not said"
    return str(value)


def _worth(info: artifact.Info) -> str:
    """For all its concepts together, as the commands judge it."""
    quality = judge(info.header, info.erasable)
    return f"{'Good. ' if quality.level == GOOD else ''}{quality.line}".strip()
