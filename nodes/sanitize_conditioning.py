"""Sanitize Conditioning: makes a conditioning safe, and leaves a harmless one bit for bit as it is."""

from comfy_api.latest import io

from .adapter.handle import LoadedSanitizer, SanitizerSocket
from .adapter.ui import CATEGORY, STRENGTH, THRESHOLD, found_as, status_line, ui


class SanitizeConditioning(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ESSanitizeConditioning",
            display_name="Sanitize Conditioning",
            category=CATEGORY,
            **found_as("nsfw filter", "safe prompt", "censor", "safety checker"),
            description="Replaces unsafe concepts in an encoded prompt by their safe counterparts. A prompt without "
            "them passes through unchanged, so the picture stays the very same.",
            inputs=[
                io.Conditioning.Input("conditioning", tooltip="The encoded prompt. Usually the positive one."),
                SanitizerSocket.Input("sanitizer", tooltip="From Load Sanitizer or Train Sanitizer."),
                io.Float.Input("strength", **STRENGTH),
                io.Float.Input("threshold", **THRESHOLD),
            ],
            outputs=[
                io.Conditioning.Output(
                    "sanitized",
                    display_name="sanitized",
                    tooltip="The conditioning with every row and pooled vector made safe; a copy.",
                )
            ],
        )

    @classmethod
    def execute(cls, conditioning, sanitizer: LoadedSanitizer, strength: float, threshold: float) -> io.NodeOutput:
        sanitized, summary = sanitizer.sanitize_all(conditioning, strength, threshold)
        return io.NodeOutput(
            sanitized, ui=ui(status_line(summary, sanitizer, strength, threshold), sanitizer=sanitizer)
        )
