"""The thumbnails of the workflow files and the pictures of the documents show what the twins make."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFont

from devtools import thumbnails
from devtools.thumbnails import CARDS, HEIGHT, MARGIN, MASK, PHOTO, SCHEDULE, WIDTH, WORDS
from devtools.twin_pictures import HELP_WIDTH, RUNS, of_docs, of_effects, of_help
from devtools.twins import TRANSFORMERS, WORKFLOWS, pictures, tables_of, twin_of
from support.marks import with_mark

REPO = Path(__file__).resolve().parents[1]
HELP = REPO / "web" / "docs"
FONT = ImageFont.load_default(20)


@pytest.fixture
def made(workflow_runs):
    """A function that gives what a card's or a help page's run shows: {title: picture}."""

    def made(name: str) -> thumbnails.Pictures:
        twin, changes = RUNS.get(name, (name, {}))
        file, tables = tables_of(twin)
        shown = workflow_runs(file, *tables, changes)
        return {title: first for title, (first, *_) in shown.items()}

    return made


class WhenAsked(dict):
    """{key: make(key)}, of the keys that are asked for."""

    def __init__(self, make):
        self._make = make

    def __missing__(self, key):
        return self._make(key)


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
def test_documents_show_what_the_files_show(object_info):
    twins = {name: name for name in CARDS} | {name: twin for name, (twin, _) in RUNS.items()}
    titles = {name: [*pictures(twin_of(twin, object_info)), PHOTO, MASK, SCHEDULE] for name, twin in twins.items()}
    charts = ("Energies", "Words", "Sweep", "Ranking")
    made = {
        name: {title: Image.new("RGB", (1000, 1000) if title in charts else (64, 64)) for title in titles[name]}
        for name in titles
    }
    shown = {path.stem for path in (REPO / "docs" / "looking").iterdir()}
    assert shown == {path.stem for path in (HELP / "looking").iterdir()}
    assert set(of_docs(made)) == set(of_help(made)) == shown
    assert set(of_effects(made)) == {path.stem for path in (HELP / "effects").iterdir()}
    assert all(picture.width <= HELP_WIDTH for picture in (of_help(made) | of_effects(made)).values())


def test_every_workflow_file_has_a_small_thumbnail():
    files = {path.stem for path in WORKFLOWS.glob("*.json")}
    assert files == {*CARDS, *WORDS} == {path.stem for path in WORKFLOWS.iterdir() if path.suffix != ".json"}
    for name in files:
        with Image.open(thumbnails.path(name)) as picture:
            assert (picture.format, picture.size) == ("JPEG", (WIDTH, HEIGHT))
        assert thumbnails.path(name).stat().st_size < 40_000


#: Sixteen runs. In tier 1 the cells of the shapes model's sweep are looked at (tests/test_workflows.py).
SWEEP = "EBCA 11 Sweep (SDXL)"


@pytest.mark.server
@pytest.mark.slow
@pytest.mark.parametrize("name", with_mark(CARDS, pytest.mark.nightly, [SWEEP]))
def test_a_thumbnail_shows_what_the_twin_makes(made, name):
    with Image.open(thumbnails.path(name)) as shown:
        assert_alike(shown, thumbnails.drawn(name, made(name)))
    assert len(" ".join(CARDS[name].panels).split()) <= 2
    for label, picture in CARDS[name].row(made(name)).items():
        assert FONT.getlength(label) <= picture.width * CARDS[name].side / picture.height + MARGIN


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_a_thumbnail_without_a_twin_has_words_alone(name):
    model, action = WORDS[name]
    assert model in name
    assert name not in CARDS
    assert len(action.split()) <= 2
    with Image.open(thumbnails.path(name)) as shown:
        assert_alike(shown, thumbnails.written(name))
        dark = np.asarray(shown.convert("L")) < 64
    assert 0.8 < dark.mean() < 0.99
    assert all(dark[:, edge].all() for edge in (slice(MARGIN), slice(-MARGIN, None)))  # no word is cut off


@pytest.mark.server
@pytest.mark.slow
def test_help_pages_show_what_the_twins_make(made):
    drawn = of_effects(WhenAsked(made))
    assert len(drawn) == len(list((HELP / "effects").iterdir()))
    for name, picture in drawn.items():
        assert_alike(Image.open(HELP / "effects" / f"{name}.png"), picture)


@pytest.mark.server
@pytest.mark.slow
@pytest.mark.parametrize("name", ["EBCA 06 Photo with mask (SD 1.5)", "EBCA 07 Inpainting (SD 1.5)"])
def test_a_masked_photo_is_grey_in_its_mask_and_itself_around(made, name):
    panels = CARDS[name].row(made(name))
    masked, photo = (np.asarray(picture, dtype=int) for picture in (panels["mask"], made(name)[PHOTO]))
    inside = np.asarray(made(name)[MASK].convert("L")) > 127
    assert 0.2 < inside.mean() < 0.8
    assert np.array_equal(masked[~inside], photo[~inside])
    assert (np.abs(masked - 128).max(-1) < np.abs(photo - 128).max(-1))[inside].all()
