"""What is measured on which device: a model, an image size, a dtype, and the ratios that must be held."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Setting:
    """A model and an image size. limits: the largest ratios of time and memory, where not the cases' own."""

    name: str
    geometry: str
    side: int
    dtype: torch.dtype
    device: str
    rounds: int
    repeats: int = 1
    time_limit: float | None = None
    memory_limit: float | None = None


SETTINGS = (
    Setting("SD 1.5 256x256 float32", "SD15", 32, torch.float32, "cpu", rounds=9),
    Setting("SD 1.5 512x512 float32", "SD15", 64, torch.float32, "cpu", rounds=5),
    Setting("SD 1.5 512x512 float16", "SD15", 64, torch.float16, "cuda", 15, 5, time_limit=1.10, memory_limit=1.02),
    Setting("SDXL 1024x1024 bfloat16", "SDXL", 128, torch.bfloat16, "cuda", 15, 3, time_limit=1.05, memory_limit=1.02),
)
