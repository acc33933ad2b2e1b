"""The nodes that the guard sets into a prompt. None of them is for people to place."""

from dataclasses import replace
from typing import Any

from comfy_api.latest import io

from ...sanitizer.errors import SanitizerError
from ...sanitizer.guard.log import PASSED, REFUSED, SANITIZED, Entry
from ...sanitizer.guard.setting import REFUSE, Setting
from ..adapter.conditioning import Part, Summary, parts
from ..adapter.handle import LoadedSanitizer
from ..adapter.sampling import NEGATIVE, SamplerGuard
from ..adapter.ui import CATEGORY, Progress, listed
from ..adapter.written import WRITTEN
from . import graph
from .host import Found, host
from .readings import READINGS, HeardTextModel
from .text import SCORER, words_at_fault

Chain = io.Custom("EMBEDDING_SANITIZERS")


class HostGuard(SamplerGuard):
    """A host's setting for a sampling whose prompts come from the CLIPs of these sanitizers."""

    node, key = "Guard", "embedding_sanitizer_guard"

    def __init__(self, setting: Setting, found: tuple[Found, ...], texts: str = "", others: str = "") -> None:
        """texts: keys of the nodes that encode for this sampling; others: of those that do so for its negative prompt
        alone."""
        self._setting = setting
        self._found = found
        self._texts, self._others = texts.split(), others.split()

    def sample(self, executor, *args, **kwargs):
        try:
            return super().sample(executor, *args, **kwargs)
        except Refused:
            raise
        except SanitizerError as error:
            self._log(REFUSED, Summary(), str(error))
            raise

    def rule(self, entry: list, found: list[Part], name: str) -> tuple[list, Summary]:
        """Every sanitizer whose widths fit has its turn: a conditioning does not say which of two encoders it was."""
        fitting = [each.sanitizer for each in self._found if all(map(each.sanitizer.fits, found))]
        if not fitting:
            raise SanitizerError(
                f"Guard: a prompt with {found[0].embeddings.shape[2]} channels reaches the sampler, which no text "
                "encoder of this workflow has made. Encode it in the same workflow."
            )
        held, summary = frozenset().union(*map(WRITTEN.held, found)), Summary()
        texts = [*self._texts, *(self._others if name == NEGATIVE else ())]
        for sanitizer in fitting:
            also = READINGS.of(texts, sanitizer, found[0])
            for rule, concepts in self._setting.by_rule(sanitizer.concepts):
                own = replace(sanitizer, concepts=concepts)
                if also is None and own.wrote(found, rule.strength, rule.threshold):
                    summary.add(Summary(before=1))
                    continue
                strength = 0.0 if rule.mode == REFUSE else rule.strength
                entry, done = own.sanitize_entry(entry, found, strength, rule.threshold, also)
                found = parts(entry)
                summary.add(done)
            erasable = held & frozenset(sanitizer.erasable)
            summary.add(Summary(fired=sorted(erasable), context=sorted(held & frozenset(sanitizer.names) - erasable)))
        return entry, summary

    def judged(self, summary: Summary, notes: list[str]) -> None:
        if refused := self._setting.refused(summary.fired, summary.held.union(summary.missed)):
            reason = f"Guard: this host does not run prompts with {listed(refused, ' and ')}."
            self._log(REFUSED, summary, reason)
            raise Refused(reason)
        self._log(SANITIZED if summary.changed or summary.before else PASSED, summary)

    def _log(self, action: str, summary: Summary, reason: str = "") -> None:
        wanted, texts, words = self._setting.log, (), ()
        if wanted.prompts or (wanted.words and summary.held):
            texts = host().texts()
        if wanted.words and summary.held:
            words = words_at_fault(self._found, texts)
        scores = {name: summary.scores.get(name, 0.0) for name in sorted(summary.held)}
        names = ", ".join(_described(found.sanitizer) for found in self._found)
        host().log(Entry(action, concepts=scores, reason=reason, sanitizer=names, words=words, prompts=texts))


class Refused(SanitizerError):
    """What was refused by a rule, and is in the log already."""


def _described(sanitizer: LoadedSanitizer) -> str:
    share = sanitizer.found_share
    return sanitizer.path.name + ("" if share is None else f" (finds {100 * share:.0f} %)")


