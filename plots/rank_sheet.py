"""Ranked pictures: each in a row with the maps of its objects, whose peaks are marked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw
from torch import Tensor

from .canvas import INK, PAPER, as_picture, as_tensor, fitting_font, paper
from .word_map_sheet import overlaid

CELL, LINE, SPACE = 200, 26, 8
#: Radius of the ring around a peak, and its width.
RING, RING_WIDTH = 9, 3


@dataclass(frozen=True)
class RankedPicture:
    """One row: an image [height, width, 3], the maps [i, rows, columns] of its objects, and the peak of each, counted
    row by row."""

    title: str
    image: Tensor
    maps: Tensor
    peaks: Sequence[int]


def rank_sheet(ranked: Sequence[RankedPicture], names: Sequence[str]) -> Tensor:
    """IMAGE [1, height, width, 3]: one row for each picture, best first. names: of the objects."""
    pictures = [as_picture(one.image) for one in ranked]
    scale = CELL / max(pictures[0].size)
    size = tuple(max(1, round(side * scale)) for side in pictures[0].size)
    width, height = size[0] + SPACE, size[1] + LINE + SPACE
    sheet, pen = paper((1 + len(names)) * width + SPACE, len(ranked) * height + SPACE)
    for row, (one, picture) in enumerate(zip(ranked, pictures, strict=True)):
        small = picture.resize(size, Image.Resampling.BICUBIC)
        marked = [_with_peak(overlaid(small, map_), map_, peak) for map_, peak in zip(one.maps, one.peaks, strict=True)]
        for column, (tile, text) in enumerate(zip([small, *marked], [one.title, *names], strict=True)):
            left, top = SPACE + column * width, SPACE + row * height
            sheet.paste(tile, (left, top))
            middle = (left + size[0] // 2, top + size[1] + LINE // 2)
            pen.text(middle, text, INK, fitting_font(text, size[0], 18), anchor="mm")
    return as_tensor(sheet)


def _with_peak(tile: Image.Image, values: Tensor, peak: int) -> Image.Image:
    """The tile with a ring around the peak of its map [rows, columns]."""
    rows, columns = values.shape
    row, column = divmod(peak, columns)
    x, y = (column + 0.5) / columns * tile.width, (row + 0.5) / rows * tile.height
    pen = ImageDraw.Draw(tile)
    for radius, colour, width in ((RING + 1, INK, RING_WIDTH + 2), (RING, PAPER, RING_WIDTH)):
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), outline=colour, width=width)
    return tile
