"""Sanitize Model: whatever conditioning reaches the diffusion model is sanitized just before sampling."""

from typing import Any

from comfy.patcher_extension import WrappersMP
from comfy_api.latest import io

from ..sanitizer.errors import SanitizerError
from .adapter.conditioning import Summary, parts
from .adapter.handle import LoadedSanitizer, SanitizerSocket
from .adapter.ui import CATEGORY, STRENGTH, THRESHOLD, found_as, listed, send, status_line, ui

KEY = "embedding_sanitizer"
NEGATIVE = "negative"
GUIDANCE = {
    ("comfy.samplers", "CFGGuider"): ("cfg",),
    ("comfy_extras.nodes_custom_sampler", "Guider_Basic"): (),
    ("comfy_extras.nodes_custom_sampler", "Guider_DualCFG"): ("cfg2",),
    ("comfy_extras.nodes_custom_sampler", "Guider_DualModel"): ("cfg",),
    ("comfy_extras.nodes_perpneg", "Guider_PerpNeg"): (),
    ("comfy_extras.nodes_lt", "Guider_LTXAVDualCFG"): ("video_cfg", "audio_cfg"),
}
"""Guiders whose negative prompt is guided away from as long as these attributes are at least 1. Perp-Neg's never adds
what it is given. Read in ComfyUI 0.3.64 and 0.33."""


class SamplerGuard:
    """Wrappers of a sampling: one exchanges the guider's conditionings, one lets no other reach the model.

    The guider's conditionings are copies made for this sampling, so that nothing of the workflow's is changed."""

    def __init__(self, sanitizer: LoadedSanitizer, strength: float, threshold: float, node_id: str | None) -> None:
        self._sanitizer = sanitizer
        self._strength = strength
        self._threshold = threshold
        self._node_id = node_id

    def add_to(self, patcher: Any) -> None:
        patcher.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, self.sample)
        patcher.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, KEY, self.predict)

    def sample(self, executor, *args, **kwargs):
        """Around CFGGuider.outer_sample. Raises SanitizerError for a conditioning that cannot be sanitized."""
        guider = executor.class_obj
        summary, notes = Summary(), []
        for name, conds in guider.conds.items():
            acts = name != NEGATIVE or negative_acts(guider)
            if acts is False:
                notes.append("The negative prompt was left alone.")
                continue
            done, own = self._sanitize(conds)
            if acts is None and own.flagged:
                raise SanitizerError(
                    f"Sanitize Model: the guider {type(guider).__name__} is not known, so it cannot be told whether it "
                    f"guides away from its negative prompt, and that prompt holds {listed(own.fired)}. Use a guider of "
                    "ComfyUI's own, or take these words out of the negative prompt."
                )
            guider.conds[name] = done
            summary.add(own)
        seen = frozenset(cond["uuid"] for conds in guider.conds.values() for cond in conds)
        # In the copy of the options that ComfyUI makes for this sampling, so that none outlives it.
        guider.model_options[KEY] = guider.model_options.get(KEY, frozenset()) | seen
        send(self._node_id, self._said(summary, notes), sanitizer=self._sanitizer)
        return executor(*args, **kwargs)

    def predict(self, executor, model, conds, x_in, timestep, model_options):
        """Around the call of the diffusion model. Raises SanitizerError for a conditioning that :meth:`sample` has not
        seen, such as one that a patch of the model brings along."""
        seen = model_options.get(KEY, ())
        if any(cond.get("uuid") not in seen for some in conds for cond in some or ()):
            raise SanitizerError(
                "Sanitize Model: a node on the MODEL wire brings a conditioning of its own into the sampling (as the "
                "old Perp-Neg node does), which was not sanitized. Use a guider for it (Perp-Neg Guider), or take that "
                "node away."
            )
        return executor(model, conds, x_in, timestep, model_options)

    def _said(self, summary: Summary, notes: list[str]) -> dict:
        """The line on the node."""
        line = status_line(summary, self._sanitizer, self._strength, self._threshold)
        said = [line["text"]] if summary.prompts else []
        if summary.before:
            said.append(f"{summary.before} of the conditionings had been sanitized before and were left as they are.")
        return line | {"text": " ".join(["Last sampling:", *said, *notes])}

    def _sanitize(self, conds: list[dict]) -> tuple[list[dict], Summary]:
        """The sampler's conditionings, which are extras with the embeddings under `cross_attn`, sanitized."""
        done, summary = [], Summary()
        for cond in conds:
            # ComfyUI gives every conditioning an empty `model_conds`; in any other there may be a prompt.
            own_keys = ("cross_attn", "uuid") if cond.get("model_conds") else ("cross_attn", "uuid", "model_conds")
            extras = {key: value for key, value in cond.items() if key not in own_keys}
            entry = [cond.get("cross_attn"), extras]
            found = parts(entry)
            if self._sanitizer.wrote(found, self._strength, self._threshold):
                summary.before += 1
                done.append(cond)
                continue
            (embeddings, extras), own = self._sanitizer.sanitize_entry(entry, found, self._strength, self._threshold)
            summary.add(own)
            done.append({**cond, **extras, "cross_attn": embeddings})
        return done, summary


def negative_acts(guider: Any) -> bool | None:
    """Whether a guider draws what its negative prompt says (guidance below 1: a negative prompt at cfg 0 is drawn as it
    is written), None where that is not known."""
    attributes = GUIDANCE.get((type(guider).__module__, type(guider).__name__))
    if attributes is None:
        return None
    return any(getattr(guider, name) < 1 for name in attributes)


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
        SamplerGuard(sanitizer, strength, threshold, cls.hidden.unique_id).add_to(safe)
        line = f"Erases {listed(sanitizer.concepts)} from whatever this model is to draw."
        return io.NodeOutput(safe, ui=ui({"kind": "status", "state": "ready", "text": line}, sanitizer=sanitizer))