class _Own(io.ComfyNode):
    """What the guard's nodes have in common."""

    @classmethod
    def fingerprint_inputs(cls, **inputs) -> str:
        return host().fingerprint()


def _schema(node_id: str, name: str, description: str, **options) -> io.Schema:
    """Deprecated, so that the front end offers it to nobody."""
    return io.Schema(
        node_id=node_id, display_name=name, category=CATEGORY, description=description, is_deprecated=True, **options
    )


class GuardSanitizer(_Own):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return _schema(
            graph.FINDER,
            "Guard: find sanitizer",
            "Set in by the guard: finds the sanitizer of a CLIP, or fails.",
            inputs=[io.AnyType.Input("clip"), Chain.Input("sanitizers", optional=True)],
            outputs=[Chain.Output("found")],
            hidden=[io.Hidden.unique_id],
            is_input_list=True,
        )

    @classmethod
    def execute(cls, clip: list[Any], sanitizers: list[tuple[Found, ...]] | None = None) -> io.NodeOutput:
        found = sum(sanitizers or [], ())
        with host().refusing():
            setting = host().setting()
            if setting is not None:
                progress = Progress(cls.hidden.unique_id)
                clips = [one for one in clip if hasattr(one, "cond_stage_model")]
                found += tuple(host().find(one, setting, progress) for one in clips)
        return io.NodeOutput(found)


class GuardCLIP(_Own):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return _schema(
            graph.HEARER,
            "Guard: text encoder",
            "Set in by the guard: hears what is encoded with this CLIP, words in disguise among it.",
            inputs=[io.AnyType.Input("clip"), Chain.Input("sanitizers"), io.String.Input("texts")],
            outputs=[io.AnyType.Output("heard")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, clip: Any, sanitizers: tuple[Found, ...], texts: str) -> io.NodeOutput:
        setting = host().setting()
        if setting is None or not hasattr(clip, "cond_stage_model"):
            return io.NodeOutput(clip)
        # ComfyUI may have kept what was found for a CLIP that it has loaded anew since.
        own = next((found for found in sanitizers if found.clip is clip), None)
        with host().refusing():
            own = own or host().find(clip, setting, Progress(cls.hidden.unique_id))
        heard = clip.clone()
        heard.cond_stage_model = HeardTextModel(clip, own.sanitizer, texts)
        return io.NodeOutput(heard)


class GuardModel(_Own):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return _schema(
            graph.GUARD,
            "Guard",
            "Set in by the guard: whatever this model samples is sanitized as the host wants it.",
            inputs=[
                io.AnyType.Input("model"),
                Chain.Input("sanitizers", optional=True),
                io.String.Input("texts"),
                io.String.Input("others"),
            ],
            outputs=[io.AnyType.Output("guarded")],
        )

    @classmethod
    def execute(cls, model: Any, texts: str, others: str, sanitizers: tuple[Found, ...] = ()) -> io.NodeOutput:
        setting = host().setting()
        if setting is None or not hasattr(model, "add_wrapper_with_key"):
            return io.NodeOutput(model)
        safe = model.clone()
        HostGuard(setting, sanitizers, texts, others).add_to(safe)
        return io.NodeOutput(safe)


class GuardText(_Own):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return _schema(
            graph.TEXT,
            "Guard: text",
            "Set in by the guard: lets a text pass to another host, or fails.",
            inputs=[io.AnyType.Input("text")],
            outputs=[io.AnyType.Output("passed")],
        )

    @classmethod
    def execute(cls, text: Any) -> io.NodeOutput:
        if isinstance(text, str):
            setting = host().setting()
            refusal = "" if setting is None else SCORER.refusal(text, setting)
            if refusal:
                with host().refusing():
                    raise SanitizerError(refusal)
        return io.NodeOutput(text)


class GuardRefusal(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return _schema(
            graph.REFUSAL,
            "Guard: refused",
            "Stands in place of a prompt that the guard refuses.",
            inputs=[io.String.Input("reason")],
            outputs=[],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, reason: str) -> bool | str:
        return reason or "Guard: refused."

    @classmethod
    def execute(cls, reason: str) -> io.NodeOutput:
        raise SanitizerError(reason)


NODES = [GuardSanitizer, GuardCLIP, GuardModel, GuardText, GuardRefusal]
