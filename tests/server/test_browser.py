"""The front end in headless Chromium, in both renderers: load a workflow, run it, see words and slider.

ES_SCREENSHOTS names a folder to which a picture of each workflow is written, to be looked at.
"""

import json
import os
import time
from pathlib import Path

import pytest

sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = Path("/usr/bin/chromium")
pytestmark = pytest.mark.skipif(not CHROMIUM.exists(), reason="no /usr/bin/chromium")

WORKFLOWS = sorted((Path(__file__).resolve().parents[2] / "workflows").glob("*.json"))
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
RUN_SECONDS, WAIT_MS = 1800, 600_000
"""Generous, so that a loaded machine fails no test."""
VUE_SINCE = [1, 28]
"""In 1.27 (ComfyUI 0.3.64) it shows no DOM widgets, core's own text boxes included."""
SCREENSHOTS = os.environ.get("ES_SCREENSHOTS")
WEAPON = "a dog on the left and a pistol on the right, blue background"

PREPARE = """async (vue) => {
  const settings = app.extensionManager.setting;
  await settings.set("Comfy.TutorialCompleted", true);
  await settings.set("Comfy.VueNodes.Enabled", vue);
}"""
WRITE = """(values) => {
  for (const node of app.graph._nodes ?? app.graph.nodes) {
    for (const widget of node.widgets ?? []) {
      const value = values[node.title]?.[widget.name] ?? values[node.type]?.[widget.name];
      if (value !== undefined) { widget.value = value; widget.callback?.(value); }
    }
  }
}"""
"""Into the widgets of the nodes of a title or a type."""
SMALL = """() => {
  const small = {width: 64, height: 64, steps: 2, examples: 128};
  for (const node of app.graph._nodes ?? app.graph.nodes) {
    for (const widget of node.widgets ?? []) if (widget.name in small) widget.value = small[widget.name];
    if (node.type === "ESTrainSanitizer") node.widgets.find((w) => w.name === "steps").value = 40;
  }
}"""
SIZES = """() => (app.graph._nodes ?? app.graph.nodes).filter((node) => node.type.startsWith("ES"))
  .map((node) => [node.type, ...node.pos, ...node.size])"""
RUN = """async () => {
  window.outcome = null;
  app.api.addEventListener("execution_success", () => (window.outcome = "success"));
  app.api.addEventListener("execution_error", (event) => (window.outcome = event.detail.exception_message));
  await app.queuePrompt(0);
}"""


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        yield launched
        launched.close()


@pytest.fixture(params=["classic", "vue"])
def page(request, browser, server, trained):
    opened = browser.new_page(viewport={"width": 1900, "height": 1050})
    try:
        opened.set_default_timeout(WAIT_MS)
        opened.goto(server.url)
        opened.wait_for_function("window.app?.graph && window.app.extensionManager")
        version = opened.evaluate("window.__COMFYUI_FRONTEND_VERSION__ ?? '0.0'").split(".")
        if request.param == "vue" and [int(part) for part in version[:2]] < VUE_SINCE:
            pytest.skip("the Vue renderer of this front end is a hidden experiment without text boxes and notes")
        opened.evaluate(PREPARE, request.param == "vue")
        opened.renderer = request.param
        yield opened
    finally:
        # Also where it is skipped: a page that stays open draws on.
        opened.close()


def load(page, workflow: Path) -> None:
    page.evaluate("(graph) => app.loadGraphData(graph)", json.loads(workflow.read_text(encoding="utf-8")))
    page.wait_for_function("document.querySelectorAll('.es-panel').length > 0")


def screenshot(page, name: str) -> None:
    """The whole graph, when the front end has had time to lay it out."""
    if SCREENSHOTS:
        page.evaluate("app.extensionManager.command.execute('Comfy.Canvas.FitView')")
        time.sleep(3)
        page.screenshot(path=Path(SCREENSHOTS) / f"{name}_{page.renderer}.png")


