"""Around a sampling: every conditioning that reaches the diffusion model goes through a rule first."""

from typing import Any

from comfy.patcher_extension import WrappersMP

from ...sanitizer.errors import SanitizerError
from .conditioning import Part, Summary, parts
from .ui import listed

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

    The guider's conditionings are copies made for this sampling, so that nothing of the workflow's is changed. What is
    done with each of them is :meth:`rule`'s to say."""

    node: str
    """What errors name."""
    key: str
    """Under which its wrappers stand, and in a sampling's options what it has seen."""

    def rule(self, entry: list, found: list[Part], name: str) -> tuple[list, Summary]:
        """An entry of a conditioning, whose parts were found, as it may reach the model; and what was done with it.
        name: what the guider calls the conditioning."""
        raise NotImplementedError

    def judged(self, summary: Summary, notes: list[str]) -> None:
        """Told of all that a sampling's conditionings held, before it begins. May raise SanitizerError."""

    def add_to(self, patcher: Any) -> None:
        patcher.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, self.key, self.sample)
        patcher.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, self.key, self.predict)

    def sample(self, executor, *args, **kwargs):
        """Around CFGGuider.outer_sample. Raises SanitizerError for a conditioning that cannot be sanitized."""
        guider = executor.class_obj
        summary, notes = Summary(), []
        for name, conds in guider.conds.items():
            acts = name != NEGATIVE or negative_acts(guider)
            if acts is False:
                notes.append("The negative prompt was left alone.")
                continue
            done, own = self._sanitize(conds, name)
            if acts is None and own.flagged:
                raise SanitizerError(
                    f"{self.node}: the guider {type(guider).__name__} is not known, so it cannot be told whether it "
                    f"guides away from its negative prompt, and that prompt holds {listed(own.fired)}. Use a guider of "
                    "ComfyUI's own, or take these words out of the negative prompt."
                )
            guider.conds[name] = done
            summary.add(own)
        self.judged(summary, notes)
        seen = frozenset(cond["uuid"] for conds in guider.conds.values() for cond in conds)
        # In the copy of the options that ComfyUI makes for this sampling, so that none outlives it.
        guider.model_options[self.key] = guider.model_options.get(self.key, frozenset()) | seen
        return executor(*args, **kwargs)

    def predict(self, executor, model, conds, x_in, timestep, model_options):
        """Around the call of the diffusion model. Raises SanitizerError for a conditioning that :meth:`sample` has not
        seen, such as one that a patch of the model brings along."""
        seen = model_options.get(self.key, ())
        if any(cond.get("uuid") not in seen for some in conds for cond in some or ()):
            raise SanitizerError(
                f"{self.node}: a node on the MODEL wire brings a conditioning of its own into the sampling (as the "
                "old Perp-Neg node does), which was not sanitized. Use a guider for it (Perp-Neg Guider), or take that "
                "node away."
            )
        return executor(model, conds, x_in, timestep, model_options)

    def _sanitize(self, conds: list[dict], name: str) -> tuple[list[dict], Summary]:
        """The sampler's conditionings, which are extras with the embeddings under `cross_attn`, sanitized."""
        done, summary = [], Summary()
        for cond in conds:
            # ComfyUI gives every conditioning an empty `model_conds`; in any other there may be a prompt.
            own_keys = ("cross_attn", "uuid") if cond.get("model_conds") else ("cross_attn", "uuid", "model_conds")
            extras = {key: value for key, value in cond.items() if key not in own_keys}
            entry = [cond.get("cross_attn"), extras]
            (embeddings, changed), own = self.rule(entry, parts(entry), name)
            summary.add(own)
            same = embeddings is entry[0] and changed is extras
            done.append(cond if same else {**cond, **changed, "cross_attn": embeddings})
        return done, summary


def negative_acts(guider: Any) -> bool | None:
    """Whether a guider draws what its negative prompt says (guidance below 1: a negative prompt at cfg 0 is drawn as it
    is written), None where that is not known."""
    attributes = GUIDANCE.get((type(guider).__module__, type(guider).__name__))
    if attributes is None:
        return None
    return any(getattr(guider, name) < 1 for name in attributes)
