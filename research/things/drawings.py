"""The drawings of the things world: read from drawings.png, recoloured, and animals dressed in what they wear."""
from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from .world import COLOURS, KINDS, OBJECTS, STYLES, WEARERS, WORN

Array = np.ndarray

CELL = 96  # pixels of a drawing in the sheet, each way
COLUMNS = len(KINDS) + len(OBJECTS)  # a row for each style: the drawings, then where objects take a colour
SHEET = Path(__file__).with_name("drawings.png")
SHADE = 0.75  # how much of a drawing's light and shade a new colour keeps

# Where animals wear things, in fractions of the cell, in the order of STYLES: of the glasses the middle and the width,
# of the crown the middle of its lower edge and the width, of the bow the middle and the width.
PLACES: dict[str, tuple[str, str, str, str]] = {
    "cat": (".50 .55 .68  .50 .28 .50  .50 .97 .50", ".50 .55 .62  .50 .22 .50  .50 .97 .50",
            ".50 .57 .84  .50 .24 .50  .50 .97 .50", ".50 .53 .60  .50 .27 .50  .50 .97 .50"),
    "dog": (".50 .51 .62  .50 .10 .50  .50 .95 .50", ".49 .41 .52  .50 .07 .50  .50 .99 .50",
            ".50 .48 .84  .50 .08 .50  .50 .95 .50", ".50 .37 .52  .50 .08 .50  .50 .99 .50"),
    "bird": (".24 .27 .44  .23 .10 .38  .28 .55 .40", ".28 .23 .44  .27 .10 .38  .25 .53 .40",
             ".22 .31 .44  .28 .12 .38  .25 .62 .40", ".27 .25 .44  .30 .05 .38  .28 .52 .40"),
    "bear": (".50 .46 .64  .50 .08 .50  .50 .97 .50", ".50 .50 .52  .50 .08 .50  .50 .99 .50",
             ".50 .51 .78  .50 .12 .50  .50 .97 .50", ".50 .46 .54  .50 .12 .50  .50 .95 .50"),
    "lion": (".50 .38 .52  .50 .10 .50  .50 .93 .50", ".50 .47 .50  .50 .10 .50  .50 .97 .50",
             ".50 .40 .56  .50 .10 .50  .50 .97 .50", ".50 .44 .54  .50 .08 .50  .50 .95 .50"),
    "horse": (".16 .26 .42  .15 .10 .36  .27 .48 .38", ".43 .43 .50  .45 .17 .42  .72 .78 .46",
              ".14 .21 .42  .15 .11 .36  .30 .46 .38", ".15 .16 .40  .15 .09 .36  .25 .45 .38"),
    "elephant": (".27 .37 .44  .32 .09 .40  .42 .68 .38", ".18 .35 .42  .30 .08 .40  .42 .66 .38",
                 ".24 .33 .44  .34 .12 .40  .38 .66 .38", ".15 .35 .42  .28 .13 .40  .40 .64 .38"),
    "monkey": (".50 .47 .52  .50 .14 .50  .50 .93 .50", ".50 .47 .54  .50 .10 .50  .50 .99 .50",
               ".50 .49 .56  .50 .12 .50  .50 .95 .50", ".50 .42 .52  .50 .12 .50  .50 .92 .50"),
    "frog": (".50 .28 .78  .50 .18 .44  .50 .95 .50", ".50 .21 .84  .50 .16 .44  .50 .95 .50",
             ".50 .26 .88  .50 .17 .44  .50 .97 .50", ".50 .23 .78  .50 .15 .44  .50 .97 .50"),
    "turtle": (".21 .45 .42  .20 .31 .36  .22 .72 .36", ".15 .28 .40  .13 .24 .36  .20 .50 .36",
               ".20 .12 .40  .20 .05 .36  .28 .46 .36", ".11 .54 .36  .11 .46 .32  .16 .76 .32"),
    "rabbit": (".50 .60 .50  .50 .42 .40  .50 .97 .46", ".50 .67 .52  .50 .48 .40  .50 .99 .46",
               ".50 .62 .62  .50 .36 .40  .50 .97 .46", ".50 .58 .52  .50 .36 .40  .50 .97 .46"),
    "mouse": (".50 .61 .58  .50 .34 .44  .50 .95 .46", ".50 .61 .52  .50 .30 .44  .50 .97 .46",
              ".50 .61 .60  .50 .33 .44  .50 .93 .46", ".50 .66 .54  .50 .42 .44  .50 .97 .46"),
}
LENSES = {"emojione": 0.68}  # how far down its box a drawing of glasses has its lenses; else in the middle


