"""The shapes world: drawings, captions and the scorer. Pure numpy, no model."""

from dataclasses import replace

import numpy as np
import pytest

from shapes.drawing import coverage, draw, random_picture
from shapes.grammar import Scene, Wanted, describe, parse, training_caption
from shapes.scorer import judge, read, verdict
from shapes.world import COLOURS, GROUNDS, RARE, SHAPES, SIZES, Picture, Thing, holds

RED_CIRCLE = Thing("red", "circle", 0.25, 0.3, 0.20)
BLUE_SQUARE = Thing("blue", "square", 0.7, 0.7, 0.20)
GREEN_STAR = Thing("green", "star", 0.7, 0.25, 0.20)


def picture(*things: Thing, ground: str = "white") -> np.ndarray:
    return draw(Picture(things, ground))


def pictures(count: int, seed: int = 0, **options):
    rng = np.random.default_rng(seed)
    for index in range(count):
        drawn = random_picture(rng, 1 + index % 3, **options)
        yield drawn, describe(drawn, rng)


# Scorer


@pytest.mark.parametrize("count", [300, pytest.param(2100, marks=pytest.mark.nightly)])
def test_drawn_pictures_are_read_right(count):
    judged = [verdict(draw(drawn), scene) for drawn, scene in pictures(count, rare=True)]
    assert np.mean([v.complete for v in judged]) >= 0.995


@pytest.mark.parametrize("side", [48, 96, 512])
def test_other_resolutions_are_read_right(side):
    judged = [verdict(draw(drawn, side), scene) for drawn, scene in pictures(60, seed=side)]
    assert np.mean([v.complete for v in judged]) >= 0.95


def test_noisy_and_blurred_drawings_are_still_read():
    rng = np.random.default_rng(5)
    noisy = [(draw(drawn) + rng.normal(0, 0.03, (64, 64, 3)), scene) for drawn, scene in pictures(200, seed=6)]
    assert np.mean([verdict(image, scene).right for image, scene in noisy]) >= 0.98


def test_position_size_and_box_are_the_drawn_ones():
    for drawn, _ in pictures(100, seed=1):
        for thing in drawn.things:
            found = next(f for f in read(draw(drawn)).found if (f.colour, f.shape) == (thing.colour, thing.shape))
            assert abs(found.x - thing.x) < 0.02
            assert abs(found.y - thing.y) < 0.02
            assert abs(found.radius - thing.radius) < 0.02
            left, top, right, bottom = found.box(64, 64)
            inside = coverage(thing.shape, thing.x, thing.y, thing.radius) > 0.5
            assert inside[top:bottom, left:right].sum() == inside.sum()


@pytest.mark.parametrize(("things", "caption", "label"), [
    ([RED_CIRCLE, BLUE_SQUARE], "a red circle and a blue square", "all right"),
    ([RED_CIRCLE, BLUE_SQUARE], "a blue square and a red circle", "all right"),
    ([RED_CIRCLE], "a red circle and a blue square", "object missing"),
    ([RED_CIRCLE, GREEN_STAR], "a red circle and a blue square", "object missing"),
    ([RED_CIRCLE, replace(BLUE_SQUARE, shape="cross")], "a red circle and a blue square", "object missing"),
    ([RED_CIRCLE, BLUE_SQUARE], "a blue circle and a red square", "colours swapped"),
    ([RED_CIRCLE, BLUE_SQUARE, GREEN_STAR], "a red star, a green circle and a blue square", "colours swapped"),
    ([RED_CIRCLE, BLUE_SQUARE, GREEN_STAR], "a red circle and a blue square", "something extra"),
    ([RED_CIRCLE, replace(RED_CIRCLE, x=0.7)], "a red circle", "something extra"),
    ([], "a red circle", "object missing"),
    ([RED_CIRCLE], "red", "all right"),
    ([RED_CIRCLE], "a circle", "all right"),
    ([BLUE_SQUARE], "a circle", "object missing"),
])  # fmt: skip
def test_label(things, caption, label):
    assert verdict(picture(*things), caption).label == label


def test_unreadable_things_and_grounds():
    image = picture(RED_CIRCLE)
    image[40:50, 40:50] = (0.0, 1.0, 1.0)  # no colour of the world
    assert verdict(image, "a red circle").label == "unreadable"
    wobbly = picture(RED_CIRCLE)
    wobbly[20:24, 5:60] = wobbly[20, 20]  # a circle with a bar through it is no shape
    assert verdict(wobbly, "a red circle").label == "unreadable"
    assert verdict(np.full((64, 64, 3), (0.2, 0.9, 0.9)), "a red circle").label == "unreadable"
    assert verdict(np.random.default_rng(0).random((64, 64, 3)), "a red circle").label == "unreadable"


