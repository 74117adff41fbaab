"""The thumbnails of the template browser, and the pictures of the help pages: what the shapes twins make, drawn small.

A card is for one file in `workflows/`: its twin's pictures in a row, what they show, and by which model they were made.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from .server import Server
from .twins import SHAPES, WORKFLOWS, prompt_of, saved
from .workflows import Prompt, Substitutions

Pictures = dict[str, Image.Image]

WIDTH, HEIGHT = 480, 360  # of a card, in pixels
MARGIN, LABEL, LINE = 12, 30, 24
QUALITY = 90  # of the file
PHOTO, MASK = "Photo", "Mask"


@dataclass(frozen=True)
class Card:
    """What the thumbnail of a workflow file shows.

    Attributes:
        shows: lines below the pictures.
        panels: {label: title of the node that saves the picture, or what makes it of all that are saved}.
        side: the height of the pictures, best a multiple of theirs.
        changes: to the twin, where its own pictures would not show what EBCA does. The card says so in `shows`.
    """

    shows: tuple[str, ...]
    panels: Mapping[str, str | Callable[[Pictures], Image.Image]]
    side: int = 192
    changes: Substitutions = field(default_factory=dict)

    def row(self, pictures: Pictures) -> Pictures:
        """The pictures of the card by their labels."""
        return {
            label: pictures[panel] if isinstance(panel, str) else panel(pictures)
            for label, panel in self.panels.items()
        }


def _masked(pictures: Pictures) -> Image.Image:
    """The photo, grey where its mask is."""
    veil = pictures[MASK].convert("L").point([value * 2 // 3 for value in range(256)])
    return Image.composite(Image.new("RGB", veil.size, "grey"), pictures[PHOTO], veil)


def _tile(number: int) -> Callable[[Pictures], Image.Image]:
    """One of the four tiles of EBCA Attention Maps, without its caption."""

    def crop(pictures: Pictures) -> Image.Image:
        side = pictures["Words"].width // 4
        return pictures["Words"].crop((number * side, 0, (number + 1) * side, side))

    return crop


def _first_chart(pictures: Pictures) -> Image.Image:
    """The upper left one of the charts of EBCA Energy Plot, which are four by four below a legend."""
    sheet = pictures["Energies"]
    width, height = sheet.width // 4, 250
    return sheet.crop((0, sheet.height - 4 * height, width, sheet.height - 3 * height))


def _cells(pictures: Pictures) -> Image.Image:
    """The cells of the sweep in the size in which they were made: the grid has them thrice as large, with gaps of 6."""
    sheet, side = pictures["EBCA Sweep Grid"], 4 * (3 * 64 + 6)
    return sheet.crop((sheet.width - side, sheet.height - side, sheet.width, sheet.height)).reduce(3)


def _seed(number: int) -> Substitutions:
    return {("PrimitiveInt", "value"): number}


_BOTH = {"without EBCA": "Without EBCA", "with EBCA": "With EBCA"}
_EDITED = {"the photo": PHOTO, "with EBCA": "With EBCA"}
_PAINTED = {"the photo, masked": _masked, "painted": "With EBCA"}

#: {name of the file: its card}. Seeds are chosen where the gammas of the file change little under most of them.
CARDS: dict[str, Card] = {
    "multi_concept_sd15": Card(
        ("a purple square and a yellow star", "(a seed chosen for the picture)"), _BOTH, changes=_seed(124)
    ),
    "multi_concept_sdxl": Card(
        ("a green star, a yellow square and a", "purple cross (a seed chosen for the picture)"), _BOTH, changes=_seed(6)
    ),
    "token_weights_sd15": Card(
        ("a yellow square and a blue triangle", "(a seed chosen, gammas far above useful ones)"),
        _BOTH | {"triangle = 2.5": "With EBCA and token weights"},
        side=128,
        changes=_seed(50) | {("EBCAContextUpdate", "gamma_attn"): 0.2, ("EBCAContextUpdate", "gamma_norm"): 0.3},
    ),
    "compose_sd15": Card(("a red circle on a white background;", "added: a yellow star, a black background"), _BOTH),
    "each_concept_sd15": Card(
        ("a red circle, a green square and a", "yellow triangle (a seed chosen for the picture)"), _BOTH
    ),
    "stylise_sd15": Card(("a blue square; added: yellow",), _BOTH),
    "schedule_sd15": Card(
        ("a blue square; added: yellow,", "throughout or fading"),
        _BOTH | {"scheduled": "With EBCA and schedule"},
        side=128,
    ),
    "trace_sd15": Card(
        ("where the picture reads two words, and the", "energies of two runs (gammas far above useful ones)"),
        {"purple": _tile(0), "yellow": _tile(2), "energies": _first_chart},
        side=110,
    ),
    "sweep_sd15": Card(("(gammas far above useful ones)",), {"gamma_attn by gamma_norm": _cells}, side=264),
    "add_and_remove_sd15": Card(("a red square; removed: red square,", "added: blue circle"), _BOTH),
    "real_image_cat_to_dog_sd15": Card(
        ("removed: red square, added: blue circle",),
        {"the photo": PHOTO} | _BOTH,
        side=128,
    ),
    "real_image_horse_to_zebra_sd15": Card(("removed: red square, added: green cross",), _EDITED),
    "real_image_to_goat_sd15": Card(("added: red circle",), _EDITED),
    "real_image_with_mask_sd15": Card(
        ("removed: red square, added: blue circle,", "in the masked region alone"),
        {"the photo, masked": _masked, "with EBCA": "With EBCA and noise mask"},
    ),
    "inpaint_model_sd15": Card(("a blue circle on a white background",), _PAINTED),
    "repaint_sd15": Card(("a blue circle on a white background",), _PAINTED),
    "outpaint_sd15": Card(("a red square and a blue circle", "on a white background"), _PAINTED, side=128),
}


def path(name: str) -> Path:
    """The file in which ComfyUI looks for a workflow's thumbnail."""
    return WORKFLOWS / f"{name}.jpg"


