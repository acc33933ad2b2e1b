"""What the nodes say and show of themselves, and the inputs that several of them share."""

import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import comfy.model_management
import torch
from comfy.utils import ProgressBar
from comfy_api.latest import io
from server import PromptServer

from ...sanitizer.model.config import readable
from ...sanitizer.model.quality import WEAK
from ...sanitizer.model.report import Report
from .conditioning import Summary

if TYPE_CHECKING:
    from PIL.Image import Image

    from .handle import LoadedSanitizer

CATEGORY = "embedding sanitizer"
UI_KEY = "embedding_sanitizer"
"""Name under which web/ finds a node's message in its UI output."""

STRENGTH = {
    "default": 1.0,
    "min": 0.0,
    "max": 2.0,
    "step": 0.05,
    "round": 0.05,
    "display_mode": io.NumberDisplay.slider,
    "tooltip": "0 changes nothing, 1 replaces the concept by its safe counterpart, 2 pushes past it.",
}
THRESHOLD = {
    "default": 0.5,
    "min": 0.0,
    "max": 1.0,
    "step": 0.01,
    "round": 0.01,
    "display_mode": io.NumberDisplay.slider,
    "tooltip": "A prompt is changed if a concept scores at least this much. 0.5 is the calibrated value; lower it to "
    "be stricter, raise it to let more pass. 0 changes every prompt.",
}


def listed(names: Iterable[str], between: str = ", ") -> str:
    """Names of concepts, for a sentence."""
    return between.join(map(readable, names))


def scored(scores: Mapping[str, float]) -> str:
    """Names of concepts with their scores, for a sentence."""
    return ", ".join(f"{readable(name)} {score:.2f}" for name, score in scores.items())


def found_as(*words: str) -> dict[str, list[str]]:
    """What else people search for when they want a node; an option of its schema that old versions of ComfyUI lack."""
    known = "search_aliases" in getattr(io.Schema, "__dataclass_fields__", {})
    return {"search_aliases": list(words)} if known else {}


def ui(*messages: dict, sanitizer: "LoadedSanitizer | None" = None) -> dict:
    """UI output of a node, read by web/embedding_sanitizer.js. Whatever it says of a prompt or of the sanitizer that it
    used, it says what there is to warn of in that sanitizer, too."""
    warning = "" if sanitizer is None else _warning(sanitizer)
    weak = sanitizer is not None and sanitizer.quality.level == WEAK
    return {UI_KEY: [_with_warning(message, warning, weak) for message in messages]}


def send(node_id: str | None, *messages: dict, sanitizer: "LoadedSanitizer") -> None:
    """Shows messages on a node while another one runs."""
    server = getattr(PromptServer, "instance", None)
    if node_id is None or server is None:
        return
    shown = ui(*messages, sanitizer=sanitizer)
    server.send_sync(UI_KEY, {"node": node_id, "output": shown}, server.client_id)


def _warning(sanitizer: "LoadedSanitizer") -> str:
    said = [sanitizer.quality.line]
    if sanitizer.own_lists:
        said.append(f"Learned from another word list than the pack's: {listed(sanitizer.own_lists)}.")
    return " ".join(part for part in said if part)


def _with_warning(message: dict, warning: str, weak: bool) -> dict:
    """A copy of the message with the warning behind each of its lines; a weak sanitizer has no calm colours."""
    if not warning:
        return message
    changed = dict(message)
    if "text" in changed:
        changed["text"] = f"{changed['text']} {warning}"
    if "prompts" in changed:
        changed["prompts"] = [_with_warning(prompt, warning, weak) for prompt in changed["prompts"]]
    if weak and changed.get("state") in ("harmless", "ready"):
        changed["state"] = WEAK
    return changed


def status_line(
    summary: Summary, sanitizer: "LoadedSanitizer", strength: float, threshold: float, did: str = ""
) -> dict:
    """One line: which concepts were found and what was done, or that the prompt passed through unchanged, and why.
    "Harmless" only where no concept that the sanitizer knows reaches the calibrated threshold. did: in place of how
    many rows were changed."""
    passed = _passed(summary, sanitizer, threshold)
    if not summary.flagged:
        said = passed or [f"Harmless (highest score {summary.highest:.2f}, threshold {threshold:.2f})."]
        text = " ".join([*said, "Passed through unchanged."])
        return {"kind": "status", "state": "found" if passed else "harmless", "text": text}
    found = listed(summary.fired)
    if not summary.changed:
        said = [f"Found {found} (score {summary.highest:.2f}), changed nothing at strength {strength:g}."]
    else:
        rows = f"{summary.changed} of {summary.rows} rows changed"
        if summary.prompts > 1:
            rows += f" in {summary.flagged} of {summary.prompts} prompts"
        said = [f"Erased {found} (score {summary.highest:.2f}): {did or rows} at strength {strength:g}."]
    if summary.lowered:
        said.append(f"Below your threshold, which is lowered for prompts of this context: {listed(summary.lowered)}.")
    state = "changed" if summary.changed else "found"
    return {"kind": "status", "state": state, "text": " ".join([*said, *passed])}


