"""Every picture that the shapes twins of workflow files save. `python run.py twins` calls this.

    python run.py twins                       all files
    python run.py twins trace_sd15            one of them, or several
    python run.py twins --docs                also draws the pictures of README and of the help pages from them

Each picture becomes <out>/<workflow>/<title of the node that saves it>.png.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Mapping
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

REPO = Path(__file__).absolute().parents[1]
if __name__ == "__main__":
    sys.path.append(str(REPO))

from devtools.twins import SHAPES, prompt_of, saved, shapes_server  # noqa: E402

Pictures = dict[str, Image.Image]

DOCS, HELP = REPO / "docs" / "looking", REPO / "web" / "docs" / "looking"
OF_DOCS = ("trace_sd15", "sweep_sd15", "schedule_sd15")
SIDE, MARGIN, LABEL = 256, 12, 30  # of what stands side by side, in pixels
HELP_WIDTH = 640


def run(server, name: str) -> Pictures:
    """A file's pictures by the titles of the nodes that save them; those of a batch are numbered from the second on."""
    files = saved(server, prompt_of(name, server.object_info(), SHAPES[name]))
    return {
        title + (f" {number + 1}" if number else ""): Image.open(io.BytesIO(file)).convert("RGB")
        for title, batch in files.items()
        for number, file in enumerate(batch)
    }


def side_by_side(pictures: Pictures) -> Image.Image:
    """Pictures of any size, each as high as the others, over their titles."""
    sizes = [(round(picture.width * SIDE / picture.height), SIDE) for picture in pictures.values()]
    sheet = Image.new("RGB", (MARGIN + sum(width + MARGIN for width, _ in sizes), SIDE + LABEL + 2 * MARGIN), "white")
    pen, left = ImageDraw.Draw(sheet), MARGIN
    for (title, picture), size in zip(pictures.items(), sizes):
        way = Image.Resampling.NEAREST if picture.height < SIDE else Image.Resampling.LANCZOS
        sheet.paste(picture.resize(size, way), (left, MARGIN))
        middle = (left + size[0] // 2, MARGIN + SIDE + LABEL // 2 + 4)
        pen.text(middle, title, "black", ImageFont.load_default(20), anchor="mm")
        left += size[0] + MARGIN
    return sheet


def of_docs(made: Mapping[str, Pictures]) -> Pictures:
    """The pictures of README, from those of the files OF_DOCS."""
    trace, sweep, schedule = (made[name] for name in OF_DOCS)
    (grid,) = sweep.values()
    order = ("Schedule", "Without EBCA", "With EBCA", "With EBCA and schedule")
    return {
        "energies": trace["Energies"],
        "words": trace["Words"],
        "sweep": grid,
        "schedule": side_by_side({title: schedule[title] for title in order}),
    }


def of_help(made: Mapping[str, Pictures]) -> Pictures:
    """The same for the help panel, which is narrow: without the energies' differences and the schedule's curve."""
    pictures = of_docs(made)
    energies, schedule = pictures["energies"], made["schedule_sd15"]
    pictures["energies"] = energies.crop((0, 0, energies.width // 2, energies.height))
    pictures["schedule"] = side_by_side({title: schedule[title] for title in schedule if title != "Schedule"})
    return {name: ImageOps.contain(picture, (HELP_WIDTH, picture.height)) for name, picture in pictures.items()}


def write(pictures: Pictures, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in pictures.items():
        picture.save(folder / f"{name}.png", optimize=True)
        print(f"  {folder / name}.png")


def main(argv: list[str] | None = None) -> int:
    """Run the twins and write their pictures; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"workflow files: {', '.join(SHAPES)}")
    parser.add_argument("--comfyui", type=Path, required=True, help="the folder with ComfyUI's main.py")
    parser.add_argument("--out", type=Path, default=REPO / "output" / "twins", help="folder for the pictures")
    parser.add_argument("--docs", action="store_true", help=f"also write {DOCS.relative_to(REPO)} and its small copies")
    options = parser.parse_args(argv)
    unknown = [name for name in options.names if name not in SHAPES]
    if unknown:
        parser.error(f"no workflow file {', '.join(unknown)}; there are {', '.join(SHAPES)}")
    names = options.names or list(OF_DOCS if options.docs else SHAPES)
    if options.docs:
        names += [name for name in OF_DOCS if name not in names]
    print("Starting ComfyUI ...", flush=True)
    made = {}
    with shapes_server(options.comfyui) as server:
        for name in names:
            print(name, flush=True)
            made[name] = run(server, name)
            write(made[name], options.out / name)
    if options.docs:
        write(of_docs(made), DOCS)
        write(of_help(made), HELP)
    return 0


if __name__ == "__main__":
    sys.exit(main())
