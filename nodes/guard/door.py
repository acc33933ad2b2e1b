"""At the server's door: every prompt that is to be queued goes through the guard, and hosts may ask it."""

import asyncio
import logging
import uuid
from typing import Any

import server as comfyui
from aiohttp import web

from ...sanitizer.errors import SanitizerError
from ...sanitizer.guard.log import REFUSED, Entry
from ...sanitizer.guard.setting import Setting
from ...sanitizer.guard.watch import State
from . import graph
from .host import host
from .text import SCORER

LARGEST = 20_000
"""Bytes that a request to score a prompt may have."""
LOCAL = ("127.0.0.1", "::1", "::ffff:127.0.0.1")
HEALTH, SCORE = "/embedding_sanitizer/health", "/embedding_sanitizer/score"


def install() -> None:
    """Once, when the server loads its nodes."""
    server = _server()
    if server is None:
        return
    server.add_on_prompt_handler(Handler(server))
    server.routes.get(HEALTH)(health)
    server.routes.post(SCORE)(score)
    logging.info("Embedding Sanitizer: guard %s.", _how(host().state))


def _server() -> Any:
    """None where there is none, as in tests."""
    return getattr(comfyui.PromptServer, "instance", None)


class Handler:
    """What ComfyUI calls with each prompt. It never raises: ComfyUI would run the prompt as it was.

    The last handler to be called has the last word, and other packs may add theirs at any time; one that is not the
    last leaves the prompt to a new one, which ComfyUI comes to in the same round."""

    def __init__(self, server: Any) -> None:
        self._server = server

    def __call__(self, request: Any) -> Any:
        handlers = self._server.on_prompt_handlers
        if handlers[-1] is not self:
            if not isinstance(handlers[-1], Handler):
                self._server.add_on_prompt_handler(Handler(self._server))
            return request
        try:
            return admit(request)
        except SanitizerError as error:
            reason = str(error)
        except Exception as error:
            logging.exception("Embedding Sanitizer: the guard failed at a prompt, which is refused.")
            reason = f"Guard: the prompt cannot be guarded ({type(error).__name__})."
        return refusal(request, reason)


def admit(request: Any) -> Any:
    """The request as the server may run it. Raises SanitizerError for one that it may not."""
    setting = host().setting()
    if setting is None:
        return request
    if not isinstance(request, dict) or "prompt" not in request:
        return {}  # which the server answers itself
    prompt = graph.checked(request["prompt"])
    replacements = getattr(_server(), "node_replace_manager", None)
    if replacements is not None:
        # ComfyUI does it behind the handlers: an old node's place would be taken by one that was not looked at.
        replacements.apply_replacements(prompt)
    request = {**request, "prompt": graph.guarded(prompt, kind_of, setting, own_module())}
    if not request.get("prompt_id"):
        request["prompt_id"] = str(uuid.uuid4())
    if setting.log.prompts or setting.log.words:
        host().remember(request["prompt_id"], graph.texts(prompt, kind_of))
    return request


def refusal(request: Any, reason: str) -> dict:
    """A request that the server refuses with these words, and a line in the log."""
    given = request if isinstance(request, dict) else {}
    prompt_id, client_id = (str(given.get(name) or "") for name in ("prompt_id", "client_id"))
    try:
        host().write(Entry(REFUSED, prompt_id, client_id, reason=reason))
    except Exception:
        logging.exception("Embedding Sanitizer: the guard's log cannot be written.")
    node = {"class_type": graph.REFUSAL, "inputs": {"reason": reason}}
    kept = {name: value for name, value in given.items() if name not in ("prompt", "partial_execution_targets")}
    return {**kept, "prompt": {f"{graph.PREFIX}refused": node}}


def own_module() -> str:
    """The module under which ComfyUI knows this pack's nodes."""
    return comfyui.nodes.NODE_CLASS_MAPPINGS[graph.GUARD].RELATIVE_PYTHON_MODULE


def kind_of(type_: str) -> graph.Kind | None:
    """What is known of the class of a node, None where it is not installed."""
    node = comfyui.nodes.NODE_CLASS_MAPPINGS.get(type_)
    if node is None:
        return None
    given = node.INPUT_TYPES()
    inputs = {
        name: socket[0] if isinstance(socket[0], str) else "COMBO"
        for group in ("required", "optional")
        for name, socket in given.get(group, {}).items()
    }
    outputs = tuple(out if isinstance(out, str) else "COMBO" for out in node.RETURN_TYPES)
    module = getattr(node, "RELATIVE_PYTHON_MODULE", "nodes")
    return graph.Kind(inputs, outputs, module, bool(getattr(node, "API_NODE", False)))


async def health(_request: web.Request) -> web.Response:
    """How the guard stands; 503 where it refuses every prompt."""
    state = host().state
    told: dict[str, Any] = {"guard": _how(state)}
    if state.error:
        told["error"] = state.error
    if state.setting is not None:
        told |= {"mode": state.setting.rule.mode, "concepts": list(state.setting.concepts) or "all"}
    return web.json_response(told, status=503 if told["guard"] == "refusing" else 200)


def _how(state: State) -> str:
    return "off" if not state.on else "refusing" if state.setting is None else "on"


async def score(request: web.Request) -> web.Response:
    """What the guard would do with the prompt in a JSON object {"prompt": text}, see TextScorer.score."""
    if request.remote not in LOCAL:
        return _refused(403, "only this machine may ask")
    if request.content_length is None or request.content_length > LARGEST:
        return _refused(413, f"expected at most {LARGEST} bytes")
    try:
        given = await request.json()
        text = given["prompt"]
        if not isinstance(text, str):
            raise TypeError
    except (ValueError, KeyError, TypeError):
        return _refused(400, 'expected a JSON object {"prompt": text}')
    try:
        setting = host().setting() or Setting()
        return web.json_response(await asyncio.to_thread(SCORER.score, text, setting))
    except SanitizerError as error:
        return _refused(503, str(error))


def _refused(status: int, why: str) -> web.Response:
    return web.json_response({"error": why}, status=status)
