"""Which attention function is called: ComfyUI's, in the versions that have it, or another pack's."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import comfy.ldm.modules.attention as host
import comfy.model_management
import torch
from torch.nn import functional

from ..runtime import notices

log = logging.getLogger("ebca")

#: The key of another pack's attention function in transformer_options.
OVERRIDE = "optimized_attention_override"
#: Errors in another pack's code that have other causes than the text that it is given.
NOT_OF_A_TEXT = (comfy.model_management.InterruptProcessingException, comfy.model_management.OOM_EXCEPTION)
#: attention(q [b, h, n, d], k and v [b, h, m, d]) -> its output [b, h, n, d], and the log-sum-exp over the keys of its
#: scores [b, h, n], in float32 at least.
AttentionWithSum = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


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

    A pack may know no text but the prompt's, of its length. shape: of the output [b, n, (h d)], or the start of it.
    """
    try:
        out = theirs()
    except NOT_OF_A_TEXT:
        raise
    except Exception as error:
        if "out of memory" in str(error).lower():  # a kind of its own in newer PyTorch
            raise
        log.info("EBCA: another pack's attention failed on an edit's text: %r", error)
        out = None
    if out is not None and out.shape[: len(shape)] == shape:
        return out
    warnings.warn_once(notices.EDITS_PLAIN)
    return plain()


def is_pytorchs(attention: Callable[..., torch.Tensor]) -> bool:
    """Whether the attention of a call, from `attention_without_ebca`, is ComfyUI's by PyTorch, replaced by no pack.

    Only of that it is known what it computes.
    """
    written_here = getattr(attention, "__globals__", None) is vars(host) and attention.__name__ == "attention_pytorch"
    return written_here and functional.scaled_dot_product_attention is torch._C._nn.scaled_dot_product_attention


def attention_with_sum(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float | None
) -> AttentionWithSum | None:
    """The call of torch that also gives the log-sum-exp, for tensors like these [b, h, n, d]; None where none does.

    It computes softmax(scale q k) v, scale None for 1 / sqrt(d).
    """
    if q.device.type == "cpu":
        of_cpu = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
        return of_cpu and partial(of_cpu, scale=scale)
    if q.device.type != "cuda" or q.shape[-1] % 8 != 0:  # PyTorch's kernels would need padding
        return None
    cuda = torch.backends.cuda
    try:
        params = cuda.SDPAParams(q, k, v, None, 0.0, False, False)
    except TypeError:  # PyTorch before 2.5
        return None
    if cuda.can_use_flash_attention(params):
        return partial(_flash_attention, scale=scale)
    return partial(_efficient_attention, scale=scale) if cuda.can_use_efficient_attention(params) else None


def _flash_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float | None):
    out, total, *_ = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, scale=scale)
    return out, total


def _efficient_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float | None):
    out, total, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, None, True, scale=scale)
    return out, total[..., : q.shape[2]]  # padded to a multiple of 32


def by_heads(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int, skip_reshape: bool
) -> tuple[torch.Tensor, ...]:
    """The tensors of an attention call as [b, h, n, d] each, keys and values of fewer heads repeated.

    They are [b, h, n, d] already with skip_reshape, and [b, n, (h d)] or [b, n, h, d] without.
    """
    tensors = q, k, v
    if not skip_reshape:
        width = q[0].numel() // (q.shape[1] * heads)
        tensors = tuple(one.reshape(*one.shape[:2], -1, width).transpose(1, 2) for one in tensors)
    return tuple(
        one if one.shape[1] == heads else one.repeat_interleave(heads // one.shape[1], dim=1) for one in tensors
    )


def preferred_attention(module: torch.nn.Module) -> dict[str, Any]:
    """Keyword arguments with which a module asks ComfyUI for an attention of its own.

    ComfyUI 0.38 and newer: `comfy_attention`, set by a checkpoint or a LoRA. Older versions would hand the argument on
    to functions that do not know it.
    """
    if not hasattr(module, "comfy_attention"):
        return {}
    return {"preferred_attention": module.comfy_attention}