def run(page) -> None:
    page.evaluate(RUN)
    until = time.monotonic() + RUN_SECONDS
    while page.evaluate("window.outcome") is None:
        assert time.monotonic() < until, "the workflow did not finish"
        time.sleep(0.2)
    assert page.evaluate("window.outcome") == "success"


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_workflow_loads_runs_and_shows_the_words(page, server, workflow):
    # From an empty cache, so that every node runs and reports; cached ones stay silent in a new window.
    server.get("/free", {"free_memory": True, "unload_models": True})
    load(page, workflow)
    missing = page.evaluate(
        "(app.graph._nodes ?? app.graph.nodes).filter((n) => n.has_errors || !n.constructor.nodeData"
        " && n.type !== 'MarkdownNote').map((n) => n.type)"
    )
    assert missing == []
    page.evaluate(SMALL)
    time.sleep(1)
    sizes = page.evaluate(SIZES)
    run(page)
    page.wait_for_selector(".es-word")
    words = page.evaluate("[...document.querySelectorAll('.es-word')].map((w) => [w.textContent, w.title])")
    assert len(words) > 3
    text, title = words[0]
    assert title.startswith(text)
    assert any(char.isdigit() for char in title), "the numbers on hover"
    assert "threshold 0.50" in page.inner_text(".es-scale")
    assert page.locator(".es-panel").count() >= 2
    # Every panel is filled, a little after the words on a busy machine: no "Run to …" is left.
    page.wait_for_function(
        "[...document.querySelectorAll('.es-panel')].every((panel) => !panel.textContent.startsWith('Run to'))"
    )
    time.sleep(1)
    for (kind, *before), (_, *after) in zip(sizes, page.evaluate(SIZES), strict=True):
        # The Vue renderer gives nodes some pixels of its own.
        assert after == pytest.approx(before, abs=8), f"{kind} grew, and covers the next one"
    screenshot(page, workflow.stem)


def test_what_the_nodes_said_survives_a_reload(page):
    load(page, WORKFLOWS[0])
    page.evaluate(SMALL)
    run(page)
    page.wait_for_selector(".es-word")
    said = page.evaluate("[...document.querySelectorAll('.es-panel')].map((panel) => panel.textContent).sort()")
    page.reload()
    page.wait_for_function("window.app?.graph && window.app.extensionManager")
    page.wait_for_selector(".es-word")
    again = page.evaluate("[...document.querySelectorAll('.es-panel')].map((panel) => panel.textContent).sort()")
    assert again == said


def test_several_concepts_stand_in_one_line_and_apart_on_demand(page):
    load(page, WORKFLOWS[0])
    page.evaluate(SMALL)
    page.evaluate(WRITE, {"PrimitiveStringMultiline": {"value": "a nude woman, a gun fight with bloody corpses"}})
    run(page)
    page.wait_for_selector(".es-word")
    lines = page.locator(".es-words:visible").count()
    assert lines == 1
    page.click(".es-panel summary")
    assert page.locator(".es-words:visible").count() > 2
    screenshot(page, "several_concepts")


def test_sanitize_model_says_what_it_did_in_the_sampling(page, server):
    server.get("/free", {"free_memory": True, "unload_models": True})
    [workflow] = [path for path in WORKFLOWS if path.stem == "06_sanitize_model"]
    load(page, workflow)
    page.evaluate(SMALL)
    run(page)
    page.wait_for_function(
        "[...document.querySelectorAll('.es-panel')].some((panel) => panel.textContent.includes('Last sampling'))"
    )


def test_slider_moves_the_picture_back(page, server):
    load(page, WORKFLOWS[0])
    page.evaluate(SMALL)
    run(page)
    changed = page.locator(".es-changed").count()
    page.evaluate(WRITE, {"ESSanitizeConditioning": {"strength": 0}})
    run(page)
    time.sleep(1)
    assert changed == 1
    assert page.locator(".es-changed").count() == 0


def test_prompt_text_is_never_markup(page):
    load(page, WORKFLOWS[0])
    page.evaluate(SMALL)
    markup = "<img src=x onerror=window.broken=1> nude <b>boat</b>"
    page.evaluate(WRITE, {"PrimitiveStringMultiline": {"value": markup}})
    run(page)
    page.wait_for_selector(".es-word")
    assert page.evaluate("document.querySelectorAll('.es-panel img, .es-panel b:not(.es-scale b)').length") == 0
    assert page.evaluate("window.broken") is None


def test_strength_takes_the_weapon_out_of_the_picture(page, server, on_pictures):
    """With the picture model of evaluation/pictures, so that a program reads the pictures that the user sees."""
    from evaluation.pictures import reader

    load(page, WORKFLOWS[0])
    page.evaluate(WRITE, on_pictures)
    page.evaluate(WRITE, {"Prompt": {"value": WEAPON}, "CLIP Text Encode (negative)": {"text": ""}})
    seen = []
    for strength in (0.0, 1.0):
        page.evaluate(WRITE, {"ESSanitizeConditioning": {"strength": strength}})
        run(page)
        screenshot(page, f"weapon_{strength:g}")
        file = max((server.base / "output").glob("sanitized_*.png"), key=lambda path: path.stat().st_mtime)
        seen += reader.load().read(server.scene(server.image(file))[None]).objects
    assert [reader.holds_weapon(objects) for objects in seen] == [True, False]
    assert seen[0]["left"] == seen[1]["left"] == "dog"
