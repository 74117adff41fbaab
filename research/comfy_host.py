"""ComfyUI inside this process; start() comes before any `import comfy`."""
from __future__ import annotations

import atexit
import importlib
import os
import sys
import tempfile
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
DEMO = REPO / "demo"
sys.path.append(str(REPO))  # for devtools

from devtools import inprocess  # noqa: E402


def start(comfyui: str | os.PathLike | None = None) -> None:
    """Boots ComfyUI from its folder (default: COMFYUI_PATH), on the CPU."""
    named = comfyui or os.environ.get("COMFYUI_PATH")
    if not named:
        raise SystemExit("no ComfyUI given: pass --comfyui or set COMFYUI_PATH to the folder that holds main.py")
    root = Path(named)
    if not (root / "main.py").is_file():
        raise SystemExit(f"no ComfyUI at '{root}': set COMFYUI_PATH or pass --comfyui to the folder that holds main.py")
    base = tempfile.TemporaryDirectory(prefix="ebca_shapes_", ignore_cleanup_errors=True)
    atexit.register(base.cleanup)
    inprocess.boot(root.resolve(), Path(base.name))


def family():
    """The module with the shapes family, registered."""
    if str(DEMO) not in sys.path:
        sys.path.insert(0, str(DEMO))
    return importlib.import_module("shapes_family.family")
