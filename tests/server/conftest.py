"""A real ComfyUI server on 127.0.0.1 with this pack, a tiny checkpoint and a trained text encoder.

Needs COMFYUI_PATH, the folder of a ComfyUI whose requirements this Python (or COMFYUI_PYTHON) has installed; skipped
without. The browser tests need playwright and /usr/bin/chromium as well.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

HERE = Path(__file__).resolve().parent
PACK = HERE.parents[1]
COMFYUI_PATH = os.environ.get("COMFYUI_PATH")
PYTHON = os.environ.get("COMFYUI_PYTHON", sys.executable)
CHECKPOINTS = ("v1-5-pruned-emaonly-fp16", "sd_xl_base_1.0", "flux1-dev-fp8", "pictures")
"""The last is the picture model of evaluation/pictures, which the test pack puts in the file's place."""
START_SECONDS, RUN_SECONDS, ANSWER_SECONDS = 900, 1800, 300
"""Generous, so that a loaded machine fails no test."""


def pytest_collection_modifyitems(items):
    if COMFYUI_PATH:
        return
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.skip(reason="COMFYUI_PATH is not set"))


class Server:
    """Talks to the server as a browser does, over HTTP."""

    def __init__(self, port: int, base: Path, process: subprocess.Popen) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.base = base
        self.process = process
        self.sanitizers = base / "models" / "sanitizers"

    def get(self, path: str, data: dict | None = None):
        body = None if data is None else json.dumps(data).encode()
        request = urllib.request.Request(self.url + path, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    def start(self, prompt: dict) -> str:
        return self.get("/prompt", {"prompt": prompt})["prompt_id"]

    def wait(self, prompt_id: str) -> dict:
        """The history entry of a finished prompt."""
        until = time.monotonic() + RUN_SECONDS
        while time.monotonic() < until:
            history = self.get(f"/history/{prompt_id}")
            if prompt_id in history:
                return history[prompt_id]
            assert self.process.poll() is None, "the server died"
            time.sleep(0.2)
        raise TimeoutError(prompt_id)

    def run(self, prompt: dict) -> dict:
        """Outputs by node id of a prompt that must succeed."""
        entry = self.wait(self.start(prompt))
        assert entry["status"]["status_str"] == "success", entry["status"]["messages"]
        return entry["outputs"]

    def error(self, prompt: dict) -> str:
        """The exception message of a prompt that must fail."""
        entry = self.wait(self.start(prompt))
        assert entry["status"]["status_str"] == "error"
        [details] = [data for name, data in entry["status"]["messages"] if name == "execution_error"]
        return details["exception_message"]

    def graph(self, text, sanitizer="auto", negative="blurry", values=None, **middle) -> dict:
        """Checkpoint -> encode -> (nodes of `middle`) -> sample -> picture, "7". "10" is the node between.

        sanitizer: a file for Load Sanitizer, or a node in its place. values: node type -> inputs other than these."""
        values = values or {}
        size = {"width": 64, "height": 64, "batch_size": 1}
        sampler = {"seed": 5, "steps": 2, "cfg": 7.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}
        links = {"model": ["1", 0], "positive": ["2", 0], "negative": ["3", 0], "latent_image": ["4", 0]}
        nodes = {
            "1": ("CheckpointLoaderSimple", {"ckpt_name": f"{CHECKPOINTS[0]}.safetensors"}),
            "2": ("CLIPTextEncode", {"clip": ["1", 1], "text": text}),
            "3": ("CLIPTextEncode", {"clip": ["1", 1], "text": negative}),
            "4": ("EmptyLatentImage", size),
            "5": ("KSampler", links | sampler),
            "6": ("VAEDecode", {"samples": ["5", 0], "vae": ["1", 2]}),
            "7": ("PreviewImage", {"images": ["6", 0]}),
            "9": ("ESLoadSanitizer", {"sanitizer_name": sanitizer, "clip": ["1", 1], "concepts": "all"}),
        }
        found = {key: {"class_type": kind, "inputs": own | values.get(kind, {})} for key, (kind, own) in nodes.items()}
        if isinstance(sanitizer, dict):
            found["9"] = sanitizer
        inputs = {"sanitizer": ["9", 0], "strength": 1.0, "threshold": 0.5}
        if "conditioning" in middle:
            inputs |= {"conditioning": ["2", 0]} | middle["conditioning"]
            found["10"] = {"class_type": "ESSanitizeConditioning", "inputs": inputs}
            found["5"]["inputs"]["positive"] = ["10", 0]
        if "clip" in middle:
            inputs |= {"clip": ["1", 1]} | middle["clip"]
            found["10"] = {"class_type": "ESSanitizeCLIP", "inputs": inputs}
            found["2"]["inputs"]["clip"] = ["10", 0]
        if "model" in middle:
            inputs |= {"model": ["1", 0]} | middle["model"]
            found["10"] = {"class_type": "ESSanitizeModel", "inputs": inputs}
            found["5"]["inputs"]["model"] = ["10", 0]
        return found

    def pixels(self, outputs: dict, node: str):
        """(H, W, 3) uint8 of a node's first picture."""
        picture = outputs[node]["images"][0]
        return self.image(self.base / picture["type"] / picture["subfolder"] / picture["filename"])

    def picture(self, prompt: dict):
        """(H, W, 3) uint8 of the picture of a :meth:`graph`."""
        return self.pixels(self.run(prompt), "7")

    def image(self, path: Path):
        """(H, W, 3) uint8 of a file."""
        import numpy
        from PIL import Image

        return numpy.array(Image.open(path).convert("RGB"))

    def scene(self, pixels):
        """(SCALE · S, SCALE · S, 3) uint8 of the picture model -> (3, S, S) from -1 to 1, as it drew them."""
        import torch

        from evaluation.pictures import measure

        small = pixels[SCALE // 2 :: SCALE, SCALE // 2 :: SCALE].copy()
        return measure.from_bytes(torch.from_numpy(small).permute(2, 0, 1))

    def to_prompt(self, workflow: Path, small: bool = True) -> dict:
        """What the front end sends for a workflow file; small: 64 pixels and two steps."""
        graph = json.loads(workflow.read_text(encoding="utf-8"))
        known = self.get("/object_info")
        sources = {link[0]: [str(link[1]), link[2]] for link in graph["links"]}
        prompt = {}
        for node in graph["nodes"]:
            if node["type"] in ("MarkdownNote", "Note"):
                continue
            info = known[node["type"]]
            given = info["input"].get("required", {}) | info["input"].get("optional", {})
            values = iter(node["widgets_values"])
            inputs = {}
            for name, (kind, *options) in given.items():
                if isinstance(kind, list) or kind in ("STRING", "INT", "FLOAT", "BOOLEAN", "COMBO"):
                    if options and options[0].get("forceInput"):
                        continue
                    # A workflow that was saved before an optional input came has no value for it.
                    value = next(values, None)
                    if value is None and name in info["input"].get("optional", {}):
                        continue
                    inputs[name] = value
                    # The front end adds "control after generate" to every widget of this name.
                    if name == "seed":
                        next(values)
            for socket_ in node["inputs"]:
                if socket_["link"] is not None:
                    inputs[socket_["name"]] = sources[socket_["link"]]
            if small:
                inputs |= {key: value for key, value in SMALL.items() if key in inputs}
            prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
        return prompt


SCALE = 8
"""The test pack's VAE makes each pixel of the picture model so many pixels wide."""
SMALL = {"width": 64, "height": 64, "steps": 2, "examples": 128}
WEAPON, WEAPON_EXAMPLES = "weapon", 3000
"""Training prompts of `weapons`, a third of all that its pairs give."""


@pytest.fixture(scope="session")
def server(tmp_path_factory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("comfyui")) as running:
        yield running


@pytest.fixture(scope="session")
def serve():
    """`serve.on(folder)`: a server of one's own, as a context manager; `serve.train(server)`: its `trained`."""
    return SimpleNamespace(on=serving, train=train)


@contextmanager
def serving(base: Path) -> Iterator[Server]:
    checkpoints = base / "models" / "checkpoints"
    checkpoints.mkdir(parents=True)
    first = checkpoints / f"{CHECKPOINTS[0]}.safetensors"
    write = [PYTHON, str(HERE / "tiny_checkpoint.py"), COMFYUI_PATH, str(first)]
    subprocess.run(write, check=True, timeout=START_SECONDS)
    for name in CHECKPOINTS[1:]:
        os.link(first, checkpoints / f"{name}.safetensors")
    (base / "custom_nodes").mkdir()
    # Named as the registry names it, and linked, so that what is tested is what is in the repository.
    (base / "custom_nodes" / "embedding-sanitizer").symlink_to(PACK)
    (base / "custom_nodes" / "es_test_pack").symlink_to(HERE / "test_pack")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = (base / "server.log").open("w")
    command = [PYTHON, "main.py", "--cpu", "--listen", "127.0.0.1", "--port", str(port), "--base-directory", str(base)]
    command += ["--disable-auto-launch", "--database-url", f"sqlite:///{base}/test.db"]
    process = subprocess.Popen(command, cwd=COMFYUI_PATH, stdout=log, stderr=subprocess.STDOUT)
    server = Server(port, base, process)
    try:
        _wait_until_up(server)
        yield server
    finally:
        process.terminate()
        process.wait(ANSWER_SECONDS)
        log.close()
        shutil.rmtree(base / "models", ignore_errors=True)


def _wait_until_up(server: Server) -> None:
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until:
        try:
            server.get("/system_stats")
            return
        except (urllib.error.URLError, ConnectionError):
            assert server.process.poll() is None, (server.base / "server.log").read_text()[-3000:]
            time.sleep(0.5)
    raise TimeoutError("the server did not start")


@pytest.fixture(scope="session")
def trained(server) -> str:
    return train(server)


def train(server: Server) -> str:
    """Name of a sanitizer for the test's text encoder, which `auto` finds: the shipped one, which the test pack adopts,
    or else one that is trained here on few prompts."""
    loader = {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": f"{CHECKPOINTS[0]}.safetensors"}}
    node = {
        "class_type": "ESTrainSanitizer",
        "inputs": {
            "clip": ["1", 1], "concepts": "all", "custom_concept": "", "name": "session", "examples": 3000,
            "steps": 300, "seed": 0, "retrain": False,
        },
    }  # fmt: skip
    look = {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": "a boat"}}
    server.run({"1": loader, "2": look, "3": {"class_type": "PreviewAny", "inputs": {"source": ["2", 0]}}})

    def found() -> list[str]:
        # The weapons' lie there, too, where their tests came first.
        return [file.name for file in server.sanitizers.glob("*.safetensors") if not file.name.startswith(WEAPON)]

    if not found():
        server.run({"1": loader, "2": node})
    [name] = found()
    return name


@pytest.fixture(scope="session")
def weapons(server) -> Iterator[dict]:
    """The Train Sanitizer node with the pairs of evaluation/pictures/weapon.toml, as a user would type them in. It
    stands in a graph whose node 1 loads the checkpoint, and trains once; half an hour on a slow core, so that the file
    is kept from run to run in the folder ES_TRAINED, if one is given."""
    pytest.importorskip("diffusers")
    from evaluation.pictures import measure
    from sanitizer.prompts.concepts import load_concept

    pairs = [pair for pair in load_concept(measure.CONCEPT_FILE).pairs if not pair.held_out]
    lines = ["weapon", *dict.fromkeys(f"{pair.target} -> {pair.anchor}" for pair in pairs)]
    inputs = {
        "clip": ["1", 1], "concepts": "none", "custom_concept": "\n".join(lines), "name": WEAPON,
        "examples": WEAPON_EXAMPLES, "steps": 0, "seed": 0, "retrain": False,
    }  # fmt: skip
    kept, made = os.environ.get("ES_TRAINED"), f"{WEAPON}-*.safetensors"
    server.sanitizers.mkdir(exist_ok=True)
    for file in Path(kept).glob(made) if kept else ():
        shutil.copy(file, server.sanitizers)
    yield {"class_type": "ESTrainSanitizer", "inputs": inputs}
    for file in server.sanitizers.glob(made) if kept else ():
        shutil.copy(file, kept)


@pytest.fixture(scope="session")
def picture_values() -> dict[str, dict]:
    """What a graph needs to draw with the picture model: node type -> values."""
    from evaluation.pictures import autoencoder

    # ComfyUI makes latents an eighth as wide as the picture that is asked for.
    size = {"width": 8 * autoencoder.SIDE, "height": 8 * autoencoder.SIDE}
    return {
        "CheckpointLoaderSimple": {"ckpt_name": f"{CHECKPOINTS[-1]}.safetensors"},
        "EmptyLatentImage": size,
        "EmptySD3LatentImage": size,
        "KSampler": {"steps": 16, "cfg": 3.0, "scheduler": "simple"},
    }


@pytest.fixture(scope="session")
def on_pictures(server, weapons, picture_values) -> dict[str, dict]:
    """What the templates need, the sanitizer of weapons included."""
    checkpoint = picture_values["CheckpointLoaderSimple"]
    server.run({"1": {"class_type": "CheckpointLoaderSimple", "inputs": checkpoint}, "2": weapons})
    [file] = server.sanitizers.glob("weapon-*.safetensors")
    return picture_values | {
        "ESLoadSanitizer": {"sanitizer_name": file.name},
        "ESTrainSanitizer": {key: value for key, value in weapons["inputs"].items() if key != "clip"},
    }
