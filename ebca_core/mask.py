"""Masks on a layer's grid, for updates and edits that keep to a region (paper, section 4.2, inpainting)."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor


def mask_on_grid(mask: Tensor, grid: tuple[int, int]) -> Tensor:
    """Mask at latent resolution -> one weight per image token of a layer, bilinear with align_corners=True.

    mask [b, height, width] in [0, 1], grid (rows, columns) with rows * columns = n -> [b, n, 1].
    """
    resized = torch.nn.functional.interpolate(mask.unsqueeze(1), size=grid, mode="bilinear", align_corners=True)
    return rearrange(resized, "b 1 rows columns -> b (rows columns) 1")
