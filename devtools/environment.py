"""The environment and the ComfyUI that run.py works with."""

from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
HOST = REPO / ".host"  # ignored by git: everything that is fetched or built
NEWEST = "0.30.0"
OLDEST = "0.16.3"


def tree(version: str) -> Path:
    """Where ComfyUI `version` lies once it is fetched."""
    return HOST / f"ComfyUI-{version}"
