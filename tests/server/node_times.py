"""Node time for a prompt that passes and one that is changed next to the encode time, interleaved in one run.

Run: python node_times.py COMFYUI_PATH CHECKPOINT.safetensors SANITIZER.safetensors [ROUNDS]

The sanitizer must be the checkpoint's own, as Load Sanitizer's `auto` saves it.
"""

import importlib
import importlib.util
import statistics
import sys
import time
from pathlib import Path
from types import SimpleNamespace

PACK = Path(__file__).resolve().parents[2]
# The threshold decides, not the sanitizer: at 1 a prompt passes, at 0 it is changed, whatever its score.
PROMPTS = (
    ("harmless", "a red boat on a quiet lake, oil painting", 1.0),
    ("unsafe", "an oil painting of a nude woman by the window", 0.0),
)


def load_pack(name: str = "es_node_times"):
    """As ComfyUI does, by path."""
    path = PACK / "__init__.py"
    spec = importlib.util.spec_from_file_location(name, path, submodule_search_locations=[str(PACK)])
    sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])
    return lambda module: importlib.import_module(f"{name}.{module}")


def measure(checkpoint: str, file: str, rounds: int) -> dict[str, list[float]]:
    """Seconds of each round of each step."""
    import comfy.sd
    import torch

    pack = load_pack()
    clip = comfy.sd.load_checkpoint_guess_config(checkpoint, output_vae=False, output_model=False)[1]
    sanitizer = pack("nodes.adapter.handle").LoadedSanitizer.load(Path(file))
    sanitizer.check_clip(clip, "node_times")
    sanitize, preview = pack("nodes.sanitize_conditioning"), pack("nodes.token_score_preview")
    hidden = {"hidden": SimpleNamespace(unique_id=None)}
    sanitize = type("Sanitize", (sanitize.SanitizeConditioning,), hidden)
    preview = type("Preview", (preview.TokenScorePreview,), hidden)
    times: dict[str, list[float]] = {}

    def timed(step: str, call):
        began = time.perf_counter()
        result = call()
        times.setdefault(step, []).append(time.perf_counter() - began)
        return result

    for number in range(rounds + 1):
        for kind, text, threshold in PROMPTS:
            with torch.inference_mode():
                given = timed("encode", lambda text=text: clip.encode_from_tokens_scheduled(clip.tokenize(text)))
                inputs = {"conditioning": given, "sanitizer": sanitizer}
                out = timed(
                    f"Sanitize Conditioning, {kind}",
                    lambda inputs=inputs, limit=threshold: sanitize.execute(**inputs, strength=1.0, threshold=limit),
                )
                timed(
                    f"Token Score Preview, {kind}",
                    lambda inputs=inputs, text=text: preview.execute(**inputs, clip=clip, text=text),
                )
            if number == 0:
                print(f"{kind}: {out.ui['embedding_sanitizer'][0]['text']}")
        if number == 0:
            times.clear()  # the first round loads the models
    return times


if __name__ == "__main__":
    comfyui, checkpoint, file, *rest = sys.argv[1:]
    sys.argv = [sys.argv[0], "--cpu"]
    sys.path.insert(0, comfyui)
    import comfy.options

    comfy.options.enable_args_parsing()
    import utils.extra_config  # noqa: F401 - as in main.py: before comfy/ with its own utils.py comes onto the path

    found = measure(checkpoint, file, int(rest[0]) if rest else 30)
    encode = statistics.median(found["encode"])
    for step, seconds in found.items():
        middle = statistics.median(seconds)
        print(f"{step:32}{1000 * middle:9.2f} ms{100 * middle / encode:8.1f} % of encoding")
