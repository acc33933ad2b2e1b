"""`train`: word lists and an encoder in, a sanitizer and its report out."""

from collections.abc import Sequence
from pathlib import Path

from ..encoders import load_encoder
from ..errors import SanitizerError
from ..model import artifact
from ..model.quality import judge
from ..prompts.concepts import Concept, load_concept, load_concepts, parse_custom_concept
from ..training.adopt import adopt
from ..training.fit import fit
from .io import Bars, check_output, encoder_files, note
from .pipeline import check_device


def run(
    encoder_name: str,
    names: Sequence[str],
    output: Path,
    examples: int | None,
    steps: int | None,
    seed: int,
    device: str,
    start: Path | None = None,
) -> None:
    """Train on the concepts of these names, or adopt the sanitizer of the file `start` where it is as good on this
    encoder, and write the file."""
    target = check_output(output, ".safetensors", *names, encoder_files(encoder_name))
    concepts = choose_concepts(names)
    check_device(device)
    known = None if start is None else artifact.load(start)
    encoder = load_encoder(encoder_name, device=device)
    sanitizer = report = adoption = None
    if known is not None:
        with Bars() as bars:
            adoption = adopt(encoder, known, concepts, progress=bars)
        if adoption.kept:
            sanitizer, report = adoption.sanitizer, adoption.after
            note(f"{start}: adopted, trained on {known.fingerprint}.")
        else:
            known = known if adoption.near else None
            further = "trained on from there" if known else "too far off to train on from there"
            note(f"{start}: not adopted, {further}: {'; '.join(adoption.reasons)}.")
    if sanitizer is None or report is None:
        with Bars() as bars:
            sanitizer, report = fit(
                encoder, concepts, examples=examples, steps=steps, seed=seed, device=device, progress=bars, start=known
            )
        if known is not None and adoption is not None and adoption.beats(report):
            sanitizer, report = adoption.sanitizer, adoption.after
            note(f"{start}: adopted all the same: trained on from it finds less. Without --start a full set is taken.")
    artifact.save(sanitizer, target)
    print(report.to_text())
    worth = judge(sanitizer.header, sanitizer.erasable).line
    if worth:
        note(f"{output}: {worth}")
    note(f"{output}: written, {target.stat().st_size / 1e6:.1f} MB, for {encoder.fingerprint}.")


def choose_concepts(names: Sequence[str]) -> list[Concept]:
    """Concepts by name, "all", or files of the user's own: .toml as in concepts/, .txt with `target -> anchor`."""
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
