"""`sanitize`: prompts in, one .safetensors file with the embeddings before and after out."""

import argparse
import hashlib
import json
import time
from collections.abc import Iterable
from pathlib import Path

from ..files import whole_file
from ..model.config import THRESHOLD
from . import terminal
from .arguments import RE_ENCODE
from .readers import read_prompts
from .score import counted
from .writers import TensorSpool, check_output

FORMAT = "embedding-sanitizer output, version 1"


def run(arguments: argparse.Namespace) -> None:
    target = check_output(arguments.output, ".safetensors", arguments.input)
    prompts = read_prompts(arguments.input, arguments.column, arguments.format)

    from .pipeline import default_re_encoder, default_reader, load_pair, process

    encoder, sanitizer, path = load_pair(arguments.encoder, arguments.sanitizer, arguments.device)
    re_encode = arguments.mode == RE_ENCODE
    results = process(
        encoder,
        sanitizer,
        counted(prompts),
        strength=arguments.strength,
        threshold=arguments.threshold,
        concepts=arguments.concepts,
        reader=default_reader(arguments.readings),
        re_encoder=default_re_encoder(encoder, sanitizer, arguments.concepts, re_encode),
    )
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    metadata = {
        "format": FORMAT,
        "encoder": f"{arguments.encoder}: {encoder.fingerprint}",
        "encoder_fingerprint": json.dumps(encoder.fingerprint.to_dict()),
        "sanitizer": f"{path.name} sha256:{digest}",
        "concepts": json.dumps(sanitizer.concepts),
        "erased": json.dumps(arguments.concepts or sanitizer.erasable),
        "mode": arguments.mode,
        "strength": f"{arguments.strength:g}",
        "readings": json.dumps(arguments.readings),
        "threshold": f"{THRESHOLD if arguments.threshold is None else arguments.threshold:g}",
    }
    began = time.monotonic()
    total, flagged = write(results, target, metadata, moved=re_encode)
    seconds = time.monotonic() - began
    terminal.note(f"{arguments.output}: {total} prompts, {flagged} sanitized, by {path.name}, {seconds:.1f} s.")


def write(results: Iterable, target: Path, metadata: dict[str, str], moved: bool = False) -> tuple[int, int]:
    """Write the results' tensors; the number of prompts, and of flagged ones. moved: the sanitized rows may be others
    than the prompt's, so their mask is written too.

    N and L are known only at the end, so the rows wait in unnamed temporary files beside the output.
    """
    flagged = 0
    # The output is opened first: its folder is known to take a file before the work is done.
    with whole_file(target) as file, TensorSpool(target.parent) as spool:
        for result in results:
            flagged += result.flagged
            fixed = {"prompt_scores": result.prompt_scores}
            if result.pooled is not None:
                fixed |= {"pooled": result.pooled, "pooled_sanitized": result.pooled_sanitized}
            rows = {
                "embeddings": result.embeddings,
                "sanitized": result.sanitized,
                "mask": result.mask,
                "token_scores": result.token_scores,
            }
            spool.add(rows | ({"mask_sanitized": result.mask_sanitized} if moved else {}), fixed)
        spool.assemble(file, metadata)
        return len(spool), flagged
