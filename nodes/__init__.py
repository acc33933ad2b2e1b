"""The ComfyUI nodes. The only package that knows ComfyUI; everything it computes, it asks of `sanitizer`."""

from comfy_api.latest import ComfyExtension, io

from .adapter import folders
from .guard import door
from .guard.nodes import NODES as GUARD_NODES
from .load_sanitizer import LoadSanitizer
from .sanitize_clip import SanitizeCLIP
from .sanitize_conditioning import SanitizeConditioning
from .sanitize_model import SanitizeModel
from .sanitizer_report import SanitizerReport
from .token_score_preview import TokenScorePreview
from .train_sanitizer import TrainSanitizer


class SanitizerExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        # Not in on_load, which ComfyUI 0.3.64 does not call; the schemas below list this folder.
        folders.register()
        door.install()
        return [
            LoadSanitizer,
            TrainSanitizer,
            SanitizeConditioning,
            SanitizeCLIP,
            SanitizeModel,
            TokenScorePreview,
            SanitizerReport,
            *GUARD_NODES,
        ]
