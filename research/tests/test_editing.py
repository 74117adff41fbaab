"""Edits counted on the shapes model: scores are what the pictures show."""

import numpy as np
import pytest

import editing
from shapes.drawing import draw
from shapes_model import cases


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
