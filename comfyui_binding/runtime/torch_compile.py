"""Keeping compiled code from running. PyTorch's switch for it belongs to the process, and calls may come in threads."""

from __future__ import annotations

import threading

import torch


class _Eager:
    """While anyone is inside, torch.compile's code rests; whoever leaves last puts the switch back as it was."""

    def __init__(self):
        self._lock = threading.Lock()
        self._inside = 0
        self._switch = None

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._switch = _force_eager()
            self._inside += 1

    def __exit__(self, *_) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._switch.__exit__(None, None, None)


def _force_eager():
    if not hasattr(torch.compiler, "set_stance"):
        raise RuntimeError(
            f"EBCA next to torch.compile needs PyTorch 2.6 or newer, but this is {torch.__version__}. Update PyTorch "
            "or remove the node that compiles the model."
        )
    return torch.compiler.set_stance("force_eager")


eager = _Eager()
