"""The derivative of a normalisation of keys, in closed form: from a step in the normalised keys to one before the norm.

With z = C W_k^T + b and k = norm(z), the step in z is m_t J^T g, where J is the Jacobian of the norm, g the step in the
keys, and m_t the mean of z_t^2 over the token's whole inner width. Without m_t the relative step would go as
1 / |C|^2, and rows of zeros would take an unbounded step; with it the step is m_t times minus the gradient of the
energy, whatever the scale of the context.
"""

from __future__ import annotations

import comfy.ops
import torch
from torch import Tensor

try:
    from comfy.ldm.audio.dit import RMSNorm as AudioRMSNorm
except ImportError:  # before Stable Audio 3
    AudioRMSNorm = torch.nn.RMSNorm


def through_norm(norm: torch.nn.Module, z: Tensor, step: Tensor) -> Tensor:
    """m_t J^T g, in float32 at least.

    z, step [b, t, h, d] where the norm acts on each head, [b, t, (h d)] where it acts on all of them -> the same shape.
    norm: RMSNorm or LayerNorm. Raises TypeError for another.
    """
    dtype = torch.promote_types(z.dtype, torch.float32)
    z, g = z.to(dtype), step.to(dtype)
    scale = z.square().flatten(2).mean(dim=-1).view(*z.shape[:2], *([1] * (z.ndim - 2)))
    weight = _weight(norm, z)
    g = g if weight is None else g * weight
    if isinstance(norm, torch.nn.LayerNorm):
        z = z - z.mean(dim=-1, keepdim=True)
        g = g - g.mean(dim=-1, keepdim=True)
        eps = norm.eps
    elif isinstance(norm, (torch.nn.RMSNorm, AudioRMSNorm)):
        given = getattr(norm, "eps", None)
        eps = torch.finfo(dtype).eps if given is None else given
    else:
        raise TypeError(f"EBCA has no derivative of a key norm of the class {type(norm).__name__}.")
    inverse = (z.square().mean(dim=-1, keepdim=True) + eps).rsqrt()
    unit = z * inverse
    return scale * inverse * (g - unit * (unit * g).mean(dim=-1, keepdim=True))


def _weight(norm: torch.nn.Module, like: Tensor) -> Tensor | None:
    """The norm's weight as its forward pass sees it."""
    if not isinstance(norm, comfy.ops.CastWeightBiasOp):
        weight = norm.gamma if hasattr(norm, "gamma") else norm.weight
        return None if weight is None else weight.to(like)
    if norm.weight is None:
        return None
    weight, bias, offload_stream = comfy.ops.cast_bias_weight(norm, like, offloadable=True)
    try:
        return weight.clone() if offload_stream is not None else weight
    finally:
        comfy.ops.uncast_bias_weight(norm, weight, bias, offload_stream)
