"""Load Sanitizer: a sanitizer from the model folder, or, with `auto`, the one for the connected CLIP."""

from pathlib import Path

from comfy_api.latest import io

from ..sanitizer.errors import SanitizerError
from ..sanitizer.model import artifact
from ..sanitizer.model.quality import WEAK
from ..sanitizer.model.report import Report
from ..sanitizer.model.sanitizer import EmbeddingSanitizer
from ..sanitizer.prompts.concepts import load_concepts
from .adapter import folders
from .adapter.clip import ComfyTextEncoder
from .adapter.handle import LoadedSanitizer, SanitizerSocket
from .adapter.training import Plan, adopt, choose_examples, fitting_minutes, save_adopted, train
from .adapter.ui import CATEGORY, Progress, found_as, listed, ui

AUTO = "auto"


class LoadSanitizer(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ESLoadSanitizer",
            display_name="Load Sanitizer",
            category=CATEGORY,
            **found_as("nsfw filter", "safety model", "load safety"),
            description="Loads a sanitizer. With 'auto' it takes the one that was trained on the connected CLIP, or "
            "trains it on first use, which takes a few minutes once, and keeps it in models/sanitizers.",
            inputs=[
                io.Combo.Input(
                    "sanitizer_name",
                    options=[AUTO, *folders.names()],
                    default=AUTO,
                    tooltip="'auto' finds or trains the sanitizer of the connected CLIP. The others are files in "
                    "models/sanitizers.",
                ),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="The CLIP that encodes the prompt, behind its LoRA and clip-skip nodes. Needed for 'auto'; "
                    "with a file it is checked that the file was trained on it.",
                ),
                io.String.Input(
                    "concepts",
                    default="all",
                    tooltip="What to erase: 'all', or names separated by commas, such as: nudity, violence.",
                ),
            ],
            outputs=[
                SanitizerSocket.Output(
                    "sanitizer",
                    display_name="sanitizer",
                    tooltip="For Sanitize Conditioning, Sanitize CLIP and Token Score Preview.",
                )
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, sanitizer_name: str, concepts: str, clip=None) -> str:
        """A file that was replaced is loaded again."""
        if sanitizer_name == AUTO:
            return AUTO
        stat = folders.resolve(sanitizer_name).stat()
        return f"{stat.st_mtime_ns} {stat.st_size}"

    @classmethod
    def execute(cls, sanitizer_name: str, concepts: str, clip=None) -> io.NodeOutput:
        chosen = folders.parse_concepts(concepts)
        if sanitizer_name == AUTO:
            loaded, origin = cls._auto(clip, chosen)
        else:
            loaded, origin = LoadedSanitizer.load(folders.resolve(sanitizer_name), chosen), "Loaded"
            if clip is not None:
                loaded.check_clip(clip, "Load Sanitizer")
        share = loaded.found_share
        text = f"{origin} {loaded.path.name}, for {loaded.fingerprint}. {_erases(loaded)}"
        if share is not None:
            text += f" It finds {100 * share:.0f} % of unsafe phrases that its training did not see."
        if loaded.adopted is not None:
            text += f" {loaded.adopted}"
        if loaded.quality.level == WEAK:
            text += " Train Sanitizer with more examples makes a better one, which 'auto' then finds."
        return io.NodeOutput(loaded, ui=ui({"kind": "status", "state": "ready", "text": text}, sanitizer=loaded))

    @classmethod
    def _auto(cls, clip, chosen: list[str] | None) -> tuple[LoadedSanitizer, str]:
        if clip is None:
            raise SanitizerError(
                "Load Sanitizer: 'auto' needs to know the text encoder, but no CLIP is connected. Connect the CLIP "
                "that encodes the prompt, or choose a file."
            )
        encoder = ComfyTextEncoder(clip)
        everything = load_concepts()
        wanted = chosen or [concept.name for concept in everything if not concept.context]
        path = folders.find(encoder.fingerprint, wanted)
        if path is not None:
            return LoadedSanitizer.load(path, wanted), "Found"
        known = [concept.name for concept in everything if not concept.context]
        for name in wanted:
            if name not in known:
                raise SanitizerError(
                    f"Load Sanitizer: no sanitizer of this CLIP knows the concept {name!r}. 'auto' can train "
                    f"{', '.join(known)}; train others with Train Sanitizer."
                )
        progress = Progress(cls.hidden.unique_id)
        relative = folders.akin(encoder.fingerprint, wanted)
        adoption = None if relative is None else adopt(encoder, relative, progress)
        if relative is None or adoption is None:
            path, plan = cls._train(encoder, everything, progress, None)
            return LoadedSanitizer.load(path, wanted), f"Trained on {plan} and saved"
        if adoption.kept:
            return LoadedSanitizer.load(save_adopted(adoption, relative), wanted), "Adopted and saved"
        # Its networks are those of the file.
        start = adoption.sanitizer if adoption.near else None
        if start is not None and start.concepts != tuple(concept.name for concept in everything):
            start = None
        path, plan = cls._train(encoder, everything, progress, start)
        if start is not None and adoption.beats(Report.from_dict(artifact.read_info(path).header.report)):
            path.unlink()
            return LoadedSanitizer.load(
                save_adopted(adoption, relative), wanted
            ), "Adopted, as training found less, and saved"
        return LoadedSanitizer.load(path, wanted), f"Trained on {plan} and saved"

    @classmethod
    def _train(
        cls, encoder: ComfyTextEncoder, concepts: list, progress: Progress, start: EmbeddingSanitizer | None
    ) -> tuple[Path, Plan]:
        progress.say("No sanitizer for this CLIP yet. Measuring how fast it encodes…")
        plan = choose_examples(encoder, concepts)
        fitting = fitting_minutes(encoder, concepts, plan.examples, None, warm=start is not None)
        progress.say(
            f"Training one, once: encoding {plan} takes about {plan.minutes:.1f} min, fitting about {fitting:.1f} min."
        )
        name = encoder.architecture.split(",")[0]
        path = folders.save_path(f"auto-{name}-{encoder.fingerprint.weights[:8]}")
        train(encoder, concepts, path, examples=plan.examples, steps=None, seed=0, progress=progress, start=start)
        return path, plan


def _erases(loaded: LoadedSanitizer) -> str:
    if len(loaded.concepts) > 3 and loaded.concepts == loaded.erasable:
        return f"Erases all its {len(loaded.concepts)} concepts."
    return f"Erases {listed(loaded.concepts)}."
