"""Renders the emoji drawings of the things world into drawings.png, from which scenes are made without a network.

    .host/venv/bin/python research/things/make_sheet.py

The drawings come from npm packages (npm must be installed), at the versions below. What the sheet holds and under which
licences: LICENSES.md.
"""
from __future__ import annotations

import hashlib
import io
import json
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parents[1])]

from devtools import environment  # noqa: E402
from things.drawings import CELL, COLUMNS, SHEET  # noqa: E402
from things.world import KINDS, OBJECTS, STYLES  # noqa: E402

#: Of each style: package, version, the licence that it states, and the SHA-256 of its archive.
PACKAGES = {
    "noto": (
        "@iconify-json/noto", "1.2.9", "Apache-2.0",
        "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad"),
    "twemoji": (
        "@iconify-json/twemoji", "1.2.5", "CC-BY-4.0",
        "19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7"),
    "emojione": (
        "@iconify-json/emojione", "1.2.3", "CC-BY-4.0",
        "26a14f44284407e8bcde91799388dca2bfd91dbcd55a97f425524a1c5b73610e"),
    "fluent": (
        "@iconify-json/fluent-emoji-flat", "1.2.6", "MIT",
        "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175"),
}
RENDERER = ("resvg_py", "0.5.0")

#: The name of each drawing in the packages; where styles differ, one in the order of STYLES. None: in own/.
NAMES: dict[str, str | tuple[str | None, ...]] = {
    "cat": "cat-face", "dog": "dog-face", "bird": "bird", "bear": "bear", "lion": "lion",
    "horse": ("horse", "horse-face", "horse", "horse"),  # where the zebra is a head, so is the horse
    "elephant": "elephant", "monkey": "monkey-face", "frog": "frog", "turtle": "turtle", "rabbit": "rabbit-face",
    "mouse": "mouse-face", "zebra": ("zebra", "zebra", None, "zebra"), "goat": "goat",
    "backpack": "backpack", "glasses": ("glasses", "glasses", None, "glasses"), "crown": "crown",
    "suitcase": ("luggage", "luggage", "briefcase", "luggage"),
    "chair": ("chair", "chair", "seat", "chair"), "balloon": "balloon", "bow": "ribbon", "car": "automobile",
    "bowl": ("bowl-with-spoon", "bowl-with-spoon", "steaming-bowl", "bowl-with-spoon"),
    "bench": (None, None, None, None), "clock": "alarm-clock", "apple": "red-apple",
}

#: The colours in an object's drawing that take the colour of its caption, the main one first, in the order of STYLES.
PAINTED = {
    "backpack": ("f44336 c62828 ff7555", "be1931 a0041e", "42ade2 428bc1 93ced6", "f8312f ca0b4a"),
    "glasses": ("804833 90caf9", "31373d 55acee", "3e4347", "533566 83cbff"),
    "crown": ("ffca28 f19534 fff59d", "ffcc4d f4900c ffac33", "ffce31 f2b200 ffdd7d", "ffb02e e19747"),
    "suitcase": ("03a9f4 0277bd", "5dadec 4289c1 2a6797", "5f6262 343434", "00a6ed 26eafc"),
    "chair": ("ba793e 9e5737 f0aa6b 77381f", "c1694f a4523a d99e82", "29abe2 b4d7ee 428bc1", "a56953 7d4533 402a32"),
    "balloon": ("f44336 c62828 ff847a", "bb1a34", "ed4c5c", "f8312f ca0b4a ff8687"),
    "bow": ("ef5592 af0e5f d11a6e ffaecf", "dd2e44 a0041e ea596e", "ff5760 c94747", "f8312f ca0b4a"),
    "car": ("d70617 f92612 af0f21", "dd2e44", "f15744", "f8312f ca0b4a"),
    "bowl": ("6bb8fe 1d89fe 025abc e0ebf6", "a0041e ea596e", "f9f3d9 e0dac6", "00a6ed 26eafc 0074ba"),
    "bench": ("c98b56 9e6237 d89a63", "c1694f a0553c", "b78a5c 89664c a3764f", "a56953 7d4533 8b5141"),
    "clock": ("ff4638 cc2929", "dd2e44 ffcc4d ffac33", "428bc1 b0b8b8", "f8312f f9c23c"),
    "apple": ("ff5117 dc0d28 8d1d0a", "dd2e44", "ef4d3c", "f8312f"),
}


