"""Keeping compiled code from running. PyTorch's switch for it belongs to the process, and calls may come in threads."""

from __future__ import annotations

import threading

import torch


class _ForceEager:
    """Reference-counted `torch.compiler.set_stance("force_eager")`; restored when the last user exits."""

    def __init__(self):
        self._lock = threading.Lock()
        self._users = 0
        self._stance = None

    def __enter__(self) -> None:
        with self._lock:
            if self._users == 0:
                self._stance = _set_force_eager()
            self._users += 1

    def __exit__(self, *_) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0:
                self._stance.__exit__(None, None, None)


def _set_force_eager():
    if not hasattr(torch.compiler, "set_stance"):
        raise RuntimeError(
            f"EBCA with torch.compile needs PyTorch 2.6 or newer, and this is {torch.__version__}. Update PyTorch or "
            "remove the node that compiles the model."
        )
    return torch.compiler.set_stance("force_eager")


force_eager = _ForceEager()


def uncompiled(module: torch.nn.Module) -> torch.nn.Module:
    """The module itself, without the wrapper that torch.compile puts around it."""
    return getattr(module, "_orig_mod", module)
