"""A labelled grid of images, one for each pair of settings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from .canvas import INK, as_picture, as_tensor, fitting_font, font, paper

LABEL, GAP, LEAST_CELL = 40, 6, 160
#: Guards against accidental huge sweeps.
MOST_CELLS = 400
#: Of all cells of a sheet; a pixel of an IMAGE takes 12 bytes.
MOST_PIXELS = 2**25


@dataclass(frozen=True)
class Sweep:
    """Values of two settings. Every y is paired with every x, row by row; without y values there is one row."""

    x_name: str
    x_values: list[float]
    y_name: str
    y_values: list[float]

    def __post_init__(self):
        if len(self.pairs) > MOST_CELLS:
            raise ValueError(
                f"The sweep has {len(self.pairs)} pairs of values; at most {MOST_CELLS} are allowed. Use fewer values."
            )

    @property
    def pairs(self) -> list[tuple[float, float]]:
        return [(x, y) for y in self.y_values or [0.0] for x in self.x_values]


def sweep_grid(cells: Sequence[Tensor], sweep: Sweep) -> Tensor:
    """IMAGE [b, height, width, 3]: one sheet for each of the b images of a cell; x in columns, y in rows.

    cells: images [b, height, width, 3] in [0, 1], in the order of the sweep's pairs.
    """
    return torch.cat([_sheet([as_picture(cell[image]) for cell in cells], sweep) for image in range(len(cells[0]))])


def _sheet(pictures: Sequence[Image.Image], sweep: Sweep) -> Tensor:
    width, height = _cell_size(pictures[0].size, len(pictures))
    columns = [f"{sweep.x_name} {value:g}" for value in sweep.x_values]
    rows = [f"{sweep.y_name} {value:g}" for value in sweep.y_values] or [""]
    margin = 16 + int(max(font(18).getlength(row) for row in rows)) if sweep.y_values else 0
    sheet, pen = paper(margin + len(columns) * (width + GAP) + GAP, LABEL + len(rows) * (height + GAP))
    for number, picture in enumerate(pictures):
        row, column = divmod(number, len(columns))
        corner = (margin + GAP + column * (width + GAP), LABEL + row * (height + GAP))
        grows = width >= picture.width
        resized = picture.resize((width, height), Image.Resampling.NEAREST if grows else Image.Resampling.LANCZOS)
        sheet.paste(resized, corner)
    for column, text in enumerate(columns):
        middle = (margin + GAP + column * (width + GAP) + width // 2, LABEL // 2)
        pen.text(middle, text, INK, fitting_font(text, width, 18), anchor="mm")
    for row, text in enumerate(rows):
        pen.text((8, LABEL + row * (height + GAP) + height // 2), text, INK, font(18), anchor="lm")
    return as_tensor(sheet)


def _cell_size(size: tuple[int, int], cells: int) -> tuple[int, int]:
    """The size of the images, enlarged if labels need more room, reduced if a sheet would exceed MOST_PIXELS."""
    scale = max(1, -(-LEAST_CELL // max(size)))
    if cells * size[0] * size[1] * scale**2 > MOST_PIXELS:
        scale = math.sqrt(MOST_PIXELS / (cells * size[0] * size[1]))
    return tuple(max(1, int(side * scale)) for side in size)