def test_flags_of_place_size_and_ground():
    image = picture(RED_CIRCLE, BLUE_SQUARE, ground="grey")
    assert verdict(image, "a red circle left of a blue square on a gray background").complete
    assert not verdict(image, "a blue square above a red circle").placed
    assert not verdict(image, "a large red circle and a blue square").sized
    assert not verdict(image, "a red circle and a blue square on a black background").grounded
    assert verdict(image, "a large red circle and a blue square").right


def test_of_two_alike_the_one_of_the_size_asked_for_is_matched():
    small, large = replace(RED_CIRCLE, radius=0.15), replace(RED_CIRCLE, x=0.65, y=0.65, radius=0.30)
    judged = verdict(picture(small, large), "a large red circle and a small red circle")
    assert judged.complete
    assert [judged.reading.found[i].size for i in judged.matched] == ["large", "small"]


def test_pictures_that_are_not_square_are_read():
    image = np.concatenate([picture(RED_CIRCLE), picture(BLUE_SQUARE)], axis=1)
    assert verdict(image, "a red circle left of a blue square").complete
    tall = verdict(np.kron(image, np.ones((4, 4, 1))).transpose(1, 0, 2), "a red circle above a blue square")
    assert tall.complete


def test_image_of_another_layout_is_refused():
    with pytest.raises(ValueError, match=r"\[h w 3\], got \[3, 64, 64\]"):
        read(np.zeros((3, 64, 64)))


# Grammar


@pytest.mark.parametrize(("caption", "scene"), [
    ("a red circle", Scene((Wanted("red", "circle"),))),
    ("Red circle", Scene((Wanted("red", "circle"),))),
    ("a photo of an orange star", Scene((Wanted("orange", "star"),))),
    ("a big green cross", Scene((Wanted("green", "cross", "large"),))),
    ("a circle", Scene((Wanted(None, "circle"),))),
    ("a red circle left of a blue square", Scene((Wanted("red", "circle"), Wanted("blue", "square")), "left of")),
    ("a red circle, a blue star, and a green cross on a gray background",
     Scene((Wanted("red", "circle"), Wanted("blue", "star"), Wanted("green", "cross")), None, "grey")),
])  # fmt: skip
def test_parse(caption, scene):
    assert parse(caption) == scene


def test_captions_are_read_back_as_their_scene():
    for drawn, scene in pictures(300, seed=2):
        assert parse(scene.caption()) == scene
        assert scene.relation is None or scene.relation in ("left of", "above")
        assert judge(read(draw(drawn)), scene).placed


def test_training_captions_belong_to_the_grammar_and_some_are_empty():
    rng = np.random.default_rng(3)
    captions = [training_caption(random_picture(rng, 1 + i % 3), rng) for i in range(2000)]
    assert 0.07 < np.mean([not c for c in captions]) < 0.13
    for caption in filter(None, captions):
        parse(caption)


@pytest.mark.parametrize(("caption", "named"), [
    ("a red cat", "'cat'"), ("a circle red", "'red'"), ("a small", "'a small'|'small'"), ("", "''"),
    ("a red circle on a pink background", "'pink'"), ("a red circle above a star above a cross", "one object on each"),
])  # fmt: skip
def test_captions_outside_the_grammar_are_refused(caption, named):
    with pytest.raises(ValueError, match=named):
        parse(caption)


# Pictures


def test_random_pictures_keep_objects_apart_and_inside():
    for drawn, _ in pictures(300, seed=4):
        masks = [coverage(t.shape, t.x, t.y, t.radius) for t in drawn.things]
        assert np.clip(sum(masks) - 1, 0, None).sum() < 1  # pixels; corners of squares may just touch
        assert all(max(mask[[0, -1]].max(), mask[:, [0, -1]].max()) < 0.3 for mask in masks)  # of the soft edge
        assert all(any(low <= t.radius <= high for low, high in SIZES.values()) for t in drawn.things)


def test_rare_pairs_are_never_in_company_in_training():
    rng = np.random.default_rng(7)
    alone = {(t.colour, t.shape) for _ in range(600) for t in random_picture(rng, 1).things}
    company = {(t.colour, t.shape) for i in range(600) for t in random_picture(rng, 2 + i % 2).things}
    assert alone == {(c, s) for c in COLOURS for s in SHAPES}
    assert company == alone - RARE


def test_colours_are_apart_for_the_scorer():
    colours = [np.array(c, dtype=float) for c in (*COLOURS.values(), *GROUNDS.values())]
    gaps = [np.linalg.norm(a - b) for i, a in enumerate(colours) for b in colours[:i]]
    assert min(gaps) > 85


def test_relation_needs_a_clear_direction():
    assert holds("left of", RED_CIRCLE, GREEN_STAR)
    assert not holds("above", RED_CIRCLE, GREEN_STAR)
    assert not holds("left of", GREEN_STAR, RED_CIRCLE)
