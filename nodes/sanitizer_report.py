"""Sanitizer Report: what the sanitizer is worth on the connected CLIP, with a small attack on it."""

import json
from typing import Any

from comfy_api.latest import io

from ..sanitizer.audit import LEAST_BUDGET, audit
from ..sanitizer.errors import SanitizerError
from ..sanitizer.prompts.concepts import available, load_concepts
from ..sanitizer.prompts.templates import load_templates
from ..sanitizer.render.audit import render_audit
from .adapter.clip import ComfyTextEncoder
from .adapter.handle import LoadedSanitizer, SanitizerSocket
from .adapter.ui import CATEGORY, Progress, as_image, found_as, listed, ui


class SanitizerReport(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ESSanitizerReport",
            display_name="Sanitizer Report",
            category=CATEGORY,
            **found_as("evaluate nsfw filter", "attack", "red team"),
            description="Measures a sanitizer on the connected CLIP: phrases that training did not see, their "
            "obfuscated spellings, harmless prompts, and a small attack that knows the sanitizer. No prompt is shown.",
            inputs=[
                io.Clip.Input("clip", tooltip="The CLIP that the sanitizer was trained on."),
                SanitizerSocket.Input("sanitizer", tooltip="The sanitizer to measure, with its chosen concepts."),
                io.Int.Input(
                    "budget",
                    default=1000,
                    min=LEAST_BUDGET,
                    max=100_000,
                    step=100,
                    tooltip="Prompts to encode for each concept. More prompts give surer figures and a longer attack.",
                ),
                io.Int.Input("seed", default=0, min=0, max=2**32 - 1, tooltip="Another seed draws other prompts."),
            ],
            outputs=[
                io.Image.Output("picture", display_name="picture", tooltip="The figures as bars."),
                io.String.Output("report", display_name="report", tooltip="All figures as JSON."),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, clip, sanitizer: LoadedSanitizer, budget: int, seed: int) -> io.NodeOutput:
        sanitizer.check_clip(clip, "Sanitizer Report")
        names = [name for name in sanitizer.concepts if name in available()]
        if not names:
            raise SanitizerError(
                f"Sanitizer Report: of the concepts {listed(sanitizer.concepts)} none is a file in "
                "concepts/, so there are no held-out phrases to measure on. Choose concepts of the pack."
            )
        progress = Progress(cls.hidden.unique_id)
        encoder, concepts = ComfyTextEncoder(clip), load_concepts(names)
        ready: Any = _Ready(sanitizer)
        found = audit(encoder, ready, concepts, load_templates(), budget, seed, progress, sanitizer.concepts)
        text = f"{sanitizer.path.name} on {encoder.name}: hits of tries, on prompts that training did not see."
        message = {"kind": "report", "text": text, "report": found.to_text()}
        report = {"sanitizer": sanitizer.path.name} | found.to_dict()
        return io.NodeOutput(
            as_image(render_audit(found)),
            json.dumps(report, ensure_ascii=False, indent=1, allow_nan=False),
            ui=ui(message, sanitizer=sanitizer),
        )


class _Ready:
    """The sanitizer's model, put on its device again at every use: encoding in between may have moved it away."""

    def __init__(self, loaded: LoadedSanitizer) -> None:
        self._loaded = loaded

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loaded.model, name)
