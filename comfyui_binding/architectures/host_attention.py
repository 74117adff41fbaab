"""The attention functions of ComfyUI, in the versions that have them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import comfy.ldm.modules.attention as host
import torch


def exchanged_attention() -> Callable[..., torch.Tensor]:
    """The attention for the update, text tokens over image tokens: PyTorch's own, where ComfyUI can be asked for it.

    The optimized one may be a kernel of low precision, which would round the update.
    """
    registered = getattr(host, "get_attention_function", None)
    return host.optimized_attention if registered is None else registered("pytorch", host.optimized_attention)


def attention_without_ebca(
    function: Callable[..., torch.Tensor], other: Callable | None, kwargs: Mapping[str, Any]
) -> Callable[..., torch.Tensor]:
    """The attention of a call that an override of EBCA's stands in for.

    function: ComfyUI's; other: another pack's override; kwargs: of the call, in which a module may ask for another.
    """
    if other is not None:
        return partial(other, function)
    return getattr(kwargs.get("preferred_attention"), "function", None) or function


def preferred_attention(module: torch.nn.Module) -> dict[str, Any]:
    """Keyword arguments with which a module asks ComfyUI for an attention of its own.

    ComfyUI 0.38 and newer: `comfy_attention`, set by a checkpoint or a LoRA. Older versions would hand the argument on
    to functions that do not know it.
    """
    if not hasattr(module, "comfy_attention"):
        return {}
    return {"preferred_attention": module.comfy_attention}
