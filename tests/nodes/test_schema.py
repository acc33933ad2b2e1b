"""What a person sees of the nodes: ids that never change, tooltips, help pages, translations."""

import asyncio
import json
from pathlib import Path

import pytest

PACK = Path(__file__).resolve().parents[2]
SOCKETS = {
    "ESLoadSanitizer": (["sanitizer_name", "clip", "concepts"], ["sanitizer"]),
    "ESTrainSanitizer": (
        ["clip", "concepts", "custom_concept", "name", "examples", "steps", "seed", "retrain"],
        ["sanitizer", "report"],
    ),
    "ESSanitizeConditioning": (["conditioning", "sanitizer", "strength", "threshold"], ["sanitized"]),
    "ESSanitizeCLIP": (["clip", "sanitizer", "strength", "threshold", "mode"], ["sanitized_clip"]),
    "ESSanitizeModel": (["model", "sanitizer", "strength", "threshold"], ["safe_model"]),
    "ESTokenScorePreview": (
        ["sanitizer", "conditioning", "clip", "text"],
        ["scored", "heatmap", "scores", "prompt_score", "flagged"],
    ),
    "ESSanitizerReport": (["clip", "sanitizer", "budget", "seed"], ["picture", "report"]),
}


@pytest.fixture
def schemas(pack, models):
    """Of the nodes that people place; the guard's are set in by itself."""
    nodes = asyncio.run(pack("nodes").SanitizerExtension().get_node_list())
    found = {schema.node_id: schema for schema in (node.GET_SCHEMA() for node in nodes)}
    return {name: schema for name, schema in found.items() if name not in pack("nodes.guard.graph").OWN_NODES}


def test_ids_and_sockets_are_what_shared_workflows_expect(schemas):
    found = {
        name: ([socket.id for socket in schema.inputs], [socket.id for socket in schema.outputs])
        for name, schema in schemas.items()
    }
    assert found == SOCKETS


def test_inputs_and_outputs_share_no_id(schemas):
    for schema in schemas.values():
        ids = [socket.id for socket in [*schema.inputs, *schema.outputs]]
        assert len(ids) == len(set(ids)), schema.node_id


def test_every_socket_has_a_tooltip(schemas):
    for schema in schemas.values():
        assert schema.category == "embedding sanitizer"
        assert schema.description
        for socket in [*schema.inputs, *schema.outputs]:
            assert socket.tooltip, f"{schema.node_id}.{socket.id}"


def test_every_node_has_a_help_page_that_names_its_sockets(schemas):
    for schema in schemas.values():
        page = (PACK / "web" / "docs" / f"{schema.node_id}.md").read_text(encoding="utf-8")
        for socket in [*schema.inputs, *schema.outputs]:
            assert f"`{socket.id}`" in page, f"{schema.node_id}.{socket.id}"


def test_translations_fit_the_nodes(schemas):
    files = list((PACK / "locales").glob("*/nodeDefs.json"))
    assert files
    for file in files:
        translated = json.loads(file.read_text(encoding="utf-8"))
        assert set(translated) == set(schemas), file
        for name, schema in schemas.items():
            assert set(translated[name]["inputs"]) == {socket.id for socket in schema.inputs}, f"{file}: {name}"
            assert len(translated[name]["outputs"]) == len(schema.outputs), f"{file}: {name}"
            assert translated[name]["display_name"], f"{file}: {name}"
            assert translated[name]["description"], f"{file}: {name}"
            for socket in [*translated[name]["inputs"].values(), *translated[name]["outputs"].values()]:
                assert socket["name"], f"{file}: {name}"
                assert socket["tooltip"], f"{file}: {name}"


def test_choices_are_auto_and_the_safetensors_of_the_folder(pack, models):
    (models / "one.safetensors").touch()
    (models / "README.md").touch()
    (models / "old.pt").touch()
    [choice, *_] = pack("nodes.load_sanitizer").LoadSanitizer.define_schema().inputs
    options = getattr(choice, "options", None)
    options = options["options"] if isinstance(options, dict) else options
    assert options == ["auto", "one.safetensors"]


def test_people_find_the_nodes_by_other_words(schemas):
    if "search_aliases" not in getattr(type(schemas["ESLoadSanitizer"]), "__dataclass_fields__", {}):
        pytest.skip("this ComfyUI has no search aliases")
    for schema in schemas.values():
        assert schema.search_aliases, schema.node_id
