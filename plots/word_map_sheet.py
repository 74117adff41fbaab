"""Attention maps of words: heat maps over the image, one tile per word."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .canvas import INK, as_picture, as_tensor, fitting_font, paper

TILE, CAPTION, GAP, COLUMNS = 320, 48, 8, 4
#: From cold to hot, with increasing lightness.
HEAT = np.array([(20, 11, 53), (101, 21, 110), (187, 55, 84), (249, 142, 9), (252, 255, 164)], dtype=np.float32)


def word_map_sheet(image: Tensor, maps: Mapping[str, Tensor]) -> Tensor:
    """IMAGE [1, height, width, 3]: one tile per word, the image [height, width, 3] under its map [rows, columns].

    Each map is normalised separately, from its minimum to its maximum.
    """
    picture = as_picture(image)
    scale = TILE / max(picture.size)
    size = tuple(max(1, round(side * scale)) for side in picture.size)
    columns = min(len(maps), COLUMNS)
    rows = math.ceil(len(maps) / columns)
    width, height = size[0] + GAP, size[1] + CAPTION
    sheet, pen = paper(columns * width + GAP, rows * height + GAP)
    for number, (word, values) in enumerate(maps.items()):
        left, top = GAP + number % columns * width, GAP + number // columns * height
        sheet.paste(overlaid(picture.resize(size, Image.Resampling.BICUBIC), values), (left, top))
        middle = (left + size[0] // 2, top + size[1] + CAPTION // 2 - 4)
        pen.text(middle, word, INK, fitting_font(word, size[0], 30), anchor="mm")
    return as_tensor(sheet)


def mean_map(by_grid: Sequence[Tensor], weights: Sequence[int], tokens: Sequence[int]) -> Tensor:
    """The mean over layers and tokens, on the finest grid: by_grid [t, rows, columns] -> [rows, columns].

    weights: the number of maps that each grid is the mean of.
    """
    size = max((maps.shape[-2:] for maps in by_grid), key=math.prod)
    means = [maps[list(tokens)].mean(dim=0)[None, None] for maps in by_grid]
    resized = [torch.nn.functional.interpolate(mean, size=tuple(size), mode="bilinear")[0, 0] for mean in means]
    return sum(weight * mean for weight, mean in zip(weights, resized, strict=True)) / sum(weights)


def overlaid(picture: Image.Image, values: Tensor) -> Image.Image:
    """The image in grey under the colours of the map, which are more opaque where the map is hotter."""
    heat = _stretched(values)
    field = Image.fromarray(heat.numpy()).resize(picture.size, Image.Resampling.BICUBIC)
    heat = np.clip(np.asarray(field), 0, 1)[..., None]
    place = heat[..., 0] * (len(HEAT) - 1)
    colours = np.stack([np.interp(place, range(len(HEAT)), HEAT[:, channel]) for channel in range(3)], axis=-1)
    grey = np.asarray(picture.convert("L").convert("RGB"), dtype=np.float32)
    share = 0.3 + 0.5 * heat
    return Image.fromarray((grey * (1 - share) + colours * share).round().astype(np.uint8))


def _stretched(values: Tensor) -> Tensor:
    low, high = values.min(), values.max()
    return ((values - low) / (high - low) if high > low else torch.zeros_like(values)).float()
