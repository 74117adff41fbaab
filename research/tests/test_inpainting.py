"""Inpainting counted on the shapes model: holes are what they say, and scores are what the pictures show."""

import numpy as np

import inpainting
from shapes.drawing import draw

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
