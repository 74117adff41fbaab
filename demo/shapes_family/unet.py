"""The U-Net of the shapes family: UNetModel, the class of SD 1.x and SDXL, with v-prediction.

It folds FOLD x FOLD pixels into channels on the way in and unfolds on the way out. Its schedule goes up to more noise
than that of SD 1.x: plain grounds shine through less.
"""
from __future__ import annotations

from types import SimpleNamespace

import comfy.ldm.common_dit
import comfy.model_sampling
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from einops import rearrange
from torch.nn.functional import avg_pool2d, interpolate

FOLD = 2  # the U-Net works at half resolution, where this many pixels by as many are one position
PATCH = 2 * FOLD  # pixels of the image, each way, for one position of the U-Net
NOISE = {"linear_start": 0.00085, "linear_end": 0.024}
SIGMAS = comfy.model_sampling.ModelSamplingDiscrete(SimpleNamespace(sampling_settings=NOISE)).sigmas


def half_noise(sigma: torch.Tensor) -> torch.Tensor:
    """Noise at half resolution, never below 0.15: there the image itself changes by the way down and up."""
    return (sigma ** 2 / 4 + 0.15 ** 2).sqrt()


class ShapesUNet(UNetModel):
    """UNetModel on folded pixels; hooks, controls and wrappers see an ordinary U-Net that predicts v.

    Pictures of this world have soft edges and lose little at half resolution, so its layers work there, where noise is
    half as strong. What they predict and what passes them by are weighed by the noise, as in Karras et al. (2022).
    """

    def __init__(self, *args, device=None, **kwargs):
        super().__init__(*args, device=device, **kwargs)
        self.register_buffer("sigmas", SIGMAS.to(device, copy=True), persistent=False)

    def _forward(self, x: torch.Tensor, timesteps: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        """v [b c h w] for noisy x = (image + sigma * noise) / sqrt(1 + sigma^2) of any size, timesteps [b]."""
        sigma = self.sigmas[timesteps.long()].view(-1, 1, 1, 1).to(x.dtype)
        spread, half_spread = (1 + sigma ** 2).sqrt(), (1 + half_noise(sigma) ** 2).sqrt()
        half = comfy.ldm.common_dit.pad_to_patch_size(x, (PATCH, PATCH), padding_mode="replicate")
        half = avg_pool2d(half, 2) * (spread / half_spread)
        folded = rearrange(half, "b c (h i) (w j) -> b (c i j) h w", i=FOLD, j=FOLD)
        change = super()._forward(folded, timesteps, *args, **kwargs)
        change = rearrange(change, "b (c i j) h w -> b c (h i) (w j)", i=FOLD, j=FOLD)
        image = (half + half_noise(sigma) * change) / half_spread
        image = interpolate(image, scale_factor=2.0, mode="bicubic")[..., :x.shape[-2], :x.shape[-1]]
        return (x - image * spread) / sigma
