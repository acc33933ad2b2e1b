"""The pack in a running ComfyUI: pictures, workflows, errors, interrupting."""

import shutil
import time
import urllib.error
from pathlib import Path

import pytest

PACK = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((PACK / "workflows").glob("*.json"))

HARMLESS = "a red boat on a quiet lake, oil painting"
UNSAFE = "an oil painting of a nude woman"


@pytest.mark.parametrize(("text", "strength"), [(HARMLESS, 1.0), (UNSAFE, 0.0)])
def test_harmless_prompt_and_strength_0_give_the_same_picture(server, trained, text, strength):
    plain = server.picture(server.graph(text))
    for way in ("conditioning", "clip"):
        assert (server.picture(server.graph(text, **{way: {"strength": strength}})) == plain).all(), way


def test_unsafe_prompt_changes_the_picture_alike_by_both_nodes(server, trained):
    plain = server.picture(server.graph(UNSAFE))
    outputs = server.run(server.graph(UNSAFE, conditioning={}))
    by_conditioning = server.pixels(outputs, "7")
    assert (by_conditioning != plain).any()
    assert (server.picture(server.graph(UNSAFE, clip={})) == by_conditioning).all()
    [status] = outputs["10"]["embedding_sanitizer"]
    assert status["state"] == "changed"
    assert "nudity" in status["text"]
    assert (server.picture(server.graph(UNSAFE, conditioning={"strength": 0.5})) != by_conditioning).any()


def test_sanitize_clip_survives_clip_skip(server, trained):
    prompt = server.graph(UNSAFE, clip={})
    prompt["11"] = {"class_type": "CLIPSetLastLayer", "inputs": {"clip": ["10", 0], "stop_at_clip_layer": -1}}
    prompt["2"]["inputs"]["clip"] = ["11", 0]
    assert (server.picture(prompt) == server.picture(server.graph(UNSAFE, clip={}))).all()


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_every_workflow_runs(server, trained, workflow):
    prompt = server.to_prompt(workflow)
    outputs = server.run(prompt)
    pictures = [output["images"] for output in outputs.values() if "images" in output]
    assert pictures
    kinds = {
        prompt[node]["class_type"]: message["kind"]
        for node, output in outputs.items()
        for message in output.get("embedding_sanitizer", [])
    }
    assert kinds["ESTokenScorePreview"] == "words"


def test_words_at_fault(server, trained):
    prompt = server.graph(UNSAFE)
    inputs = {"sanitizer": ["9", 0], "conditioning": ["2", 0], "clip": ["1", 1], "text": UNSAFE}
    prompt["12"] = {"class_type": "ESTokenScorePreview", "inputs": inputs}
    [message] = server.run(prompt)["12"]["embedding_sanitizer"]
    [shown] = message["prompts"]
    assert shown["flagged"]
    assert "nudity" in shown["fired"]
    scores = {word["text"]: word["scores"]["nudity"] for word in shown["words"]}
    assert max(scores, key=scores.get) == "nude"


def test_auto_without_clip_says_what_to_do(server):
    prompt = server.graph(UNSAFE, conditioning={})
    del prompt["9"]["inputs"]["clip"]
    assert "Connect the CLIP" in server.error(prompt)


def test_a_sanitizer_of_another_encoder_stops_the_run_and_names_both(server, trained):
    shutil.copy(PACK / "weights" / "minilm.safetensors", server.sanitizers / "other.safetensors")
    try:
        message = server.error(server.graph(UNSAFE, sanitizer="other.safetensors", conditioning={}))
    finally:
        (server.sanitizers / "other.safetensors").unlink()
    for expected in ("other.safetensors was trained on bert", "but the connected CLIP is TextModel", "'auto'"):
        assert expected in message


@pytest.mark.parametrize(
    ("content", "expected"),
    [(b"", "truncated or corrupt"), (b"PK\x03\x04" + b"\0" * 60, "a pickle, which can run code")],
)
def test_a_file_that_is_no_sanitizer_is_one_clear_error(server, content, expected):
    server.sanitizers.mkdir(exist_ok=True)
    (server.sanitizers / "broken.safetensors").write_bytes(content)
    try:
        assert expected in server.error(server.graph(UNSAFE, sanitizer="broken.safetensors", conditioning={}))
    finally:
        (server.sanitizers / "broken.safetensors").unlink()


@pytest.mark.parametrize("name", ["../../checkpoints/v1-5-pruned-emaonly-fp16.safetensors", "/etc/passwd"])
def test_a_name_that_leads_elsewhere_is_refused(server, name):
    # ComfyUI refuses it as no choice of the list; 0.3.64 leaves that to the node.
    try:
        message = server.error(server.graph(UNSAFE, sanitizer=name, conditioning={}))
    except urllib.error.HTTPError as error:
        assert error.code == 400
        message = error.read().decode()
    assert "Value not in list" in message or "is not the name of a .safetensors file" in message


@pytest.mark.parametrize("kind", ["conditioning", "preview"])
def test_text_that_is_not_covered_stops_the_run_and_names_the_key(server, trained, kind):
    prompt = server.graph(HARMLESS, conditioning={})
    # A node of the test pack, in place of a text encoder that puts text into a key of its own.
    prompt["20"] = {"class_type": "ESTestExtraText", "inputs": {"conditioning": ["2", 0]}}
    prompt["10"]["inputs"]["conditioning"] = ["20", 0]
    if kind == "preview":
        inputs = {"sanitizer": ["9", 0], "conditioning": ["20", 0]}
        prompt = {key: prompt[key] for key in ("1", "2", "9", "20")}
        prompt["12"] = {"class_type": "ESTokenScorePreview", "inputs": inputs}
    assert "'conditioning_of_another_encoder'" in server.error(prompt)


def test_interrupted_training_leaves_nothing(server):
    prompt = {key: node for key, node in server.graph(UNSAFE).items() if key == "1"}
    prompt["2"] = {
        "class_type": "ESTrainSanitizer",
        "inputs": {
            "clip": ["1", 1], "concepts": "nudity", "custom_concept": "", "name": "interrupted", "examples": 5000,
            "steps": 2000, "seed": 0, "retrain": False,
        },
    }  # fmt: skip
    started = server.start(prompt)
    # Into the training; an interrupt that comes before the node begins would be lost or prove nothing.
    time.sleep(8)
    while started not in server.get(f"/history/{started}"):
        server.get("/interrupt", {})
        time.sleep(1)
    entry = server.wait(started)
    [details] = [data for name, data in entry["status"]["messages"] if name == "execution_interrupted"]
    assert details["node_type"] == "ESTrainSanitizer"
    assert not list(server.sanitizers.glob("*interrupted*"))
