"""The demo: it shows the edit, and says so when the edit is not there."""

import subprocess
import sys

import pytest
from PIL import Image

from before_after import SCENARIOS, Outcome, report, sheet
from shapes.drawing import draw
from shapes.world import Picture, Thing
from support.shapes import DEMO

(EDIT,) = [scenario for scenario in SCENARIOS if scenario.must_succeed]


def drawn(*pairs: tuple[str, str]):
    """A batch of one picture with these objects side by side."""
    things = tuple(Thing(colour, shape, 0.25 + 0.5 * i, 0.5, 0.2) for i, (colour, shape) in enumerate(pairs))
    return draw(Picture(things, "white"))[None]


def outcome(*edited: tuple[str, str]) -> Outcome:
    return Outcome(EDIT, "a red square", drawn(("red", "square")), drawn(*edited))


def test_it_passes_where_the_edit_is(capsys):
    assert report(outcome(("blue", "circle")))
    assert "FAILED" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("edited", "said"),
    [
        ([("red", "square")], "saw red square"),
        ([("blue", "circle"), ("red", "square")], "saw blue circle, red square"),
        ([("blue", "square")], "saw blue square"),
        ([], "saw nothing"),
    ],
)
def test_it_fails_and_says_what_it_saw(capsys, edited, said):
    assert not report(outcome(*edited))
    assert f"expected {EDIT.wanted} and nothing else, {said}" in capsys.readouterr().out


def test_the_sheet_has_a_row_for_each_scenario():
    one, two = sheet([outcome(("blue", "circle"))]), sheet([outcome(("blue", "circle"))] * 2)
    assert two.height > 1.8 * one.height
    assert two.width == one.width


@pytest.mark.server
@pytest.mark.slow
def test_it_runs(comfyui_root, tmp_path):
    command = [sys.executable, DEMO / "before_after.py", "--comfyui", comfyui_root, "--out", tmp_path]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    with Image.open(tmp_path / "before_after.png") as picture:
        assert picture.width > 500
