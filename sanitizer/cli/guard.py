"""`guard`: a host's setting looked through, and its log summed up."""

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path

from ..errors import SanitizerError
from ..guard.log import ACTIONS, Day, by_day
from ..guard.setting import NAME, Setting, read
from ..prompts.concepts import available
from ..render.terminal import printable

WIDE = 40
"""Columns of the longest bar."""


def check(path: Path) -> None:
    """Print what the setting says, and what in it may be a mistake. Raises SanitizerError for a file that is none."""
    setting = read(path)
    for line in described(setting):
        print(printable(line))


def described(setting: Setting) -> list[str]:
    """The setting for a person."""
    rules = {"": setting.rule, **{f"{name}: ": rule for name, rule in setting.rules.items()}}
    lines = [f"concepts    {', '.join(setting.concepts) or 'all that the sanitizer of the text encoder erases'}"]
    lines += [
        f"rule        {who}{r.mode}, strength {r.strength:g}, threshold {r.threshold:g}" for who, r in rules.items()
    ]
    lines += [f"refused     {' together with '.join(pair)}" for pair in setting.never]
    lines.append(f"sanitizers  {', '.join(setting.sanitizers) or 'any'}")
    lines.append(f"API nodes   {setting.api_nodes}")
    lines.append(f"packs       ComfyUI's own nodes{''.join(f', {name}' for name in setting.allow)}")
    lines.append(f"denied      {', '.join(setting.deny) or 'none'}")
    kept = [name for name, wanted in (("words", setting.log.words), ("prompts", setting.log.prompts)) if wanted]
    what = f" with {' and '.join(kept)}" if kept else ""
    lines.append(f"log         {setting.log.file or 'none'}{what}")
    named = {*setting.concepts, *setting.rules, *(name for pair in setting.never for name in pair)}
    own = sorted(named - set(available()))
    if own:
        lines.append(f"note: none of the pack's concepts: {', '.join(own)}. They need a sanitizer that knows them.")
    if unheard := sorted(set(setting.rules) - set(setting.concepts)) if setting.concepts else []:
        lines.append(f"note: rules of concepts that are not erased: {', '.join(unheard)}.")
    return lines


def report(path: Path, as_json: bool) -> None:
    """Print the log's counts by day, action and concept. path: the log, or the folder of the setting. Raises
    SanitizerError where there is no log."""
    if path.is_dir():
        setting = read(path / NAME)
        if not setting.log.file:
            raise SanitizerError(f"{path / NAME}: writes no log.")
        path = path / setting.log.file
    days = by_day(path)
    if as_json:
        print(json.dumps([asdict(day) for day in days], indent=2, ensure_ascii=False))
    else:
        print("\n".join(map(printable, summed_up(days))))


def summed_up(days: list[Day]) -> list[str]:
    """A line a day with a bar of what was sanitized (▒) and refused (█), then the concepts of all days."""
    most = max((sum(day.actions.values()) for day in days), default=1)
    lines = [f"{'day':<10}  {'  '.join(f'{name:>9}' for name in ACTIONS)}"]
    for day in days:
        counts = [day.actions.get(name, 0) for name in ACTIONS]
        bar = "".join(mark * round(WIDE * count / most) for mark, count in zip("░▒█", counts, strict=True))
        lines.append(f"{day.day:<10}  {'  '.join(f'{count:>9}' for count in counts)}  {bar}".rstrip())
    total = sum((Counter(day.concepts) for day in days), Counter())
    if total:
        wide = max(map(len, ("concept", *total)))
        lines += ["", f"{'concept':<{wide}}  prompts"]
        lines += [f"{name:<{wide}}  {count:>7}" for name, count in total.most_common()]
    return lines
