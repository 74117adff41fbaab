"""G @ W_k: the way from a step in the keys back to a step in the context, for every way ComfyUI stores W_k."""

from __future__ import annotations

import comfy.model_management
import comfy.ops
import torch
from torch import Tensor


def project_to_context(step: Tensor, to_k: torch.nn.Module, width: int) -> Tensor:
    """step [b, t, (h d)] @ W_k [(h d), c] -> [b, t, c]; c is `width`, and `step` has the keys' type and device.

    A layer of ComfyUI's own lends its weight as its forward pass would see it: cast, on the right device, with LoRAs.
    Any other linear module (bypass LoRA, GGUF, unknown packs) is asked for W_k by the identity matrix, at every call,
    for it may change during a run and keeping all layers' copies would take hundreds of megabytes in SDXL.
    """
    if _lends_its_weight(to_k):
        return _with_lent_weight(to_k, step)
    return step @ _weight_by_identity(to_k, width, step)


def _lends_its_weight(to_k: torch.nn.Module) -> bool:
    """Whether nothing but ComfyUI's own code stands between the module's weight and its output."""
    own_passes = all(_is_comfyuis(to_k, name) for name in ("forward", "forward_comfy_cast_weights"))
    hooked = to_k._forward_hooks or to_k._forward_pre_hooks
    own_cast = not hasattr(to_k, "cast_bias_weight")
    return isinstance(to_k, comfy.ops.CastWeightBiasOp) and own_passes and own_cast and not hooked


def _is_comfyuis(module: torch.nn.Module, method: str) -> bool:
    function = getattr(type(module), method, None)
    return is_unpatched(module, method) and getattr(function, "__module__", None) == comfy.ops.__name__


def is_unpatched(module: torch.nn.Module, method: str) -> bool:
    """Whether a method is its class's own. ComfyUI puts a patched one back as an attribute, bound to the instance."""
    on_instance = vars(module).get(method)
    return on_instance is None or getattr(on_instance, "__func__", None) is getattr(type(module), method)


def _with_lent_weight(to_k: torch.nn.Module, step: Tensor) -> Tensor:
    weight, bias, loan = comfy.ops.cast_bias_weight(to_k, step, offloadable=True)
    try:
        dense = weight.dequantize() if isinstance(weight, comfy.ops.QuantizedTensor) else weight
        out = step @ dense.to(step.dtype)
    finally:
        comfy.ops.uncast_bias_weight(to_k, weight, bias, loan)
    scale = getattr(to_k, "pre_quant_scale", None)  # multiplies the layer's input, so it belongs to W_k's columns
    return out if scale is None else out * comfy.model_management.cast_to_device(scale, out.device, out.dtype)


def _weight_by_identity(to_k: torch.nn.Module, width: int, like: Tensor) -> Tensor:
    """W_k [(h d), c] of any linear module: its columns are what it makes of the unit vectors, less its bias."""
    units = torch.eye(width, dtype=like.dtype, device=like.device)
    units = units.unsqueeze(0)  # the host's inputs have a batch, and some modules need one
    return (to_k(units) - to_k(torch.zeros_like(units[:, :1]))).squeeze(0).T
