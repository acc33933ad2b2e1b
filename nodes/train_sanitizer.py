"""Train Sanitizer: a sanitizer for the connected CLIP, also for a concept of one's own."""

from comfy_api.latest import io

from ..sanitizer.errors import SanitizerError
from ..sanitizer.model.artifact import read_info
from ..sanitizer.model.report import Report
from ..sanitizer.prompts.concepts import Concept, load_concepts, parse_custom_concept
from .adapter import folders
from .adapter.clip import ComfyTextEncoder
from .adapter.handle import LoadedSanitizer, SanitizerSocket
from .adapter.training import Curve, choose_examples, fitting_minutes, settings_hash, train
from .adapter.ui import CATEGORY, Progress, found_as, table, ui

NONE = "none"


class TrainSanitizer(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ESTrainSanitizer",
            display_name="Train Sanitizer",
            category=CATEGORY,
            **found_as("train nsfw filter", "train safety", "custom concept"),
            description="Trains a sanitizer on exactly what the connected CLIP puts out, clip-skip and LoRA included. "
            "With the same inputs the saved file is loaded instead.",
            inputs=[
                io.Clip.Input("clip", tooltip="The CLIP that will encode the prompts."),
                io.String.Input(
                    "concepts",
                    default="all",
                    tooltip="Concepts of the pack to train: 'all', 'none' for your own concept alone, or names "
                    "separated by commas, such as: nudity, violence.",
                ),
                io.String.Input(
                    "custom_concept",
                    default="",
                    multiline=True,
                    tooltip="A concept of your own: its name in the first line, then one 'target -> anchor' a line, "
                    "such as: van gogh style -> oil painting style. The more wordings, the better.",
                ),
                io.String.Input("name", default="my_sanitizer", tooltip="Beginning of the file name."),
                io.Int.Input(
                    "examples",
                    default=0,
                    min=0,
                    max=100_000,
                    tooltip="Number of training prompts. 0 chooses as many as this CLIP encodes in about two minutes, "
                    "or in up to ten if it is slow.",
                ),
                io.Int.Input(
                    "steps", default=0, min=0, max=20_000, tooltip="Optimiser steps. 0 takes the recommended number."
                ),
                io.Int.Input("seed", default=0, min=0, max=2**32 - 1, tooltip="Another seed gives another sanitizer."),
                io.Boolean.Input("retrain", default=False, tooltip="Train again even if the file is there already."),
            ],
            outputs=[
                SanitizerSocket.Output("sanitizer", display_name="sanitizer", tooltip="The trained sanitizer."),
                io.String.Output(
                    "report", display_name="report", tooltip="Figures on held-out phrases, as a short table."
                ),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls, clip, concepts: str, custom_concept: str, name: str, examples: int, steps: int, seed: int, retrain: bool
    ) -> io.NodeOutput:
        wanted = _concepts(concepts, custom_concept)
        encoder = ComfyTextEncoder(clip)
        digits = settings_hash(encoder, wanted, examples, steps, seed)
        path = folders.save_path(f"{name.strip()}-{digits}")
        curve = Curve()
        if retrain or not path.is_file():
            progress = Progress(cls.hidden.unique_id)
            count, shown = examples, f"{examples} prompts"
            if not count:
                progress.say("Measuring how fast this CLIP encodes…")
                plan = choose_examples(encoder, wanted)
                count, shown = plan.examples, str(plan)
                fitting = fitting_minutes(encoder, wanted, count, steps or None)
                progress.say(f"Encoding {shown} takes about {plan.minutes:.1f} min, fitting about {fitting:.1f} min.")
            curve = train(encoder, wanted, path, examples=count, steps=steps or None, seed=seed, progress=progress)
            said = f"Trained on {shown} and saved as {path.name}."
        else:
            said = f"Loaded {path.name}, which was trained with these very inputs."
        report = Report.from_dict(read_info(path).header.report)
        erasable = [concept.name for concept in wanted if not concept.context]
        message = {"kind": "training", "text": said, "curve": curve.stages, **table(report)}
        sanitizer = LoadedSanitizer.load(path, erasable)
        return io.NodeOutput(sanitizer, report.to_text(), ui=ui(message, sanitizer=sanitizer))


def _concepts(names: str, custom: str) -> list[Concept]:
    """Raises SanitizerError where nothing is chosen, and for the errors of concept files and custom concepts."""
    chosen = folders.parse_concepts(names)
    concepts = [] if chosen == [NONE] else load_concepts(chosen)
    if custom.strip():
        own = parse_custom_concept(custom)
        if own.name in [concept.name for concept in concepts]:
            raise SanitizerError(
                f"Train Sanitizer: custom_concept is called {own.name!r}, as one of the pack's concepts. Rename it."
            )
        concepts.append(own)
    if not concepts:
        raise SanitizerError(
            "Train Sanitizer: nothing to train. Name concepts, or write one of your own into custom_concept."
        )
    return concepts