def package(style: str, folder: Path) -> dict:
    """The icons of a style's package, whose licence is looked at first."""
    name, version, licence, digest = PACKAGES[style]
    listed = subprocess.run(["npm", "pack", f"{name}@{version}", "--silent"], cwd=folder, check=True,
                            capture_output=True, text=True).stdout
    archive = folder / listed.strip().splitlines()[-1]
    if hashlib.sha256(archive.read_bytes()).hexdigest() != digest:
        raise SystemExit(f"{archive.name} is not the file that this sheet was made of: its SHA-256 differs")
    with tarfile.open(archive) as files:
        stated, icons = (json.load(files.extractfile(f"package/{part}.json")) for part in ("info", "icons"))
    if stated["license"]["spdx"] != licence:
        raise SystemExit(f"{name} is under {stated['license']['spdx']}, expected {licence}")
    return icons


def picture_of(icons: dict, name: str) -> str:
    """The SVG of an icon of a package."""
    name = icons.get("aliases", {}).get(name, {"parent": name})["parent"]
    icon = icons["icons"][name]
    left, top = icon.get("left", 0), icon.get("top", 0)
    width, height = (icon.get(side, icons[side]) for side in ("width", "height"))
    return (f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="{left} {top} {width} {height}">{icon["body"]}</svg>')


def painted(svg: str, colours: str) -> str:
    """The SVG in white where it has one of `colours`, in black elsewhere."""
    wanted, seen = set(colours.split()), set()

    def of(match: re.Match) -> str:
        digits = match[1].lower()
        digits = "".join(2 * d for d in digits) if len(digits) == 3 else digits
        seen.add(digits)
        return "#ffffff" if digits in wanted else "#000000"

    svg = re.sub(r"#([0-9a-fA-F]{6}|[0-9a-fA-F]{3})\b(?!\))", of, svg)
    if wanted - seen:
        raise SystemExit(f"no {', '.join(sorted(wanted - seen))} in the drawing")
    return svg


def rendered(resvg, svg: str, size: int) -> Image.Image:
    return Image.open(io.BytesIO(bytes(resvg.svg_to_bytes(svg_string=svg, width=size, height=size)))).convert("RGBA")


def cell(resvg, svg: str, colours: str | None) -> tuple[Image.Image, Image.Image | None]:
    """The drawing, as large as a cell holds it, and where it takes a colour, or None."""
    large = 4 * CELL
    picture = rendered(resvg, svg, large)
    left, top, right, bottom = picture.getchannel("A").point(lambda a: 255 * (a > 8)).getbbox()
    half = max(right - left, bottom - top) / 2
    x, y = (left + right) / 2, (top + bottom) / 2
    # A second rendering at the right scale is sharper than a smaller copy of this one.
    size = round(CELL * large / (2 * half) * 4)
    scale = size / large
    box = [round(v) for v in ((x - half) * scale, (y - half) * scale, (x + half) * scale, (y + half) * scale)]

    def cut(source: str) -> Image.Image:
        return rendered(resvg, source, size).crop(box).resize((CELL, CELL), Image.Resampling.BOX)

    return cut(svg), cut(painted(svg, colours)).getchannel("R") if colours else None


def painting(paint: np.ndarray, colours: str) -> np.ndarray:
    """What the second part of the sheet holds of an object, uint8 [CELL CELL 4]: see drawings.coloured()."""
    main = Image.new("RGB", (1, 1), f"#{colours.split()[0]}").convert("L").getpixel((0, 0))
    return np.dstack([paint, np.full_like(paint, main), np.zeros_like(paint), np.full_like(paint, 255)])


def main() -> None:
    sys.path.append(str(environment.fetched_package(*RENDERER)))
    import resvg_py as resvg

    sheet = np.zeros((len(STYLES) * CELL, COLUMNS * CELL, 4), np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        for row, style in enumerate(STYLES):
            icons = package(style, Path(folder))
            rows = slice(row * CELL, (row + 1) * CELL)
            for column, kind in enumerate(KINDS):
                names = NAMES[kind]
                name = names if isinstance(names, str) else names[row]
                own = HERE / "own" / f"{kind}_{style}.svg"
                svg = picture_of(icons, name) if name else own.read_text(encoding="utf-8")
                picture, paint = cell(resvg, svg, PAINTED[kind][row] if kind in PAINTED else None)
                sheet[rows, column * CELL:(column + 1) * CELL] = np.asarray(picture)
                if paint is not None:
                    column = len(KINDS) + OBJECTS.index(kind)
                    sheet[rows, column * CELL:(column + 1) * CELL] = painting(np.asarray(paint), PAINTED[kind][row])
    Image.fromarray(sheet).save(SHEET, optimize=True)


if __name__ == "__main__":
    main()