def pictures(server: Server, name: str) -> Pictures:
    """What a file's twin, changed as its card says, saves by title; its photo and its mask too, if it has them."""
    prompt = prompt_of(name, server.object_info(), SHAPES[name], CARDS[name].changes)
    return {title: decoded(file) for title, (file,) in saved(server, with_inputs(prompt)).items()}


def decoded(file: bytes) -> Image.Image:
    """A picture file."""
    return Image.open(io.BytesIO(file)).convert("RGB")


def with_inputs(prompt: Prompt) -> Prompt:
    """The prompt with nodes that save the photo that it encodes and its mask, if it has them."""
    links = {name: value for node in prompt.values() for name, value in node["inputs"].items()}
    more = {}
    if "pixels" in links:
        more[PHOTO] = _saving(links["pixels"], PHOTO)
    if "mask" in links:
        more["picture of the mask"] = {"class_type": "MaskToImage", "inputs": {"mask": links["mask"]}}
        more[MASK] = _saving(["picture of the mask", 0], MASK)
    return prompt | more


def _saving(image: list, title: str) -> dict:
    inputs = {"images": image, "filename_prefix": f"ebca/{title}"}
    return {"class_type": "SaveImage", "inputs": inputs, "_meta": {"title": title}}


def side_by_side(row: Pictures, side: int) -> Image.Image:
    """Pictures of any size, each as high as the others, over their labels."""
    sizes = [(round(picture.width * side / picture.height), side) for picture in row.values()]
    sheet = Image.new("RGB", (MARGIN + sum(width + MARGIN for width, _ in sizes), side + LABEL + 2 * MARGIN), "white")
    pen, left = ImageDraw.Draw(sheet), MARGIN
    for (label, picture), size in zip(row.items(), sizes):
        way = Image.Resampling.NEAREST if picture.height < side else Image.Resampling.LANCZOS
        sheet.paste(picture.resize(size, way), (left, MARGIN))
        pen.rectangle((left - 1, MARGIN - 1, left + size[0], MARGIN + side), outline="lightgrey")
        middle = (left + size[0] // 2, MARGIN + side + LABEL // 2 + 4)
        pen.text(middle, label, "black", ImageFont.load_default(20), anchor="mm")
        left += size[0] + MARGIN
    return sheet


def drawn(name: str, made: Pictures) -> Image.Image:
    """The thumbnail of a workflow file, from the `pictures` of its twin."""
    card = CARDS[name]
    row = side_by_side(card.row(made), card.side)
    sheet = Image.new("RGB", (WIDTH, HEIGHT), "white")
    top = (HEIGHT - row.height - LINE * (len(card.shows) + 1)) // 2
    sheet.paste(row, ((WIDTH - row.width) // 2, top))
    pen = ImageDraw.Draw(sheet)
    model = "SDXL" if name.endswith("sdxl") else "SD 1.5"
    lines = [(line, "black") for line in card.shows] + [(f"small shapes model, not {model}", "dimgrey")]
    for number, (line, colour) in enumerate(lines):
        middle = (WIDTH // 2, top + row.height + LINE * number + LINE // 2 - 4)
        pen.text(middle, line, colour, ImageFont.load_default(20), anchor="mm")
    return sheet


def write(name: str, made: Pictures) -> None:
    """Draw a thumbnail into its file."""
    drawn(name, made).save(path(name), quality=QUALITY, subsampling=0, optimize=True)
    print(f"  {path(name)}")
