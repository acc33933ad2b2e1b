"""What travels on a SANITIZER wire: a sanitizer under ComfyUI's memory management, and the concepts to erase."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.ops
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from torch import Tensor

from ...sanitizer.encoders.base import Fingerprint
from ...sanitizer.errors import SanitizerError
from ...sanitizer.model import artifact
from ...sanitizer.model.config import THRESHOLD as CALIBRATED
from ...sanitizer.model.gate import margins
from ...sanitizer.model.header import ADOPTED
from ...sanitizer.model.quality import Quality, judge, own_lists, require
from ...sanitizer.model.report import Report
from ...sanitizer.model.sanitizer import EmbeddingSanitizer, Sanitized, Scores
from .clip import ComfyTextEncoder
from .conditioning import Part, Summary, entries, parts, replace_parts
from .families import makers
from .folders import places
from .written import WRITTEN, How

SanitizerSocket = io.Custom("SANITIZER")


@dataclass(frozen=True)
class LoadedSanitizer:
    """A sanitizer on the device that ComfyUI gives it, restricted to some concepts."""

    path: Path
    patcher: ModelPatcher
    concepts: tuple[str, ...]
    """Concepts to erase, a part of the sanitizer's erasable ones."""

    @classmethod
    def load(cls, path: Path, concepts: list[str] | None = None) -> "LoadedSanitizer":
        """concepts None: all. Raises SanitizerError for a file that cannot be used, a concept that it does not know,
        and one of which it finds too little, see :mod:`.model.quality`."""
        model = artifact.load(path, operations=comfy.ops.disable_weight_init, folders=places())
        for name in concepts or ():
            if name not in model.erasable:
                raise SanitizerError(
                    f"Load Sanitizer: {path.name} does not know the concept {name!r}. It knows "
                    f"{', '.join(model.erasable)}. Choose among them, or train a sanitizer for it."
                )
        require(model.header, concepts or model.erasable, path.name)
        patcher = ModelPatcher(
            model,
            load_device=comfy.model_management.get_torch_device(),
            offload_device=comfy.model_management.unet_offload_device(),
        )
        return cls(path, patcher, tuple(concepts or model.erasable))

    @property
    def fingerprint(self) -> Fingerprint:
        return self.patcher.model.fingerprint

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all concepts in the order of the scores."""
        return self.patcher.model.concepts

    @property
    def erasable(self) -> tuple[str, ...]:
        """Names of all concepts that it can erase."""
        return self.patcher.model.erasable

    @property
    def found_share(self) -> float | None:
        """Share of the held-out phrases of the concepts to erase that reach the threshold; None where nothing was
        measured."""
        return Report.from_dict(self.patcher.model.header.report).found(self.concepts)

    @property
    def adopted(self) -> str | None:
        """A sentence about where it comes from if it was adopted from another encoder's, else None."""
        header = self.patcher.model.header
        origin = header.training.get(ADOPTED)
        if not origin or header.base is None:
            return None
        here = Report.from_dict(header.report).found(self.erasable) or 0.0
        return (
            f"Adopted from {header.base.name}, which was trained on other weights of this CLIP (before a LoRA, say). "
            f"Of all concepts it finds {100 * here:.0f} % here and {100 * origin['found']:.0f} % there."
        )

    @property
    def quality(self) -> Quality:
        """What it is worth for the concepts to erase."""
        return judge(self.patcher.model.header, self.concepts)

    @property
    def own_lists(self) -> tuple[str, ...]:
        """Those of the concepts to erase that are called like one of the pack's and are not the pack's."""
        foreign = own_lists(self.patcher.model.header)
        return tuple(name for name in self.concepts if name in foreign)

    @property
    def model(self) -> EmbeddingSanitizer:
        """The sanitizer itself, on its device. ComfyUI may move it away when it loads another model."""
        return self._ready()

    def check_clip(self, clip, node: str) -> None:
        """Raises SanitizerError unless this sanitizer was trained on the connected CLIP."""
        own = ComfyTextEncoder(clip).fingerprint
        if own != self.fingerprint:
            raise SanitizerError(
                f"{node}: the sanitizer {self.path.name} was trained on {self.fingerprint}, but the connected CLIP is "
                f"{own}. Connect the CLIP it was trained on, or choose 'auto' in Load Sanitizer with this CLIP "
                "connected (behind its LoRA and clip-skip nodes)."
            )

    def score(self, part: Part) -> Scores:
        """Scores of a part's rows. Raises SanitizerError where the part comes from another encoder."""
        self._check(part)
        return self._ready().score(part.embeddings, part.mask, part.pooled)

    def sanitize(self, part: Part, strength: float, threshold: float, also: Tensor | None = None) -> Sanitized:
        """also: (B, K) scores of another reading of the part, of which the higher counts. Raises SanitizerError where
        the part comes from another encoder."""
        self._check(part)
        return self._ready().sanitize(
            part.embeddings, part.mask, part.pooled,
            strength=strength, threshold=threshold, concepts=self.concepts, also=also,
        )  # fmt: skip

    def sanitize_all(
        self, conditioning: Any, strength: float, threshold: float, also: Tensor | None = None
    ) -> tuple[list, Summary]:
        """Every entry of a conditioning, copied; and what was done. also: as for :meth:`sanitize`, of every part."""
        done, summary = [], Summary()
        for entry in entries(conditioning):
            copy, own = self.sanitize_entry(entry, parts(entry), strength, threshold, also)
            done.append(copy)
            summary.add(own)
        return done, summary

    def sanitize_entry(
        self, entry: Any, found: list[Part], strength: float, threshold: float, also: Tensor | None = None
    ) -> tuple[list, Summary]:
        """As :meth:`sanitize_all`, an entry whose parts were found."""
        copy, results = replace_parts(entry, found, lambda part: self.sanitize(part, strength, threshold, also))
        summary = Summary()
        for result in results:
            summary.add(self.summary(result, threshold))
        if summary.changed:
            self.remember(copy, found, strength, threshold, summary)
        return copy, summary

    def remember(self, entry: list, found: list[Part], strength: float, threshold: float, summary: Summary) -> None:
        """That this entry of a conditioning is what this sanitizer wrote in place of those parts; summary: of them."""
        how, held = self._how(strength, threshold), summary.held.union(*map(WRITTEN.held, found))
        for part, source in zip(parts(entry), found, strict=True):
            WRITTEN.add(part, source, how, held)

    def wrote(self, found: list[Part], strength: float, threshold: float) -> bool:
        """Whether an entry's parts are, to the last bit, what this sanitizer wrote at least as hard."""
        how = self._how(strength, threshold)
        return all(WRITTEN.covers(part, how) for part in found)

    def _how(self, strength: float, threshold: float) -> How:
        return How(str(self.path), frozenset(self.concepts), strength, threshold)

    def summary(self, result: Sanitized, threshold: float) -> Summary:
        """What was done to the prompts of a part, and why to no others."""
        prompt = result.scores.prompt
        config = self.patcher.model.config
        missed = self.missed(result)
        lowered = (result.fired & (prompt < threshold)).any(dim=1)
        present = {spec.name: prompt[:, k] >= CALIBRATED for k, spec in enumerate(config.concepts) if spec.context}
        return Summary(
            prompts=result.flagged.shape[0],
            flagged=int(result.flagged.sum()),
            rows=result.changed.numel(),
            changed=int(result.changed.sum()),
            fired=[name for name, hit in zip(self.names, result.fired.any(dim=0).tolist(), strict=True) if hit],
            highest=float(prompt[:, self.patcher.model.places(self.concepts)].max()),
            missed={
                name: float(prompt[missed[:, k], k].max())
                for k, name in enumerate(self.names)
                if bool(missed[:, k].any())
            },
            scores=dict(zip(self.names, prompt.amax(dim=0).tolist(), strict=True)),
            context=[name for name, where in present.items() if bool(where.any())],
            lowered=[name for name, where in present.items() if bool((where & lowered).any())],
        )

    def missed(self, result: Sanitized) -> Tensor:
        """(B, K) bool: concepts that can be erased and reach their calibrated thresholds, but did not fire."""
        found = (margins(self.patcher.model.config, result.scores.prompt) >= 0) & ~result.fired
        found[:, [k for k, name in enumerate(self.names) if name not in self.erasable]] = False
        return found

    def _ready(self) -> EmbeddingSanitizer:
        # In full, because the parts that are no Linear or LayerNorm cannot run from another device.
        comfy.model_management.load_models_gpu([self.patcher], force_full_load=True)
        return self.patcher.model

    def fits(self, part: Part) -> bool:
        """Whether the part has the widths of this sanitizer's encoder."""
        return _widths(part) == (self.patcher.model.width, self.patcher.model.pooled_width)

    def _check(self, part: Part) -> None:
        if self.fits(part):
            return
        width, pooled = _widths(part)
        known = makers(width)
        raise SanitizerError(
            f"The sanitizer {self.path.name} was trained on {self.fingerprint}, but {part.keys[0]!r} of this "
            f"conditioning has {width} channels{f', pooled {pooled}' if pooled else ' and no pooled vector'}"
            f"{f', as of {known}' if known else ''}. "
            "Connect the sanitizer of this text encoder, or choose 'auto' in Load Sanitizer with its CLIP connected."
        )


def _widths(part: Part) -> tuple[int, int]:
    """Of embeddings and pooled vector, 0 for none."""
    return part.embeddings.shape[2], 0 if part.pooled is None else part.pooled.shape[-1]
