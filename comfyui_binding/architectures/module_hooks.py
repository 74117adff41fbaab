"""Hooks on the modules of a network, for the length of a call."""

from __future__ import annotations

import threading
from collections.abc import Callable


def in_this_thread(hook: Callable) -> Callable:
    """A hook that acts in this thread alone: threads may share a network.

    In another thread it may even get fewer arguments than it was registered for, because PyTorch registers and removes
    a hook in several steps.
    """
    thread = threading.get_ident()

    def guarded(*given):
        return hook(*given) if threading.get_ident() == thread else None

    return guarded
