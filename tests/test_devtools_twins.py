"""devtools/twin_pictures.py and thumbnails.py: what they draw and what they write."""

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from devtools.thumbnails import MARGIN, side_by_side
from devtools.twin_pictures import main

REPO = Path(__file__).resolve().parents[1]
COLOURS = {"one": "red", "two": "blue"}


def test_pictures_stand_side_by_side_over_their_labels():
    side = 200
    sheet = side_by_side({label: Image.new("RGB", (64, 64), colour) for label, colour in COLOURS.items()}, side)
    assert [sheet.getpixel((sheet.width * at // 4, side // 2)) for at in (1, 3)] == [(255, 0, 0), (0, 0, 255)]
    middle, below = sheet.width // 2, side + 20
    labels = [sheet.convert("L").crop((left, below, left + middle, sheet.height)) for left in (0, middle)]
    assert all(label.getextrema()[0] < 100 for label in labels)


def test_a_row_without_labels_has_no_room_for_them():
    plain, labelled = (side_by_side({label: Image.new("RGB", (64, 64))}, 64, "black") for label in ("", "one"))
    assert plain.height == 64 + 2 * MARGIN < labelled.height
    assert plain.getpixel((1, 1)) == (0, 0, 0)


def test_unknown_files_are_refused(capsys):
    with pytest.raises(SystemExit):
        main(["stylize", "--comfyui", "."])
    assert "no workflow file with stylize in its name; there are EBCA 01 Several" in capsys.readouterr().err


def test_documents_are_drawn_from_all_files(capsys):
    with pytest.raises(SystemExit):
        main(["03", "--docs", "--comfyui", "."])
    assert "--docs draws from all files, but got 03; leave the names out" in capsys.readouterr().err


@pytest.mark.server
@pytest.mark.slow
def test_it_runs(comfyui_root, tmp_path):
    script = REPO / "devtools" / "twin_pictures.py"
    command = [sys.executable, script, "Add and", "--comfyui", comfyui_root, "--out", tmp_path]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    folder = tmp_path / "EBCA 03 Add and remove (SD 1.5)"
    assert list(tmp_path.iterdir()) == [folder]
    assert sorted(path.name for path in folder.iterdir()) == ["With EBCA.png", "Without EBCA.png", "prompt.json"]
