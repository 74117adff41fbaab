"""Chen, Bandyopadhyay, Zou, Song, "Normalized Attention Guidance: Universal Negative Guidance for Diffusion Models"
(2025, arXiv 2505.21179), in the cross-attention layers of a U-Net.

With the queries of the positive half, Z+ = attention over its own text and Z- = attention over the negative text:

    Z~ = Z+ + scale (Z+ - Z-)                              extrapolation
    r  = ||Z~||_1 / ||Z+||_1                               per image token
    Z^ = Z~ min(r, tau) / r                                normalisation
    Z  = alpha Z^ + (1 - alpha) Z+                         refinement
"""

from __future__ import annotations

import torch
from comfy.ldm.modules.attention import optimized_attention
from torch import Tensor

from .layers import with_cross_attention

EPSILON = 1e-6  # keeps tokens of norm zero out of the divisions
POSITIVE, NEGATIVE = 0, 1  # in ComfyUI's cond_or_uncond


def guided(positive: Tensor, negative: Tensor, scale: float, tau: float, alpha: float) -> Tensor:
    """Z from Z+ and Z-, each [b, n, c]."""
    extrapolated = positive + scale * (positive - negative)
    ratio = _norm(extrapolated) / _norm(positive)
    return alpha * extrapolated * (ratio.clamp(max=tau) / ratio) + (1 - alpha) * positive


def _norm(z: Tensor) -> Tensor:
    return z.abs().sum(-1, keepdim=True).clamp(min=EPSILON)


def normalised_attention_guidance(model, scale: float, tau: float, alpha: float):
    """A clone of the model with the guidance in every cross-attention layer, beside classifier-free guidance."""

    def attend(q, k, v, options):
        def attention(q, k, v):
            return optimized_attention(q, k, v, options["n_heads"], attn_precision=options["attn_precision"])

        halves = options["cond_or_uncond"]
        if sorted(halves) != [POSITIVE, NEGATIVE]:
            raise RuntimeError(
                f"Expected one positive and one negative prompt in each call of the U-Net, but got {halves}. Use "
                "cfg above 1, one conditioning each, and memory enough for both in one batch."
            )
        out = list(attention(q, k, v).chunk(2))
        positive, negative = halves.index(POSITIVE), halves.index(NEGATIVE)
        against = attention(q.chunk(2)[positive], k.chunk(2)[negative], v.chunk(2)[negative])
        out[positive] = guided(out[positive], against, scale, tau, alpha)
        return torch.cat(out)

    model = model.clone()
    unet = model.get_model_object("diffusion_model")
    model.model_options = with_cross_attention(model.model_options, unet, attend)
    return model
