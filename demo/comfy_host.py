"""ComfyUI inside this process, for training and measuring; start() comes before any `import comfy`."""
from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

DEMO = Path(__file__).resolve().parent


def start(comfyui: str | os.PathLike | None = None, *flags: str) -> None:
    """Puts the ComfyUI tree (default: COMFYUI_PATH) on the import path and lets it parse `flags`, not ours."""
    root = Path(comfyui or os.environ.get("COMFYUI_PATH", ""))
    if not (root / "comfy" / "sd.py").is_file():
        raise SystemExit(f"no ComfyUI at '{root}': set COMFYUI_PATH or pass --comfyui to the folder that holds main.py")
    sys.path.insert(0, str(root))
    importlib.import_module("comfy.options").enable_args_parsing()
    argv, sys.argv = sys.argv, ["main.py", *flags]
    try:
        importlib.import_module("comfy.cli_args")
    finally:
        sys.argv = argv


def family():
    """The module with the shapes family, registered."""
    if str(DEMO) not in sys.path:
        sys.path.insert(0, str(DEMO))
    return importlib.import_module("shapes_family.family")
