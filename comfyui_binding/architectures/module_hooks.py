"""Hooks on the modules of a network, for the length of a call, and whether their forward passes are ComfyUI's."""

from __future__ import annotations

import threading
from collections.abc import Callable

from torch.nn import Module


def in_this_thread(hook: Callable) -> Callable:
    """A hook that acts in this thread alone: threads may share a network.

    In another thread it may even get fewer arguments than it was registered for, because PyTorch registers and removes
    a hook in several steps.
    """
    thread = threading.get_ident()

    def guarded(*given):
        return hook(*given) if threading.get_ident() == thread else None

    return guarded


def is_unpatched(module: Module, method: str) -> bool:
    """Whether a method is the one that the module's class was written with: no pack has put another on either of them.

    ComfyUI puts a patched one back as an attribute, bound to the instance.
    """
    on_instance = vars(module).get(method)
    if on_instance is not None and getattr(on_instance, "__func__", None) is not getattr(type(module), method, None):
        return False
    return not replaced_in(type(module), method)


def replaced_in(kind: type, method: str) -> str | None:
    """The Python module of a function that was put on a class, or on one that it inherits from, as its method.

    A function is known by the module in which it was written: `functools.wraps` copies a function's names, and not its
    globals.
    """
    for one in kind.__mro__:
        if method in vars(one):
            written_in = getattr(vars(one)[method], "__globals__", {}).get("__name__", "?")
            if written_in != one.__module__:
                return written_in
    return None
