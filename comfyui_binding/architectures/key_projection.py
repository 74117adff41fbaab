"""G @ W_k: a step in the keys -> a step in the context, for every way in which ComfyUI stores W_k."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import comfy.model_management
import comfy.ops
import torch
from torch import Tensor


def project_to_context(step: Tensor, to_k: torch.nn.Module, width: int) -> Tensor:
    """step [b, t, (h d)] @ W_k [(h d), c] -> [b, t, c]; c is `width`, and `step` has the keys' type and device.

    The weight of ComfyUI's own linear layers is used as their forward pass would see it: cast, on the right device,
    with LoRAs. Of any other linear module (bypass LoRA, GGUF, unknown packs) W_k is computed from the identity matrix,
    at every call: it may change during a run, and keeping the copies of all layers would take hundreds of megabytes
    in SDXL.
    """
    if _is_comfy_linear(to_k):
        return _project_with_cast_weight(to_k, step)
    return step @ _weight_by_identity(to_k, width, step)


def together(linear: Callable[[Tensor], Tensor], tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    """`linear` of each tensor [b, t, c]: in one call where they have one length, which costs little more than one."""
    tensors = list(tensors)
    for tensor in tensors:
        if tensor.shape[1] != tensors[0].shape[1]:
            return list(map(linear, tensors))
    return linear(torch.cat(tensors)).split(list(map(len, tensors))) if len(tensors) > 1 else list(map(linear, tensors))


def _is_comfy_linear(to_k: torch.nn.Module) -> bool:
    """Whether ComfyUI's own code alone computes the module's output from its weight."""
    if not isinstance(to_k, comfy.ops.CastWeightBiasOp) or hasattr(to_k, "cast_bias_weight"):
        return False
    if to_k._forward_hooks or to_k._forward_pre_hooks:
        return False
    for method in ("forward", "forward_comfy_cast_weights"):
        called = getattr(to_k, method, None)  # the class's, or what another pack has put on the class or on to_k
        is_own = getattr(called, "__globals__", None) is vars(comfy.ops) and getattr(called, "__self__", None) is to_k
        if not is_own:
            return False
    return True


def _project_with_cast_weight(to_k: torch.nn.Module, step: Tensor) -> Tensor:
    weight, bias, offload_stream = comfy.ops.cast_bias_weight(to_k, step, offloadable=True)
    try:
        dense = weight.dequantize() if isinstance(weight, comfy.ops.QuantizedTensor) else weight
        out = step @ dense.to(step.dtype)
    finally:
        comfy.ops.uncast_bias_weight(to_k, weight, bias, offload_stream)
    scale = getattr(to_k, "pre_quant_scale", None)  # multiplies the layer's input, so it belongs to W_k's columns
    return out if scale is None else out * comfy.model_management.cast_to_device(scale, out.device, out.dtype)


def _weight_by_identity(to_k: torch.nn.Module, width: int, like: Tensor) -> Tensor:
    """W_k [(h d), c] of any linear module: its columns are what it makes of the unit vectors, less its bias."""
    units = torch.eye(width, dtype=like.dtype, device=like.device)
    units = units.unsqueeze(0)  # the host's inputs have a batch, and some modules need one
    return (to_k(units) - to_k(torch.zeros_like(units[:, :1]))).squeeze(0).T
