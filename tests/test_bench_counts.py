"""The benches that count edits and round trips: they run, and their rows are what their scores say."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import editing
import inpainting
from shapes.drawing import draw
from shapes_model import cases

REPO = Path(__file__).resolve().parents[1]


def drawn(case, thing):
    """The case's picture with another thing in the place of its object."""
    (old,) = case.picture.things
    new = type(old)(*thing, old.x, old.y, old.radius)
    return draw(type(case.picture)((new,), case.picture.ground))


CASES = cases(12, 5)
ORIGINALS = [draw(case.picture) for case in CASES]


def test_unchanged_pictures_score_nothing():
    found = editing.score(CASES, ORIGINALS, ORIGINALS)
    assert (found.new, found.gone, found.both, found.nothing_else, found.background) == (0, 0, 0, 0, 0)


def test_perfect_edits_score_everything():
    found = editing.score(CASES, ORIGINALS, [drawn(case, case.new) for case in CASES])
    assert (found.new, found.gone, found.both, found.nothing_else) == (1, 1, 1, 1)
    assert found.background < 1e-5


def test_moved_background_is_its_mean_absolute_difference():
    shifted = [np.clip(image - 0.01, 0, 1) for image in ORIGINALS]
    assert editing.score(CASES, ORIGINALS, shifted).background == pytest.approx(0.01, rel=0.01)


def test_object_lies_within_its_box():
    for case, image in zip(CASES, ORIGINALS):
        ground = image[0, 0]
        assert np.abs(image - ground)[case.background()].max() < 0.1  # the soft tip of a star
        assert case.background().mean() > 0.3


def test_settings_are_tuned_on_other_pictures_than_are_scored():
    tuned, scored = cases(40, editing.TUNING_SEED), cases(200, editing.SCORED_SEED)
    assert not {repr(case.picture) for case in tuned} & {repr(case.picture) for case in scored}


# --- inpainting ------------------------------------------------------------------------------------------------------

HOLES = inpainting.holes(12, 5)


def filled(hole, thing):
    """The picture with another thing where the hole is."""
    old, kept = hole.picture.things
    new = type(old)(*thing, old.x, old.y, old.radius)
    return draw(type(hole.picture)((new, kept), hole.picture.ground))


def test_holes_spare_the_other_object():
    for hole in HOLES:
        bare = draw(type(hole.picture)((), hole.picture.ground))
        without = np.where(hole.mask()[..., None] == 1, bare, draw(hole.picture))
        kept = type(hole.picture)((hole.picture.things[1],), hole.picture.ground)
        assert np.abs(without - draw(kept)).max() < 0.1  # the soft tip of a star
        assert hole.wanted[0] not in {thing.colour for thing in hole.picture.things}


def test_hole_scores_what_was_asked_for_in_it():
    for hole in HOLES:
        assert inpainting.score(hole, draw(hole.picture)) == (False, False)
        assert inpainting.score(hole, filled(hole, hole.wanted)) == (True, True)
        kept = hole.picture.things[1]
        beside = type(hole.picture)((type(kept)(*hole.wanted, kept.x, kept.y, kept.radius),), hole.picture.ground)
        assert inpainting.score(hole, draw(beside)) == (False, False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bench", "options", "rows"),
    [
        ("editing", ["--images", "2", "--steps", "2", "--method", "tuned"], 2),
        ("inpainting", ["--images", "2", "--steps", "2"], 4),
        ("round_trip", ["--images", "2", "--steps", "2", "--samplers", "0"], 5),
    ],
)
def test_bench_prints_a_row_for_each_method(comfyui_root, bench, options, rows):
    command = [sys.executable, REPO / "bench" / f"{bench}.py", "--comfyui", comfyui_root, *options, "--threads", "1"]
    printed = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True).stdout
    lines = [line for line in printed.splitlines() if line.startswith("| ") and not line.startswith(("| m", "| i"))]
    assert len(lines) >= rows, printed
    assert all(any(character.isdigit() for character in line) for line in lines)
