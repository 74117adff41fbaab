"""Every picture that the shapes twins of workflow files save. `python run.py twins` calls this.

    python run.py twins                       all files
    python run.py twins trace_sd15            one of them, or several
    python run.py twins --docs                instead, everything that is drawn from such pictures: those of README and
                                              of the help pages, and the thumbnails of the workflow files

Each picture becomes <out>/<workflow>/<title of the node that saves it>.png. Beside them lies prompt.json, which a
ComfyUI with the shapes model opens (demo/README.md).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path

from PIL import Image, ImageOps

REPO = Path(__file__).absolute().parents[1]
if __name__ == "__main__":
    sys.path.append(str(REPO))

from devtools import thumbnails  # noqa: E402
from devtools.thumbnails import CARDS, MARGIN, PHOTO, Pictures, decoded, side_by_side  # noqa: E402
from devtools.twins import SHAPES, prompt_of, saved, shapes_server  # noqa: E402
from devtools.workflows import Prompt  # noqa: E402

DOCS, HELP, EFFECTS = (REPO / folder for folder in ("docs/looking", "web/docs/looking", "web/docs/effects"))
OF_DOCS = ("trace_sd15", "sweep_sd15", "schedule_sd15")
HELP_WIDTH = 640

#: {picture of the help pages: the file whose card has its parts}
OF_EFFECTS = {
    "context_update": "multi_concept_sd15",
    "token_weights": "token_weights_sd15",
    "edit_context": "add_and_remove_sd15",
    "compose": "compose_sd15",
    "invert": "real_image_cat_to_dog_sd15",
    "repaint": "repaint_sd15",
}
#: Files that edit one photo after the same inversion: {what is added: the file}
OF_ONE_INVERSION = {
    "blue circle": "real_image_cat_to_dog_sd15",
    "green cross": "real_image_horse_to_zebra_sd15",
    "red circle": "real_image_to_goat_sd15",
}


def run(server, prompt: Prompt) -> Pictures:
    """A twin's pictures by the titles of the nodes that save them; those of a batch are numbered from the second on."""
    files = saved(server, prompt)
    return {
        title + (f" {number + 1}" if number else ""): decoded(file)
        for title, batch in files.items()
        for number, file in enumerate(batch)
    }


def fitting(row: Pictures) -> Image.Image:
    """Pictures of 64 x 64 side by side, as large as the help panel allows with pixels that stay whole."""
    return side_by_side(row, min(256, (HELP_WIDTH - MARGIN) // len(row) // 64 * 64))


def of_docs(made: Mapping[str, Pictures]) -> Pictures:
    """The pictures of README, from those of the files OF_DOCS."""
    trace, sweep, schedule = (made[name] for name in OF_DOCS)
    (grid,) = sweep.values()
    order = ("Schedule", "Without EBCA", "With EBCA", "With EBCA and schedule")
    return {
        "energies": trace["Energies"],
        "words": trace["Words"],
        "sweep": grid,
        "schedule": side_by_side({title: schedule[title] for title in order}, 256),
    }


def of_help(made: Mapping[str, Pictures]) -> Pictures:
    """The same for the help panel, which is narrow: without the energies' differences and the schedule's curve."""
    pictures = of_docs(made)
    energies = pictures["energies"]
    pictures["energies"] = energies.crop((0, 0, energies.width // 2, energies.height))
    pictures["schedule"] = fitting(CARDS["schedule_sd15"].row(made["schedule_sd15"]))
    return {name: ImageOps.contain(picture, (HELP_WIDTH, picture.height)) for name, picture in pictures.items()}


def of_effects(made: Mapping[str, Pictures]) -> Pictures:
    """What the nodes do to a picture, for the help panel, from the pictures of the cards."""
    pictures = {picture: fitting(CARDS[name].row(made[name])) for picture, name in OF_EFFECTS.items()}
    edits = {what: made[name]["With EBCA"] for what, name in OF_ONE_INVERSION.items()}
    return pictures | {"one_inversion": fitting({"the photo": made[OF_EFFECTS["invert"]][PHOTO]} | edits)}


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
    parser.add_argument("--docs", action="store_true", help="draw the pictures of the documents and the thumbnails")
    options = parser.parse_args(argv)
    unknown = [name for name in options.names if name not in SHAPES]
    if unknown:
        parser.error(f"no workflow file {', '.join(unknown)}; there are {', '.join(SHAPES)}")
    if options.docs and options.names:
        parser.error(f"--docs draws from all files, but got {', '.join(options.names)}; leave the names out")
    print("Starting ComfyUI ...", flush=True)
    with shapes_server(options.comfyui) as server:
        if options.docs:
            draw(server)
        else:
            for name in options.names or SHAPES:
                print(name, flush=True)
                prompt = prompt_of(name, server.object_info(), SHAPES[name])
                write(run(server, prompt), options.out / name)
                (options.out / name / "prompt.json").write_text(json.dumps(prompt, indent=2), encoding="utf-8")
    return 0


def draw(server) -> None:
    """Everything of the repository that is drawn from the twins' pictures."""
    made = {}
    for name in CARDS:
        print(name, flush=True)
        made[name] = thumbnails.pictures(server, name)
        thumbnails.write(name, made[name])
    write(of_docs(made), DOCS)
    write(of_help(made), HELP)
    write(of_effects(made), EFFECTS)


if __name__ == "__main__":
    sys.exit(main())
