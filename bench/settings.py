"""What is measured on which device: a model, an image size, a dtype, and the ratios that must be held."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Setting:
    """A model and the shape of its latent. limits: the largest ratios of time and memory, where not the cases' own.

    cases: the only ones that are measured, with their limits of time; None for all. is_long: it takes hours, so that it
    is measured only where its whole name is given.
    """

    name: str
    geometry: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: str
    rounds: int
    repeats: int = 1
    time_limit: float | None = None
    memory_limit: float | None = None
    cases: Mapping[str, float] | None = None
    is_long: bool = False


_ONE_FRAME = {"context update": 1.08, "2 edits": 1.12}
_VIDEO = {"context update": 1.03, "2 edits": 1.03}

SETTINGS = (
    Setting("SD 1.5 256x256 float32", "SD15", (4, 32, 32), torch.float32, "cpu", rounds=9),
    Setting("SD 1.5 512x512 float32", "SD15", (4, 64, 64), torch.float32, "cpu", rounds=5),
    Setting("Wan 1.3B 832x480 float32", "WAN13B", (16, 1, 60, 104), torch.float32, "cpu", 7, cases=_ONE_FRAME),
    Setting("Anima 832x480 float32", "ANIMA", (16, 1, 60, 104), torch.float32, "cpu", 7, cases=_ONE_FRAME),
    Setting(
        "Wan 1.3B 832x480 21 frames float32", "WAN13B", (16, 21, 60, 104), torch.float32, "cpu", 3, cases=_VIDEO,
        is_long=True,
    ),
    Setting("SD 1.5 512x512 float16", "SD15", (4, 64, 64), torch.float16, "cuda", 15, 5, 1.10, 1.02),
    Setting("SDXL 1024x1024 bfloat16", "SDXL", (4, 128, 128), torch.bfloat16, "cuda", 15, 3, 1.05, 1.02),
)  # fmt: skip
