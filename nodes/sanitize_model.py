"""Sanitize Model: whatever conditioning reaches the diffusion model is sanitized just before sampling."""

from comfy_api.latest import io

from .adapter.conditioning import Part, Summary
from .adapter.handle import LoadedSanitizer, SanitizerSocket
from .adapter.sampling import SamplerGuard
from .adapter.ui import CATEGORY, STRENGTH, THRESHOLD, found_as, listed, send, status_line, ui


class ModelGuard(SamplerGuard):
    """The rule of a Sanitize Model node, which shows what it did in the last sampling."""

    node, key = "Sanitize Model", "embedding_sanitizer"

    def __init__(self, sanitizer: LoadedSanitizer, strength: float, threshold: float, node_id: str | None) -> None:
        self._sanitizer = sanitizer
        self._strength = strength
        self._threshold = threshold
        self._node_id = node_id

    def rule(self, entry: list, found: list[Part], name: str) -> tuple[list, Summary]:
        if self._sanitizer.wrote(found, self._strength, self._threshold):
            return entry, Summary(before=1)
        return self._sanitizer.sanitize_entry(entry, found, self._strength, self._threshold)

    def judged(self, summary: Summary, notes: list[str]) -> None:
        line = status_line(summary, self._sanitizer, self._strength, self._threshold)
        said = [line["text"]] if summary.prompts else []
        if summary.before:
            said.append(f"{summary.before} of the conditionings had been sanitized before and were left as they are.")
        line |= {"text": " ".join(["Last sampling:", *said, *notes])}
        send(self._node_id, line, sanitizer=self._sanitizer)


class SanitizeModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ESSanitizeModel",
            display_name="Sanitize Model",
            category=CATEGORY,
            **found_as("nsfw filter", "safe model", "guard", "safety checker"),
            description="A model that sanitizes every conditioning just before it samples, wherever that came from: "
            "combined, averaged, loaded, from any encode node. The negative prompt is left alone unless the guidance "
            "is below 1, where it would be drawn.",
            inputs=[
                io.Model.Input("model", tooltip="The diffusion model, before or behind its LoRA and other patches."),
                SanitizerSocket.Input("sanitizer", tooltip="From Load Sanitizer or Train Sanitizer."),
                io.Float.Input("strength", **STRENGTH),
                io.Float.Input("threshold", **THRESHOLD),
            ],
            outputs=[
                io.Model.Output(
                    "safe_model", display_name="safe_model", tooltip="Connect it to the sampler or to the guider."
                )
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, model, sanitizer: LoadedSanitizer, strength: float, threshold: float) -> io.NodeOutput:
        safe = model.clone()
        ModelGuard(sanitizer, strength, threshold, cls.hidden.unique_id).add_to(safe)
        line = f"Erases {listed(sanitizer.concepts)} from whatever this model is to draw."
        return io.NodeOutput(safe, ui=ui({"kind": "status", "state": "ready", "text": line}, sanitizer=sanitizer))
