"""The paper's three edits on your own photographs, with EBCA and without it, on running ComfyUI servers.

    python run.py bench real_edits --servers http://127.0.0.1:8188 --checkpoint NAME --images FOLDER --edit cat_to_dog
    python run.py bench real_edits ... --clip openai/clip-vit-large-patch14
    python run.py bench real_edits ... --dino FOLDER --lpips alexnet-owt-7be5be79.pth alex.pth

--images holds photographs; beside photo.jpg may lie photo.txt, its caption, and photo.mask.png, as large as the photo
and white where the object is. The servers need this pack and the checkpoint. What runs is the template EBCA 05 Photo
cat to dog with the values of the edit. Three pictures are made from one inversion: the reconstruction; the prompt
swapped, which is the caption with the new words, at the same cfg and with the same negative prompt as EBCA's (the
caption, or with --empty-negative an empty one); and the edit by EBCA. Pictures, a sheet of some of them and results go
to a folder of the edit in --out; what is there is not made again, so the command can be stopped and started, also with
other servers.

With --clip, CLIP accuracy is measured: the share of pictures that are more similar to the caption with the new words
than to the caption. With --dino (a copy of facebook/dino-vitb8), the structure distance to the photo. With --lpips
(torchvision's weights of AlexNet, and LPIPS' own of weights/v0.1), the background error: LPIPS outside the mask, of
photos that have one.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
sys.path.append(str(REPO))

from photo_edits import measures, photos  # noqa: E402
from photo_edits.edits import EDITS, PhotoEdit  # noqa: E402
from photo_edits.graph import PhotoGraph  # noqa: E402
from server_runs import argument_parser, make, report  # noqa: E402

WORKFLOW = REPO / "workflows" / "EBCA 05 Photo cat to dog (SD 1.5).json"
#: {option: what measures by the models that it names}
MEASURES = {
    "clip": measures.clip_accuracy,
    "dino": measures.structure_distance,
    "lpips": lambda files: measures.background(*files),
}


def existing(name: str) -> Path:
    path = Path(name)
    if not path.exists():
        raise argparse.ArgumentTypeError(f"there is no {name}")
    return path


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argument_parser(__doc__, WORKFLOW, REPO / "output" / "real_edits")
    parser.add_argument("--images", type=existing, required=True, help="folder of photographs")
    parser.add_argument("--edit", choices=EDITS, required=True)
    parser.add_argument("--alphas", type=float, nargs=2, metavar=("ADD", "REMOVE"), help="by default the edit's")
    parser.add_argument("--start", type=float, help="where the edit begins, 0 to 1, by default the edit's")
    parser.add_argument("--empty-negative", action="store_true", help="the negative prompt is empty, not the caption")
    parser.add_argument("--dino", type=existing, help="folder of a DINO of transformers, for the structure distance")
    parser.add_argument("--lpips", type=existing, nargs=2, metavar=("ALEXNET", "LINEAR"),
                        help="files of weights, for the background error")  # fmt: skip
    options = parser.parse_args(arguments)
    options.out /= options.edit
    return options


def edit_of(options: argparse.Namespace) -> PhotoEdit:
    changes = {"alphas": options.alphas, "start": options.start}
    changes = {name: value for name, value in changes.items() if value is not None}
    edit = EDITS[options.edit]
    return replace(edit, strengths=replace(edit.strengths, **changes))


def main(arguments: Sequence[str]) -> int:
    options = parse(arguments)
    edit = edit_of(options)
    tasks = photos.tasks(options.images, edit)
    graph = PhotoGraph(options, edit)
    asked = [MEASURES[name](value) for name in MEASURES if (value := getattr(options, name))]
    if not make(options, graph, tasks):
        return 1
    found = {measure: lines for measure in asked if (lines := measure.lines(tasks, options.out))}
    if found:
        report(options.out, measures.table(found))
    for name in MEASURES:
        if not getattr(options, name):
            print(f"Left out, as it is not given: what --{name} measures.")
    for measure in asked:
        if measure not in found:
            print(f"Left out, as no photo has a .mask.png: {measure.name}.")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
