"""The thumbnails of the workflow files and the pictures of the documents show what the shapes twins make."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFont

from devtools import thumbnails
from devtools.thumbnails import CARDS, HEIGHT, MARGIN, MASK, PHOTO, WIDTH
from devtools.twin_pictures import HELP_WIDTH, OF_DOCS, OF_EFFECTS, of_docs, of_effects, of_help
from devtools.twins import SHAPES, WORKFLOWS, pictures, prompt_of

REPO = Path(__file__).resolve().parents[1]
HELP = REPO / "web" / "docs"
FONT = ImageFont.load_default(20)


@pytest.fixture
def made(workflow_runs):
    """A function that gives what a file's twin saves, changed as its card says: {title: picture}."""

    def made(name: str) -> thumbnails.Pictures:
        return {title: first for title, (first, *_) in workflow_runs(name, SHAPES[name], CARDS[name].changes).items()}

    return made


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
