"""The thumbnails of the template browser, and the pictures of the help pages: what the twins make, drawn small.

A card is for one file in `workflows/`: pictures of its twin in a row, with a word below each. Files without a twin have
words instead: a picture would be one that the named model has not made.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from .server import Server
from .twins import WORKFLOWS, shown, twin_of
from .workflows import Prompt, Substitutions, node_ids

Pictures = dict[str, Image.Image]

WIDTH, HEIGHT = 432, 256  # of a card, in pixels
MARGIN, LABEL = 12, 30
QUALITY = 90  # of the file
GROUND, INK = "#1b1b1b", "white"  # of a card: the template browser is dark
PHOTO, MASK, SCHEDULE = "Photo", "Mask", "Schedule"


@dataclass(frozen=True)
class Card:
    """What the thumbnail of a workflow file shows.

    Attributes:
        panels: {label: title of the node that shows the picture, or what makes it of all that are shown}.
        side: the height of the pictures.
    """

    panels: Mapping[str, str | Callable[[Pictures], Image.Image]]
    side: int = 192

    def row(self, pictures: Pictures) -> Pictures:
        """The pictures of the card by their labels."""
        return row(self.panels, pictures)


def row(panels: Mapping[str, str | Callable[[Pictures], Image.Image]], pictures: Pictures) -> Pictures:
    """The panels' pictures by their labels."""
    return {label: pictures[panel] if isinstance(panel, str) else panel(pictures) for label, panel in panels.items()}


