"""`train`: word lists and an encoder in, a sanitizer and its report out."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..errors import SanitizerError
from . import terminal
from .writers import check_output


def run(arguments: argparse.Namespace) -> None:
    target = check_output(arguments.output, ".safetensors")

    concepts = choose_concepts(arguments.concepts)

    from ..encoders import load_encoder
    from ..model import artifact
    from ..training.fit import fit
    from .pipeline import check_device

    check_device(arguments.device)
    encoder = load_encoder(arguments.encoder, device=arguments.device)
    with Bars() as bars:
        sanitizer, report = fit(
            encoder,
            concepts,
            examples=arguments.examples,
            steps=arguments.steps,
            seed=arguments.seed,
            device=arguments.device,
            progress=bars,
        )
    artifact.save(sanitizer, target)
    print(report.to_text())
    terminal.note(f"{arguments.output}: written, {target.stat().st_size / 1e6:.1f} MB, for {encoder.fingerprint}.")


def choose_concepts(names: Sequence[str]) -> list:
    """Concepts by name, "all", or files of the user's own: .toml as in concepts/, .txt with `target -> anchor`."""
    from ..prompts.concepts import load_concept, load_concepts, parse_custom_concept

    files = [name for name in names if name.endswith((".toml", ".txt"))]
    listed = [name for name in names if name not in files]
    chosen = load_concepts(listed) if listed else []
    for name in files:
        if name.endswith(".toml"):
            chosen.append(load_concept(Path(name)))
            continue
        try:
            text = Path(name).read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise SanitizerError(f"{name}: cannot be read ({error}).") from error
        try:
            chosen.append(parse_custom_concept(text))
        except SanitizerError as error:
            raise SanitizerError(f"{name}: {error}") from error
    titles = [concept.name for concept in chosen]
    for title in titles:
        if titles.count(title) > 1:
            raise SanitizerError(f"Concept {title!r}: given twice. Leave one out, or give it another name.")
    return chosen


class Bars:
    """The callback of `fit` as progress bars, one a stage; a line a stage where there is no terminal."""

    def __init__(self) -> None:
        self.stage = ""
        self.bar = None

    def __call__(self, stage: str, done: int, total: int, values: dict[str, float]) -> None:
        if stage != self.stage:
            self.close()
            self.stage = stage
            self.bar = terminal.progress(total=total, desc=stage)
            if self.bar.disable:
                terminal.note(f"{stage}: {total}")
        self.bar.update(max(0, done - self.bar.n))
        if values:
            self.bar.set_postfix({name: f"{value:.3f}" for name, value in values.items()}, refresh=False)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()

    def __enter__(self) -> "Bars":
        return self

    def __exit__(self, *exception) -> None:
        self.close()
