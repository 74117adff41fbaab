"""The sheet, fonts and colours."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

Colour = tuple[int, int, int]

PAPER = (255, 255, 255)
INK = (34, 34, 34)
FAINT = (222, 222, 222)
#: The colour-blind safe palette of Okabe and Ito.
COLOURS = ((0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167), (230, 159, 0), (86, 180, 233))


def paper(width: int, height: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """An empty sheet and an object that draws on it."""
    sheet = Image.new("RGB", (width, height), PAPER)
    return sheet, ImageDraw.Draw(sheet)


@lru_cache
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's default font."""
    return ImageFont.load_default(size)


def fitting_font(text: str, width: int, size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The largest font of at most `size` in which the text is no wider than `width`; the minimum size is 10."""
    while size > 10 and font(size).getlength(text) > width:
        size -= 1
    return font(size)


def message_sheet(message: str) -> Tensor:
    """IMAGE [1, height, width, 3]: a sheet with a message in place of a drawing."""
    sheet, pen = paper(640, 80)
    pen.text((320, 40), message, INK, fitting_font(message, 600, 20), anchor="mm")
    return as_tensor(sheet)


def as_tensor(sheet: Image.Image) -> Tensor:
    """A sheet as ComfyUI's IMAGE [1, height, width, 3] in [0, 1]."""
    return torch.from_numpy(np.asarray(sheet.convert("RGB"), dtype=np.float32) / 255).unsqueeze(0)


def as_picture(image: Tensor) -> Image.Image:
    """An image [height, width, 3 or more] in [0, 1] as a Pillow image; further channels are dropped."""
    values = (image[..., :3].float().clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(values.cpu().numpy())
