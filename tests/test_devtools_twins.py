"""devtools/twin_pictures.py and thumbnails.py: they write what the twins save, and draw documents' pictures from it."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFont

from devtools import thumbnails
from devtools.thumbnails import CARDS, HEIGHT, MARGIN, MASK, PHOTO, WIDTH, side_by_side
from devtools.twin_pictures import HELP_WIDTH, OF_DOCS, OF_EFFECTS, main, of_docs, of_effects, of_help
from devtools.twins import WORKFLOWS, pictures, prompt_of

REPO = Path(__file__).resolve().parents[1]
HELP = REPO / "web" / "docs"
COLOURS = {"one": "red", "two": "blue"}
FONT = ImageFont.load_default(20)


@pytest.fixture(scope="module")
def made(server):
    """A function that gives the pictures of a card; a twin runs once."""
    kept = {}

    def pictures_of(name: str) -> thumbnails.Pictures:
        if name not in kept:
            kept[name] = thumbnails.pictures(server, name)
        return kept[name]

    return pictures_of


def assert_alike(picture: Image.Image, other: Image.Image) -> None:
    """They show the same, whatever JPEG, another CPU or another renderer of text makes of it.

    Letters that are shaped or placed a pixel otherwise average out in blocks of 8 x 8: measured, a mean of up to 2.3 of
    255 and up to 0.4 % of the blocks. Of another seed, or of an edit of a masked region a quarter weaker, the share is
    1.7 % and more.
    """
    assert picture.size == other.size
    blocks, others = (np.asarray(each.convert("RGB").reduce(8), dtype=int) for each in (picture, other))
    distance = np.abs(blocks - others)
    assert distance.mean() < 4
    assert (distance.max(-1) > 32).mean() < 0.01


def test_pictures_stand_side_by_side_over_their_labels():
    side = 200
    sheet = side_by_side({label: Image.new("RGB", (64, 64), colour) for label, colour in COLOURS.items()}, side)
    assert [sheet.getpixel((sheet.width * at // 4, side // 2)) for at in (1, 3)] == [(255, 0, 0), (0, 0, 255)]
    middle, below = sheet.width // 2, side + 20
    labels = [sheet.convert("L").crop((left, below, left + middle, sheet.height)) for left in (0, middle)]
    assert all(label.getextrema()[0] < 100 for label in labels)


@pytest.mark.server
def test_documents_show_what_the_files_save(object_info):
    titles = {name: [*pictures(prompt_of(name, object_info)), PHOTO, MASK] for name in CARDS}
    made = {name: {title: Image.new("RGB", (1000, 1000)) for title in titles[name]} for name in CARDS}
    made |= {name: {title: made[name][title] for title in pictures(prompt_of(name, object_info))} for name in OF_DOCS}
    shown = {path.stem for path in (REPO / "docs" / "looking").iterdir()}
    assert shown == {path.stem for path in (HELP / "looking").iterdir()}
    assert set(of_docs(made)) == set(of_help(made)) == shown
    assert set(of_effects(made)) == {path.stem for path in (HELP / "effects").iterdir()}
    assert all(picture.width <= HELP_WIDTH for picture in (of_help(made) | of_effects(made)).values())


def test_every_workflow_file_has_a_small_thumbnail():
    files = {path.stem for path in WORKFLOWS.glob("*.json")}
    assert files == set(CARDS) == {path.stem for path in WORKFLOWS.iterdir() if path.suffix != ".json"}
    for name in files:
        with Image.open(thumbnails.path(name)) as picture:
            assert (picture.format, picture.size) == ("JPEG", (WIDTH, HEIGHT))
        assert thumbnails.path(name).stat().st_size < 40_000


@pytest.mark.server
@pytest.mark.slow
@pytest.mark.parametrize("name", CARDS)
def test_a_thumbnail_shows_what_the_twin_makes(made, name):
    with Image.open(thumbnails.path(name)) as shown:
        assert_alike(shown, thumbnails.drawn(name, made(name)))
    assert all(FONT.getlength(line) < WIDTH for line in CARDS[name].shows)
    for label, picture in CARDS[name].row(made(name)).items():
        assert FONT.getlength(label) <= picture.width * CARDS[name].side / picture.height + MARGIN


@pytest.mark.server
@pytest.mark.slow
def test_help_pages_show_what_the_twins_make(made):
    drawn = of_effects({name: made(name) for name in CARDS})
    assert len(drawn) == len(OF_EFFECTS) + 1
    for name, picture in drawn.items():
        assert_alike(Image.open(HELP / "effects" / f"{name}.png"), picture)


@pytest.mark.server
@pytest.mark.slow
@pytest.mark.parametrize("name", ["inpaint_model_sd15", "repaint_sd15", "real_image_with_mask_sd15"])
def test_a_masked_photo_is_grey_in_its_mask_and_itself_around(made, name):
    panels = CARDS[name].row(made(name))
    masked, photo = (np.asarray(picture, dtype=int) for picture in (panels["the photo, masked"], made(name)[PHOTO]))
    inside = np.asarray(made(name)[MASK].convert("L")) > 127
    assert 0.2 < inside.mean() < 0.8
    assert np.array_equal(masked[~inside], photo[~inside])
    assert (np.abs(masked - 128).max(-1) < np.abs(photo - 128).max(-1))[inside].all()


def test_unknown_files_are_refused(capsys):
    with pytest.raises(SystemExit):
        main(["stylise", "--comfyui", "."])
    assert "no workflow file stylise; there are multi_concept_sd15," in capsys.readouterr().err


def test_documents_are_drawn_from_all_files(capsys):
    with pytest.raises(SystemExit):
        main(["stylise_sd15", "--docs", "--comfyui", "."])
    assert "--docs draws from all files, but got stylise_sd15; leave the names out" in capsys.readouterr().err


@pytest.mark.server
@pytest.mark.slow
def test_it_runs(comfyui_root, tmp_path):
    script = REPO / "devtools" / "twin_pictures.py"
    command = [sys.executable, script, "stylise_sd15", "--comfyui", comfyui_root, "--out", tmp_path]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    written = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.png"))
    assert written == ["stylise_sd15/With EBCA.png", "stylise_sd15/Without EBCA.png"]