@cache
def _sheet() -> Array:
    """uint8 [h w 4]."""
    return np.asarray(Image.open(SHEET).convert("RGBA"))


def _cell(style: str, column: int) -> Array:
    row = STYLES.index(style) * CELL
    return _sheet()[row:row + CELL, column * CELL:(column + 1) * CELL]


def plain(kind: str, style: str) -> Array:
    """The drawing in its own colours, uint8 [CELL CELL 4]."""
    return _cell(style, KINDS.index(kind))


def coloured(kind: str, style: str, colour: str) -> Array:
    """An object's drawing in one of COLOURS, uint8 [CELL CELL 4]: light and shade stay, the main colour is replaced."""
    drawing = plain(kind, style)
    painting = _cell(style, len(KINDS) + OBJECTS.index(kind)) / 255.0
    paint, main = painting[..., :1], painting[0, 0, 1]  # how far a pixel takes the colour; main grey
    grey = (drawing[..., :3] @ np.array([0.299, 0.587, 0.114]) / 255.0)[..., None]
    dark, light = np.clip(grey / main, 0.0, 1.0), np.clip((grey - main) / (1 - main), 0.0, 1.0)
    new = np.array(COLOURS[colour]) * (1 - SHADE * (1 - dark))
    new = new + (255.0 - new) * SHADE * light
    mixed = drawing[..., :3] + paint * (new - drawing[..., :3])
    return np.dstack([mixed.round().astype(np.uint8), drawing[..., 3]])


def _dressed(kind: str, style: str, worn: str) -> Image.Image:
    """An animal's drawing that wears a thing: 2 CELL x 2 CELL, as it may reach over the animal's own cell."""
    canvas = Image.new("RGBA", (2 * CELL, 2 * CELL))
    canvas.paste(Image.fromarray(plain(kind, style)), (CELL // 2, CELL // 2))
    numbers = [float(n) for n in PLACES[kind][STYLES.index(style)].split()]
    x, y, width = np.array(numbers[3 * ("glasses", "crown", "bow").index(worn):][:3]) * CELL
    item = _cut(Image.fromarray(plain(worn, style)))
    height = width * item.height / item.width
    down = {"glasses": LENSES.get(style, 0.5), "crown": 1.0, "bow": 0.5}[worn]  # which part of the item lies on y
    item = item.resize((round(width), round(height)), Image.Resampling.BICUBIC)
    canvas.alpha_composite(item, (round(CELL / 2 + x - width / 2), round(CELL / 2 + y - down * height)))
    return canvas


def _cut(drawing: Image.Image) -> Image.Image:
    """The drawing without its empty margin."""
    return drawing.crop(drawing.getchannel("A").point(lambda a: 255 * (a > 8)).getbbox())


@cache
def drawing(kind: str, style: str, colour: str | None = None, worn: str | None = None) -> Image.Image:
    """A drawing without margin, its colours multiplied by its opacity (mode "RGBa").

    colour: one of COLOURS, for an object; None for its own colours. worn: one of WORN, for an animal of WEARERS.
    """
    if (worn and kind not in WEARERS) or (colour and kind not in OBJECTS) or worn not in (None, *WORN):
        raise ValueError(f"there is no {kind} in {colour or 'its own colours'} with {worn or 'nothing'}")
    if worn:
        return _cut(_dressed(kind, style, worn)).convert("RGBa")
    return _cut(Image.fromarray(coloured(kind, style, colour) if colour else plain(kind, style))).convert("RGBa")
