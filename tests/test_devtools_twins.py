"""devtools/twin_pictures.py: it writes what the twins save, and draws the pictures of the documents from that."""

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from devtools.twin_pictures import HELP_WIDTH, OF_DOCS, SIDE, main, of_docs, of_help, side_by_side
from devtools.twins import pictures, prompt_of

REPO = Path(__file__).resolve().parents[1]
COLOURS = {"one": "red", "two": "blue"}


def test_pictures_stand_side_by_side_over_their_titles():
    sheet = side_by_side({title: Image.new("RGB", (64, 64), colour) for title, colour in COLOURS.items()})
    assert [sheet.getpixel((sheet.width * at // 4, SIDE // 2)) for at in (1, 3)] == [(255, 0, 0), (0, 0, 255)]
    middle, below = sheet.width // 2, SIDE + 20
    titles = [sheet.convert("L").crop((left, below, left + middle, sheet.height)) for left in (0, middle)]
    assert all(title.getextrema()[0] < 100 for title in titles)


@pytest.mark.server
def test_documents_show_what_the_files_save(object_info):
    titles = {name: pictures(prompt_of(name, object_info)) for name in OF_DOCS}
    made = {name: {title: Image.new("RGB", (1000, 700)) for title in titles[name]} for name in OF_DOCS}
    shown = {path.stem for path in (REPO / "docs" / "looking").iterdir()}
    assert shown == {path.stem for path in (REPO / "web" / "docs" / "looking").iterdir()}
    assert set(of_docs(made)) == set(of_help(made)) == shown
    assert all(picture.width <= HELP_WIDTH for picture in of_help(made).values())


def test_unknown_files_are_refused(capsys):
    with pytest.raises(SystemExit):
        main(["stylise", "--comfyui", "."])
    assert "no workflow file stylise; there are multi_concept_sd15," in capsys.readouterr().err


@pytest.mark.server
@pytest.mark.slow
def test_it_runs(comfyui_root, tmp_path):
    script = REPO / "devtools" / "twin_pictures.py"
    command = [sys.executable, script, "stylise_sd15", "--comfyui", comfyui_root, "--out", tmp_path]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    written = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.png"))
    assert written == ["stylise_sd15/With EBCA.png", "stylise_sd15/Without EBCA.png"]