def masked(pictures: Pictures) -> Image.Image:
    """The photo, grey where its mask is."""
    veil = pictures[MASK].convert("L").point([value * 2 // 3 for value in range(256)])
    return Image.composite(Image.new("RGB", veil.size, "grey"), pictures[PHOTO], veil)


def _tile(number: int) -> Callable[[Pictures], Image.Image]:
    """One of the two tiles of EBCA Attention Maps, without its caption."""

    def crop(pictures: Pictures) -> Image.Image:
        sheet, gap = pictures["Words"], 8
        side = (sheet.width - 3 * gap) // 2
        left = gap + number * (side + gap)
        return sheet.crop((left, gap, left + side, gap + side))

    return crop


def _cells(pictures: Pictures) -> Image.Image:
    """The cells of the sweep in the size in which they were made: the grid has them twice as large, with gaps of 6."""
    sheet, side = pictures["Sweep"], 4 * (2 * 128 + 6)
    return sheet.crop((sheet.width - side, sheet.height - side, sheet.width, sheet.height)).reduce(2)


_BOTH = {"without": "Without EBCA", "EBCA": "With EBCA"}

#: {name of the file: its card}
CARDS: dict[str, Card] = {
    "EBCA 01 Several things (SD 1.5)": Card(_BOTH),
    "EBCA 02 Several things (SDXL)": Card(_BOTH),
    "EBCA 03 Add and remove (SD 1.5)": Card(_BOTH),
    "EBCA 04 Style with schedule (SDXL)": Card(_BOTH),
    "EBCA 05 Photo cat to dog (SD 1.5)": Card({"photo": PHOTO, "EBCA": "With EBCA"}),
    "EBCA 06 Photo with mask (SD 1.5)": Card({"mask": masked, "EBCA": "With EBCA"}),
    "EBCA 07 Inpainting (SD 1.5)": Card({"mask": masked, "painted": "With EBCA"}),
    "EBCA 08 Outpainting with RePaint (SD 1.5)": Card({"mask": masked, "painted": "With EBCA"}, side=128),
    "EBCA 09 Attention maps (SDXL)": Card({"lion": _tile(0), "crown": _tile(1)}),
    "EBCA 10 Context update (SD 1.5)": Card(_BOTH),
    "EBCA 11 Sweep (SDXL)": Card({"": _cells}, side=204),
    "EBCA 12 Best of four (SD 1.5)": Card({"without": "Without EBCA", "best": "With EBCA"}),
}

#: {name of a file without a twin: the model, and what EBCA does there}
WORDS: dict[str, tuple[str, str]] = {
    "EBCA 13 Several things in a video (Wan 2.2)": ("Wan 2.2", "several things"),
    "EBCA 14 Remove from a video (Wan 2.2)": ("Wan 2.2", "remove"),
    "EBCA 15 Several things with tags (Anima)": ("Anima", "several things"),
    "EBCA 16 Photo cat to dog (Wan 2.2)": ("Wan 2.2", "photo"),
    "EBCA 17 Several things (Qwen-Image)": ("Qwen-Image", "several things"),
    "EBCA 18 Remove at cfg 1 (Z-Image)": ("Z-Image", "remove"),
}


def path(name: str) -> Path:
    """The file in which ComfyUI looks for a workflow's thumbnail."""
    return WORKFLOWS / f"{name}.jpg"


def pictures(server: Server, name: str, *changes: Substitutions) -> Pictures:
    """What the twin of a file or of a variant shows by title, and the photo, the mask and the schedule that it has."""
    prompt = twin_of(name, server.object_info(), *changes)
    return {title: decoded(file) for title, (file,) in shown(server, with_inputs(prompt)).items()}


def decoded(file: bytes) -> Image.Image:
    """A picture file."""
    return Image.open(io.BytesIO(file)).convert("RGB")


def with_inputs(prompt: Prompt) -> Prompt:
    """The prompt with nodes that save the photo that it encodes, its mask and its schedule, if it has them."""
    links = {name: value for node in prompt.values() for name, value in node["inputs"].items()}
    more = {}
    if "pixels" in links:
        more[PHOTO] = _saving(links["pixels"], PHOTO)
    if "mask" in links:
        more["picture of the mask"] = {"class_type": "MaskToImage", "inputs": {"mask": links["mask"]}}
        more[MASK] = _saving(["picture of the mask", 0], MASK)
    for schedule in node_ids(prompt, "EBCASchedule"):
        more[SCHEDULE] = _saving([schedule, 1], SCHEDULE)
    return prompt | more


def _saving(image: list, title: str) -> dict:
    inputs = {"images": image, "filename_prefix": f"ebca/{title}"}
    return {"class_type": "SaveImage", "inputs": inputs, "_meta": {"title": title}}


def side_by_side(row: Pictures, side: int, ground: str = "white", ink: str = "black") -> Image.Image:
    """Pictures of any size, each as high as the others, over their labels."""
    sizes = [(round(picture.width * side / picture.height), side) for picture in row.values()]
    label_height = LABEL if any(row) else 0
    size = (MARGIN + sum(width + MARGIN for width, _ in sizes), side + label_height + 2 * MARGIN)
    sheet = Image.new("RGB", size, ground)
    pen, left = ImageDraw.Draw(sheet), MARGIN
    for (label, picture), size in zip(row.items(), sizes):
        way = Image.Resampling.LANCZOS if side % picture.height else Image.Resampling.NEAREST  # pixels stay whole
        sheet.paste(picture.resize(size, way), (left, MARGIN))
        pen.rectangle((left - 1, MARGIN - 1, left + size[0], MARGIN + side), outline="lightgrey")
        middle = (left + size[0] // 2, MARGIN + side + LABEL // 2 + 4)
        pen.text(middle, label, ink, ImageFont.load_default(20), anchor="mm")
        left += size[0] + MARGIN
    return sheet


def drawn(name: str, made: Pictures) -> Image.Image:
    """The thumbnail of a workflow file, from the `pictures` of its twin."""
    card = CARDS[name]
    row = side_by_side(card.row(made), card.side, GROUND, INK)
    sheet = Image.new("RGB", (WIDTH, HEIGHT), GROUND)
    sheet.paste(row, ((WIDTH - row.width) // 2, (HEIGHT - row.height) // 2))
    return sheet


def written(name: str) -> Image.Image:
    """The thumbnail of a workflow file without a twin: the words, one below the other."""
    sheet = Image.new("RGB", (WIDTH, HEIGHT), GROUND)
    pen = ImageDraw.Draw(sheet)
    for text, size, middle in zip(WORDS[name], (56, 32), (HEIGHT * 2 // 5, HEIGHT * 2 // 3)):
        pen.text((WIDTH // 2, middle), text, INK, ImageFont.load_default(size), anchor="mm")
    return sheet


def write(name: str, thumbnail: Image.Image) -> None:
    """Save a thumbnail in its file."""
    thumbnail.save(path(name), quality=QUALITY, subsampling=0, optimize=True)
    print(f"  {path(name)}")
