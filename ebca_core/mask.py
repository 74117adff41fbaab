"""Masks for updates and edits that are limited to a region (paper, section 4.2, inpainting)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor
from torch.nn.functional import interpolate

Area = tuple[int, ...]  # height, width, top, left, in latent pixels


def mask_tokens(
    mask: Tensor,
    images: Sequence[int],
    latent_size: tuple[int, int],
    area: Area | None,
    grid: tuple[int, ...],
    frames: tuple[Sequence[int], int] | None = None,
) -> Tensor:
    """A mask of the image -> one weight per image token of a layer, for some images of the batch.

    mask [b, height, width] in [0, 1] is resized to the latent (align_corners=False), cropped to the area of the prompt
    (None: the whole image), and resized to the layer's grid (align_corners=True, `mask_on_grid`). Resizing
    interpolates linearly and never overshoots the mask's range, on which the check in `denominator` relies. images:
    which of the masks each row takes; fewer masks than images repeat. grid (rows, columns) with rows * columns = n ->
    [len(images), n, 1], float32. For a grid (frames, rows, columns) of several frames the masks are those of the
    frames, for every image alike; one mask holds for all frames. frames: which frames of the video the grid has, and
    how many the video has; None for a grid of the whole video.

    The binding calls it in runtime/tensor_cache.py; the grid is the architecture's.
    """
    latent = interpolate(mask.unsqueeze(1), size=latent_size, mode="bilinear").squeeze(1)
    if area is not None:
        height, width, top, left = area
        latent = latent[:, top : top + height, left : left + width]
    *depth, rows, columns = grid
    if not depth or (depth == [1] and frames is None):
        return mask_on_grid(torch.stack([latent[image % latent.shape[0]] for image in images]), (rows, columns))
    which, count = frames or (range(*depth), *depth)
    video = rearrange(mask_on_grid(latent, (rows, columns)), "f n 1 -> 1 n f")
    if video.shape[-1] not in (1, count):
        video = interpolate(video, size=count, mode="linear", align_corners=True)
    video = video.expand(len(images), -1, count)[..., list(which)]
    return rearrange(video, "b n f -> b (f n) 1")


def mask_on_grid(mask: Tensor, grid: tuple[int, int]) -> Tensor:
    """Mask at latent resolution -> one weight per image token of a layer, bilinear with align_corners=True.

    mask [b, height, width] in [0, 1], grid (rows, columns) with rows * columns = n -> [b, n, 1].
    """
    resized = interpolate(mask.unsqueeze(1), size=grid, mode="bilinear", align_corners=True)
    return rearrange(resized, "b 1 rows columns -> b (rows columns) 1")
