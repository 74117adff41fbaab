"""Which attention function is called: ComfyUI's, in the versions that have it, or another pack's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import comfy.ldm.modules.attention as host
import comfy.model_management
import torch

from ..runtime import notices

#: The key of another pack's attention function in transformer_options.
OVERRIDE = "optimized_attention_override"
#: Errors in another pack's code that have other causes than the text that it is given.
NOT_OF_A_TEXT = (comfy.model_management.InterruptProcessingException, comfy.model_management.OOM_EXCEPTION)


def exchanged_attention() -> Callable[..., torch.Tensor]:
    """The attention for the update, text tokens over image tokens: PyTorch's own, where ComfyUI can be asked for it.

    The optimized one may be a kernel of low precision, which would round the update.
    """
    registered = getattr(host, "get_attention_function", None)
    return host.optimized_attention if registered is None else registered("pytorch", host.optimized_attention)


def attention_without_ebca(
    function: Callable[..., torch.Tensor], other: Callable | None, kwargs: Mapping[str, Any]
) -> Callable[..., torch.Tensor]:
    """The attention of a call that an override of EBCA's replaces.

    function: ComfyUI's; other: another pack's override; kwargs: of the call, in which a module may ask for another.
    """
    if other is not None:
        return partial(other, function)
    return getattr(kwargs.get("preferred_attention"), "function", None) or function


def attend_to_edit(
    theirs: Callable[[], torch.Tensor],
    plain: Callable[[], torch.Tensor],
    shape: Sequence[int],
    warnings: notices.Notices,
) -> torch.Tensor:
    """Another pack's attention to an edit's text; ComfyUI's own, with a warning, where that does not take the text.

    A pack may know no text but the prompt's, of its length. shape: of the output, [b, n, (h d)].
    """
    try:
        out = theirs()
    except NOT_OF_A_TEXT:
        raise
    except Exception:
        out = None
    if out is not None and out.shape == shape:
        return out
    warnings.warn_once(notices.EDITS_PLAIN)
    return plain()


def preferred_attention(module: torch.nn.Module) -> dict[str, Any]:
    """Keyword arguments with which a module asks ComfyUI for an attention of its own.

    ComfyUI 0.38 and newer: `comfy_attention`, set by a checkpoint or a LoRA. Older versions would hand the argument on
    to functions that do not know it.
    """
    if not hasattr(module, "comfy_attention"):
        return {}
    return {"preferred_attention": module.comfy_attention}
