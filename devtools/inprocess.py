"""ComfyUI inside the running Python process, without a server."""

import shlex
import sys
from pathlib import Path

FOLDERS = ("custom_nodes", "models", "input", "output", "temp")  # what ComfyUI expects in its base directory
CPU_FLAGS = "--cpu --use-pytorch-cross-attention"


def arguments(flags: str, base: Path) -> list[str]:
    """ComfyUI's command line for `flags`, without nodes that call services, in the base directory `base`."""
    return [*shlex.split(flags), "--disable-api-nodes", "--base-directory", str(base)]


def boot(root: Path, base: Path, flags: str = CPU_FLAGS) -> None:
    """Make ComfyUI's modules importable, with `flags` as its command line.

    Call it before anything imports `comfy`, whose settings are fixed by its first import.

    Args:
        root: the folder that holds ComfyUI's main.py; it becomes the first entry of sys.path.
        base: ComfyUI's base directory (models, input, output, temp), writable.
        flags: ComfyUI command line flags in one string.

    Raises:
        RuntimeError: `comfy` was imported before.
        FileNotFoundError: `root` holds no ComfyUI.
    """
    if "comfy.cli_args" in sys.modules:
        raise RuntimeError("ComfyUI is already imported in this process: call boot() once, before any `import comfy`.")
    if not (Path(root) / "main.py").is_file():
        raise FileNotFoundError(f"Expected ComfyUI's main.py in {root}, found none.")
    for folder in FOLDERS:
        (Path(base) / folder).mkdir(parents=True, exist_ok=True)
    sys.path.insert(0, str(root))
    import comfy.options

    comfy.options.enable_args_parsing()
    # comfy.cli_args reads sys.argv when it is imported, and pytest's arguments are not ComfyUI's.
    argv, sys.argv = sys.argv, ["main.py", *arguments(flags, base)]
    try:
        import comfy.cli_args
    finally:
        sys.argv = argv
    import torch

    # Tiny models: two busy threads on two shared cores wait for each other longer than they compute.
    torch.set_num_threads(1)
