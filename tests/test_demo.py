"""The demo: it shows the edit, says so when the edit is not there, and marks every picture as the scorer reads it."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image, ImageColor

from alignment.results import Cell
from before_after import CONCEPTS, EDIT, GREEN, RED, SIDE, Outcome, concepts_graph, report, sheet, strip
from support.shapes import DEMO
from things.scenes import draw
from things.world import OBJECTS, Picture, Thing


def drawn(*things: str) -> np.ndarray:
    """A picture with these things side by side; a word before one is its colour, or what an animal wears."""
    placed = []
    for number, thing in enumerate(things):
        *before, kind = thing.split()
        colour, worn = ((before or [None])[0], None) if kind in OBJECTS else (None, (before or [None])[0])
        placed.append(Thing(kind, colour, worn, 0.25 + 0.5 * number, 0.5, 0.4))
    return draw(Picture(tuple(placed), "noto", "lime"))


def outcome(*edited: list[str]) -> Outcome:
    """The edit's outcome: a cat for each seed, and these pictures."""
    plain = [drawn("cat") for _ in edited]
    return Outcome(EDIT, (np.stack(plain), np.stack([drawn(*things) for things in edited])))


RIGHT, WRONG = ["dog"], ["cat"]


def test_it_passes_where_the_edit_is(capsys):
    assert report(outcome(RIGHT))
    assert "FAILED" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("edited", "said"),
    [
        (["cat"], "cat   x  thing missing"),
        (["dog", "cat"], "cat, dog   x  something extra"),
        (["crown dog"], "dog with a crown   x  something extra"),
        (["red bowl"], "red bowl   x  thing missing"),
        ([], "nothing   x"),
    ],
)
def test_it_fails_and_says_what_it_saw(capsys, edited, said):
    assert not report(outcome(edited))
    out = capsys.readouterr().out
    assert said in out
    assert "FAILED: a dog and nothing else is in 0 of 1 pictures" in out


@pytest.mark.parametrize(("right", "passes"), [(2, True), (1, False)])
def test_half_of_the_pictures_must_show_the_edit(capsys, right, passes):
    assert report(outcome(*[RIGHT] * right, *[WRONG] * (4 - right))) is passes


def marks(image: Image.Image, row: int, count: int) -> list[str]:
    """The mark under each picture of a row, by the colour of its pixels."""
    pixels, top = np.asarray(image).astype(int), (image.height - 2 * 188) + row * 188 + 20 + SIDE
    found = []
    for column in range(count):
        part = pixels[top + 2 : top + 30, 16 + column * 144 : 16 + column * 144 + 20].reshape(-1, 3)
        counts = {name: (part == ImageColor.getrgb(name)).all(1).sum() for name in (GREEN, RED)}
        found.append(max(counts, key=counts.get))
        assert sorted(counts.values())[0] == 0 < sorted(counts.values())[1]
    return found


def test_each_picture_has_the_mark_of_the_scorer():
    image = strip(outcome(RIGHT, WRONG, RIGHT))
    assert marks(image, 0, 3) == [GREEN] * 3
    assert marks(image, 1, 3) == [GREEN, RED, GREEN]


def test_the_sheet_has_the_strips_one_above_the_other():
    one, two = sheet([outcome(RIGHT)]), sheet([outcome(RIGHT), outcome(RIGHT)])
    assert (two.width, two.height) == (one.width, 2 * one.height)


def test_prompts_and_seeds_are_the_first_that_are_counted():
    cell = Cell("three objects", "plain", {}, False, 6)
    graphs = [concepts_graph(seed) for seed in range(6)]
    assert [graph["positive"]["inputs"]["text"] for graph in graphs] == [scene.caption() for scene in cell.scenes()]
    assert [graph["plain latent"]["inputs"]["seed"] for graph in graphs] == cell.seeds()
    assert graphs[0]["with"]["inputs"]["concepts"] == "a red circle\na green square\na yellow triangle"
    assert CONCEPTS.wanted(0) == ("a red circle, a green square and a yellow triangle",) * 2


@pytest.mark.server
@pytest.mark.slow
def test_it_runs(comfyui_root, tmp_path):
    command = [sys.executable, DEMO / "before_after.py", "--comfyui", comfyui_root, "--out", tmp_path]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    with Image.open(tmp_path / "before_after.png") as picture:
        assert picture.height > 500