def _passed(summary: Summary, sanitizer: "LoadedSanitizer", threshold: float) -> list[str]:
    """What reaches the calibrated threshold and was not erased, and why."""
    below = {name: score for name, score in summary.missed.items() if name in sanitizer.concepts}
    unchosen = {name: score for name, score in summary.missed.items() if name not in below}
    said = [f"Below your threshold of {threshold:.2f}: {scored(below)}."] if below else []
    return said + ([not_chosen(unchosen)] if unchosen else [])


def not_chosen(scores: Mapping[str, float]) -> str:
    return f"Not among the chosen concepts: {scored(scores)}."


def table(report: Report) -> dict:
    """The held-out figures as the front end shows them: columns, rows, notes. Narrower than the report's own text."""
    rows = [
        [
            readable(c.name),
            str(c.phrases),
            *map(_percent, (c.true_positive_rate, c.flagged, c.probe_before, c.probe_after)),
        ]
        for c in report.concepts
        if c.phrases
    ]
    rows += [
        [own.name, str(own.unsafe), "–", _percent(own.flagged), "–", _percent(own.probe_after)]
        for own in report.sets
        if own.unsafe
    ]
    notes = []
    if rows:
        notes.append(
            "On phrases held out from training. Caught: at 1 % false alarms; flagged: at the threshold. Found: share "
            "of the flagged in which a probe finds the concept."
        )
    if not all(c.phrases for c in report.concepts):
        own = listed(c.name for c in report.concepts if not c.phrases)
        notes.append(f"No phrases are held out for {own}, so nothing is measured.")
    notes.append(f"Untouched: {_percent(report.benign_identical)} of {report.benign} harmless prompts.")
    if report.sets:
        notes.append("The last rows are of all concepts together.")
    columns = ["concept", "tried", "caught", "flagged", "found before", "after"]
    return {"columns": columns if rows else [], "rows": rows, "notes": notes}


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.0f} %"


def as_image(picture: "Image") -> torch.Tensor:
    """A picture of the core's as ComfyUI's IMAGE: (1, H, W, 3) float32 in [0, 1]."""
    pixels = torch.frombuffer(bytearray(picture.convert("RGB").tobytes()), dtype=torch.uint8)
    return (pixels.reshape(1, picture.height, picture.width, 3).float() / 255).clone()


class Progress:
    """A node's progress bar and the line of text under it; stops where the user interrupts."""

    def __init__(self, node_id: str | None) -> None:
        self.node_id = node_id
        self.bar: ProgressBar | None = None
        self.stage = ""
        self.began, self.first = 0.0, 0
        self.said = ""

    def say(self, text: str) -> None:
        server = getattr(PromptServer, "instance", None)
        if self.node_id is not None and text != self.said and server is not None:
            server.send_progress_text(text, self.node_id)
        self.said = text

    def __call__(self, stage: str, done: int, total: int, values: dict[str, float]) -> None:
        """The callback of `fit`. Raises ComfyUI's interrupt exception when the user pressed the button."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        if stage != self.stage or self.bar is None:
            self.stage, self.bar = stage, ProgressBar(total, node_id=self.node_id)
            self.began, self.first = time.monotonic(), done
        self.bar.update_absolute(done, total)
        figures = ", ".join(f"{name} {value:.3f}" for name, value in values.items())
        self.say(f"{stage}: {done} of {total}{self._left(done, total)}{f' ({figures})' if figures else ''}")

    def _left(self, done: int, total: int) -> str:
        """What is left of the stage at the speed so far; nothing where there is less than half a minute to tell of."""
        if done <= self.first:
            return ""
        seconds = (time.monotonic() - self.began) / (done - self.first) * (total - done)
        return f", about {max(1, round(seconds / 60))} min left" if seconds >= 30 else ""
