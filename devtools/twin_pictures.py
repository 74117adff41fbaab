"""Every picture that the twins of workflow files show on the small models. `python run.py twins` calls this.

    python run.py twins                       all files
    python run.py twins 09 Photo              those whose names contain one of these words
    python run.py twins --docs                instead, everything that is drawn from such pictures: those of README and
                                              of the help pages, and the thumbnails of the workflow files

Each picture becomes <out>/<workflow>/<title of the node that shows it>.png. Beside them lies prompt.json, which a
ComfyUI with the model that it loads opens (demo/README.md).
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
from devtools.thumbnails import CARDS, MARGIN, PHOTO, SCHEDULE, Pictures, decoded, masked, side_by_side  # noqa: E402
from devtools.twins import MODELS, SHOWN, shown, twin_of, twin_server  # noqa: E402
from devtools.workflows import Prompt, Substitutions  # noqa: E402

DOCS, HELP, EFFECTS = (REPO / folder for folder in ("docs/looking", "web/docs/looking", "web/docs/effects"))
HELP_WIDTH = 640

_THINGS, _EDITED, _FADING, _PHOTO, _OUTPAINTED, _MAPS, _WEIGHTED, _SWEEP, _BEST = (
    next(name for name in SHOWN if name.startswith(f"EBCA {number}"))
    for number in ("01", "03", "04", "05", "08", "09", "10", "11", "12")
)
#: Runs besides those of the cards: {name: (the file or variant, changes)}
RUNS: dict[str, tuple[str, Substitutions]] = {
    "constant": ("one strength throughout", {}),
    "composed": ("a thing and a style", {}),
    "unweighted": (_WEIGHTED, {("EBCATokenWeights", "weights"): ""}),
    "inverted": (_PHOTO, {("EBCAEditContext", "alpha"): 0.0}),
    "glasses": (_PHOTO, {
        ("EBCAEditContext", "text"): {"dog": "a cat with a glasses", "cat": "cat"},
        ("EBCAEditContext", "alpha"): {0.75: 0.75, 0.65: 0.0},
    }),
    "zebra": (_PHOTO, {("EBCAEditContext", "text"): {"dog": "zebra", "cat": "cat"}}),
}
_BOTH = {"without EBCA": "Without EBCA", "with EBCA": "With EBCA"}


def run(server, prompt: Prompt) -> Pictures:
    """A twin's pictures by the titles of the nodes that show them; those of a batch are numbered from the second on."""
    files = shown(server, prompt)
    return {
        title + (f" {number + 1}" if number else ""): decoded(file)
        for title, batch in files.items()
        for number, file in enumerate(batch)
    }


def fitting(row: Pictures) -> Image.Image:
    """Pictures of one height side by side, as large as the help panel allows; pixels of small ones stay whole."""
    height, width = next(iter(row.values())).height, sum(picture.width for picture in row.values())
    scale = min(256 / height, (HELP_WIDTH - MARGIN * (len(row) + 1)) / width)
    return side_by_side(row, int(height * (int(scale) if scale >= 2 else scale)))


def of_docs(made: Mapping[str, Pictures]) -> Pictures:
    """The pictures of the documents."""
    fading = made[_FADING]
    schedule = {
        "Schedule": fading[SCHEDULE],
        "Without EBCA": fading["Without EBCA"],
        "With EBCA": made["constant"]["With EBCA"],
        "With EBCA and schedule": fading["With EBCA"],
    }
    return {
        "energies": made[_MAPS]["Energies"],
        "words": made[_MAPS]["Words"],
        "sweep": made[_SWEEP]["Sweep"],
        "rank": made[_BEST]["Ranking"],
        "schedule": side_by_side(schedule, 256),
    }


