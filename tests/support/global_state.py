"""The settings of the process that every test shares, and that none may leave changed. Needs a booted host."""
from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import comfy.cli_args
import torch

# Environment variables that pytest sets for each test, and that PyTorch sets when its compiler is imported.
_NOT_OURS = ("PYTEST_CURRENT_TEST", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")


def snapshot() -> dict[str, Any]:
    """{setting: value}. The random number generators are left out: tests that need them seed their own."""
    eval_frame = sys.modules.get("torch._dynamo.eval_frame")  # not imported for this: it takes seconds
    return {
        "torch.get_num_threads()": torch.get_num_threads(),
        "torch.get_default_dtype()": torch.get_default_dtype(),
        "torch.is_grad_enabled()": torch.is_grad_enabled(),
        "torch.is_inference_mode_enabled()": torch.is_inference_mode_enabled(),
        "torch.are_deterministic_algorithms_enabled()": torch.are_deterministic_algorithms_enabled(),
        "the stance of torch.compiler": eval_frame._stance.stance if eval_frame else "default",
        "the environment variables": {name: value for name, value in os.environ.items() if name not in _NOT_OURS},
        "sys.path": list(sys.path),
        "the working directory": Path.cwd(),
        "the level of the logger ebca": logging.getLogger("ebca").level,
        "logging.disable()": logging.root.manager.disable,
        "comfy.cli_args.args": dict(vars(comfy.cli_args.args)),
    }


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """What differs between two snapshots, in words; of a dict, its entries that differ."""
    return [f"{name} {_difference(before[name], after[name])}" for name in before if before[name] != after[name]]


def _difference(was: Any, now: Any) -> str:
    if not isinstance(was, dict):
        return f"was {was}, is {now}"
    names = sorted(name for name in was.keys() | now.keys() if was.get(name, _ABSENT) != now.get(name, _ABSENT))
    return "; ".join(f"{name} was {was.get(name, _ABSENT)}, is {now.get(name, _ABSENT)}" for name in names)


_ABSENT = "absent"
