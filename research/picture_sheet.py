"""A labelled sheet of pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw, ImageFont

SIDE, HEAD, GAP = 256, 24, 8


def sheet(heads: Sequence[str], rows: Mapping[str, Sequence[Image.Image]]) -> Image.Image:
    """Columns under their heads, and above each row its label; pictures are shrunk to SIDE pixels, never enlarged."""
    page = Image.new("RGB", (len(heads) * (SIDE + GAP), HEAD + len(rows) * (HEAD + SIDE)), "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(14)
    for column, head in enumerate(heads):
        pen.text((column * (SIDE + GAP), 4), head, "black", font)
    for number, (label, pictures) in enumerate(rows.items()):
        top = HEAD + number * (HEAD + SIDE)
        pen.text((0, top + 4), label, "dimgrey", font)
        for column, picture in enumerate(pictures):
            small = picture.copy()
            small.thumbnail((SIDE, SIDE))
            page.paste(small, (column * (SIDE + GAP), top + HEAD))
    return page