def of_help(made: Mapping[str, Pictures]) -> Pictures:
    """The same for the help panel, which is narrow: without the energies' differences and the schedule's curve."""
    pictures, fading = of_docs(made), made[_FADING]
    energies = pictures["energies"]
    pictures["energies"] = energies.crop((0, 0, energies.width // 2, energies.height))
    pictures["schedule"] = fitting({
        "without EBCA": fading["Without EBCA"],
        "with EBCA": made["constant"]["With EBCA"],
        "scheduled": fading["With EBCA"],
    })  # fmt: skip
    return {name: ImageOps.contain(picture, (HELP_WIDTH, picture.height)) for name, picture in pictures.items()}


def of_effects(made: Mapping[str, Pictures]) -> Pictures:
    """What the nodes do to a picture, for the help panel."""
    photo, weighted, outpainted = made[_PHOTO], made[_WEIGHTED], made[_OUTPAINTED]
    rows = {
        "concepts": thumbnails.row(_BOTH, made[_THINGS]),
        "reroll": thumbnails.row({"without EBCA": "Without EBCA", "best of four": "With EBCA"}, made[_BEST]),
        "context_update": thumbnails.row(_BOTH, made["unweighted"]),
        "token_weights": {
            "without EBCA": weighted["Without EBCA"],
            "with EBCA": made["unweighted"]["With EBCA"],
            "crown = 2.5": weighted["With EBCA"],
        },
        "edit_context": thumbnails.row(_BOTH, made[_EDITED]),
        "compose": thumbnails.row(_BOTH, made["composed"]),
        "invert": {
            "the photo": photo[PHOTO], "without EBCA": made["inverted"]["With EBCA"], "with EBCA": photo["With EBCA"]
        },
        "one_inversion": {
            "the photo": photo[PHOTO], "dog": photo["With EBCA"], "glasses": made["glasses"]["With EBCA"],
            "zebra": made["zebra"]["With EBCA"],
        },
        "repaint": {"the photo, masked": masked(outpainted), "painted": outpainted["With EBCA"]},
    }  # fmt: skip
    return {name: fitting(row) for name, row in rows.items()}


def write(pictures: Pictures, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in pictures.items():
        picture.save(folder / f"{name}.png", optimize=True)
        print(f"  {folder / name}.png")


def main(argv: list[str] | None = None) -> int:
    """Run the twins and write their pictures; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"parts of the names of: {', '.join(SHOWN)}")
    parser.add_argument("--comfyui", type=Path, required=True, help="the folder with ComfyUI's main.py")
    parser.add_argument("--out", type=Path, default=REPO / "output" / "twins", help="folder for the pictures")
    parser.add_argument("--checkpoint", type=Path, default=MODELS["things.safetensors"], help="a things model")
    parser.add_argument("--docs", action="store_true", help="draw the pictures of the documents and the thumbnails")
    options = parser.parse_args(argv)
    chosen = [name for name in SHOWN if not options.names or any(part in name for part in options.names)]
    unknown = [part for part in options.names if not any(part in name for name in SHOWN)]
    if unknown:
        parser.error(f"no workflow file with {', '.join(unknown)} in its name; there are {', '.join(SHOWN)}")
    if options.docs and options.names:
        parser.error(f"--docs draws from all files, but got {', '.join(options.names)}; leave the names out")
    if not options.checkpoint.is_file():
        parser.error(f"there is no things model at {options.checkpoint}; train it (research/README.md)")
    print("Starting ComfyUI ...", flush=True)
    with twin_server(options.comfyui, options.checkpoint) as server:
        if options.docs:
            draw(server)
        else:
            for name in chosen:
                print(name, flush=True)
                prompt = twin_of(name, server.object_info())
                write(run(server, prompt), options.out / name)
                (options.out / name / "prompt.json").write_text(json.dumps(prompt, indent=2), encoding="utf-8")
    return 0


def draw(server) -> None:
    """The thumbnails, and everything else of the repository that is drawn from the twins' pictures."""
    for name in thumbnails.WORDS:
        thumbnails.write(name, thumbnails.written(name))
    made = {}
    for name in CARDS:
        print(name, flush=True)
        made[name] = thumbnails.pictures(server, name)
        thumbnails.write(name, thumbnails.drawn(name, made[name]))
    for run_name, (name, changes) in RUNS.items():
        print(run_name, flush=True)
        made[run_name] = thumbnails.pictures(server, name, changes)
    write(of_docs(made), DOCS)
    write(of_help(made), HELP)
    write(of_effects(made), EFFECTS)


if __name__ == "__main__":
    sys.exit(main())
