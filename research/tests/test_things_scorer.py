"""The scorer of the things world: right on drawn scenes, and about pictures that are wrong."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from things import reader, scenes, train_scorer
from things.grammar import Scene, describe, parse
from things.scorer import LABELS, judge, read, readings, verdict
from things.world import GROUNDS, KINDS, OBJECTS, SIDE, STYLES, Picture, Thing

CAT = Thing("cat", None, None, 0.25, 0.3, 0.4)
CROWNED = replace(CAT, worn="crown")
CAR = Thing("car", "red", None, 0.7, 0.7, 0.4)
CLOCK = Thing("clock", "green", None, 0.75, 0.25, 0.35)


def picture(*things: Thing, style: str = "noto", ground: str = "teal") -> np.ndarray:
    return scenes.draw(Picture(things, style, ground))


def drawn(count: int, style: str, seed: int):
    """Pictures of one style with scenes that they fulfil; training has not seen them, its seed is 0."""
    rng = np.random.default_rng(seed)
    pictures = [scenes.random_picture(rng, 1 + index % 3, (style,)) for index in range(count)]
    return pictures, [describe(made, rng) for made in pictures]


@pytest.mark.parametrize("count", [100, pytest.param(500, marks=pytest.mark.nightly)])
@pytest.mark.parametrize("style", STYLES)
def test_drawn_pictures_are_read_right(style, count):
    made, wanted = drawn(count, style, seed=1001)
    judged = [judge(*pair) for pair in zip(readings([scenes.draw(p) for p in made]), wanted)]
    assert np.mean([v.complete for v in judged]) >= 0.99
    # And all that can be said of each thing, whatever the caption says.
    exact = 0
    for one, verdict_ in zip(made, judged):
        found = sorted((f.kind, f.colour, f.worn) for f in verdict_.reading.found if f.kind)
        exact += found == sorted((t.kind, t.colour, t.worn) for t in one.things)
        assert verdict_.reading.ground == one.ground
    assert exact / len(made) >= 0.985


@pytest.mark.parametrize("side", [96, 512])
def test_other_resolutions_are_read_right(side):
    made, wanted = drawn(60, "fluent", seed=side)
    judged = [verdict(scenes.draw(p, side), scene) for p, scene in zip(made, wanted)]
    assert np.mean([v.complete for v in judged]) >= 0.95


def test_noisy_drawings_are_still_read():
    rng = np.random.default_rng(5)
    made, wanted = drawn(100, "twemoji", seed=6)
    judged = [verdict(scenes.draw(p) + rng.normal(0, 0.02, (SIDE, SIDE, 3)), scene) for p, scene in zip(made, wanted)]
    assert np.mean([v.right for v in judged]) >= 0.97


def test_boxes_are_the_drawn_ones():
    made, _ = drawn(60, "emojione", seed=7)
    for one in made:
        for thing in one.things:
            found = next(f for f in read(scenes.draw(one)).found if f.kind == thing.kind)
            box = np.array(scenes.box(thing, one.style)) / SIDE
            assert np.abs(np.array([found.left, found.top, found.right, found.bottom]) - box).max() <= 4.5 / SIDE


@pytest.mark.parametrize(("things", "caption", "label"), [
    ([CAT, CAR], "a cat and a red car", "all right"),
    ([CAT, CAR], "a red car and a cat", "all right"),
    ([CAT, CAR], "a car and a cat", "all right"),
    ([CAT], "a cat and a red car", "thing missing"),
    ([CAT, CLOCK], "a cat and a red car", "thing missing"),
    ([CAT, CAR], "a cat and a blue car", "wrong colour"),
    ([CAT, CAR, CLOCK], "a cat and a red clock", "wrong colour"),
    ([CAT, CAR, CLOCK], "a cat and a red car", "something extra"),
    ([CAT, replace(CAT, x=0.7, y=0.7)], "a cat", "something extra"),
    ([], "a cat", "thing missing"),
    ([CROWNED], "a cat with a crown", "all right"),
    ([CAT], "a cat with a crown", "thing missing"),
    ([CROWNED], "a cat with a bow", "thing missing"),
    ([CROWNED], "a cat", "something extra"),
    ([CROWNED, CAR], "a cat and a red car", "something extra"),
    ([CROWNED, CAR], "a cat and a blue car", "thing missing"),
    ([CAT, CAR, replace(CAR, colour="blue", x=0.25, y=0.75, size=0.3)], "a blue car, a cat and a red car", "all right"),
])  # fmt: skip
@pytest.mark.parametrize("style", ["noto", "emojione"])
def test_label(things, caption, label, style):
    judged = verdict(picture(*things, style=style), caption)
    assert judged.label == label
    assert label in LABELS


@pytest.mark.parametrize(("at", "share"), [(0.3, 0.55), (0.75, 0.6)])
def test_most_things_in_two_pieces_are_read_as_one(at, share):
    """Drawn things cut across, the lower piece 9 pixels further down: 5 pixels of ground are left between them."""
    pictures = [Picture((Thing(kind, "red" if kind in OBJECTS else None, None, 0.5, 0.45, 0.5),), style, "teal")
                for kind in KINDS for style in STYLES]  # fmt: skip
    images = []
    for made in pictures:
        image, (_, top, _, bottom) = scenes.draw(made), scenes.box(made.things[0], made.style)
        row = int(top + at * (bottom - top))
        below = image[row:-9].copy()
        image[row:] = image[0, 0]
        image[row + 9:] = below
        images.append(image)
    whole = [([found.kind for found in one.found], one.mixtures + one.blots) == ([made.things[0].kind], 0)
             for one, made in zip(readings(images), pictures, strict=True)]  # fmt: skip
    assert np.mean(whole) > share


@pytest.mark.parametrize(("right", "down", "near"), [(12, 0, True), (13, 0, False), (8, 8, True), (9, 9, False)])
def test_near_is_measured_between_boxes(right, down, near):
    boxes = [box_alone(0.25, 0.25, 0.5, 0.5), box_alone(0.5 + right / SIDE, 0.5 + down / SIDE, 0.75, 0.75)]
    assert reader.are_near(*boxes) is reader.are_near(*reversed(boxes)) is near


def box_alone(left, top, right, bottom) -> reader.Region:
    nothing = np.zeros((1, 1))
    return reader.Region(left, top, right, bottom, nothing, nothing, nothing, nothing)


def test_most_of_what_lies_beside_a_thing_is_not_joined_to_it():
    """A square 6 pixels from a thing's box is something else."""
    rng, images = np.random.default_rng(5), []
    for number in range(100):
        thing = replace(scenes.random_thing(rng, []), x=0.4, y=0.5, size=0.5)
        made = Picture((thing,), STYLES[number % 4], "teal")
        image, (_, _, right, _) = scenes.draw(made), scenes.box(thing, made.style)
        image[58:69, right + 6:right + 17] = number % 2
        images.append(image)
    assert np.mean([reading.blots == 1 for reading in readings(images)]) > 0.8


@pytest.mark.parametrize(("apart", "pieces", "share"), [(0.42, 2, 0.9), (0.38, 1, 0.6)], ids=["close", "touching"])
def test_most_things_that_lie_close_or_touch_are_read_apart(apart, pieces, share):
    """apart: of the middles of two things, in sides. One region, whose pixels off the ground are so many pieces."""
    rng, right = np.random.default_rng(11), []
    for index in range(160):
        first = scenes.random_thing(rng)
        both = (first, 0.5 - apart / 2), (scenes.random_thing(rng, [first]), 0.5 + apart / 2)
        made = Picture(tuple(replace(thing, x=x, size=0.4) for thing, x in both), STYLES[index % 4], "teal")
        image = scenes.draw(made)
        found = reader.regions(image * 255, np.float32(GROUNDS["teal"]))
        if len(found) == 1 and ndimage.label(found[0].marked, np.ones((3, 3)))[1] == pieces:
            right.append(judge(read(image), describe(made, np.random.default_rng(index))).right)
    assert len(right) >= 30
    assert np.mean(right) >= share, np.mean(right)


def test_matched_things_and_their_places():
    image = picture(CAT, CAR)
    judged = verdict(image, "a cat left of a red car")
    assert judged.complete
    assert [judged.reading.found[i].kind for i in judged.matched] == ["cat", "car"]
    turned = verdict(image, "a red car left of a cat")
    assert turned.right
    assert not turned.placed
    assert verdict(picture(replace(CAR, x=0.7, y=0.2), CAT), "a cat and a red car").matched.count(None) == 0


@pytest.mark.parametrize(("make", "called"), [(train_scorer.mixture, 0.7), (train_scorer.blot, 0.65)])
def test_mixtures_and_blots_are_seldom_taken_for_things(make, called):
    """Of blots, two things that touch are mostly called a mixture."""
    rng, seen = np.random.default_rng(2001), []
    for index in range(200):
        made = make(rng, STYLES[index % 4], 60)
        image = np.full((SIDE, SIDE, 3), GROUNDS["lime"], np.float32)
        area = image[30:30 + len(made), 30:30 + len(made)]
        area *= 1 - made[..., 3:] / 255
        area += made[..., :3]
        if len(reader.regions(image, image[0, 0])) == 1:
            seen.append(read(image / 255))
    assert len(seen) > 100
    assert np.mean([bool(reading.found) for reading in seen]) <= 0.1
    right = [reading.mixtures if make is train_scorer.mixture else reading.blots for reading in seen]
    assert np.mean(right) >= called


def test_grounds_that_are_not_plain_or_not_of_the_world_are_unreadable():
    assert verdict(np.full((SIDE, SIDE, 3), (0.9, 0.2, 0.2)), "a cat").label == "unreadable"
    assert verdict(np.random.default_rng(0).random((SIDE, SIDE, 3)), "a cat").label == "unreadable"
    image = picture(CAT)
    image[:, 64:] = np.array(GROUNDS["navy"]) / 255
    assert verdict(image, "a cat").label == "unreadable"


def test_image_of_another_layout_is_refused():
    with pytest.raises(ValueError, match=r"\[h w 3\], got \[3, 128, 128\]"):
        read(np.zeros((3, SIDE, SIDE)))


def test_judging_needs_no_picture():
    reading = read(picture(CAT, CAR))
    assert judge(reading, parse("a cat and a red car")).right
    assert judge(replace(reading, mixtures=1), parse("a cat and a red car")).label == "mixture of two"
    assert judge(replace(reading, blots=1), parse("a cat and a red car")).label == "unreadable"
    assert judge(replace(reading, ground=None), Scene(())).label == "unreadable"


# Training


def test_examples_depend_on_seed_and_round_alone(monkeypatch):
    monkeypatch.setattr(train_scorer, "SCENES", 6)
    monkeypatch.setattr(train_scorer, "WRONG", 6)
    (crops, labels), (again, _), (later, _) = (train_scorer.examples(3, number) for number in (7, 7, 8))
    assert np.array_equal(crops, again)
    assert crops.shape != later.shape or not np.array_equal(crops, later)
    assert len(crops) == len(labels)


class Redrawer:
    """Leaves only the ground of pictures, or all of them; recognises all things, or none."""

    def __init__(self, erases: bool, recognising: bool):
        self.erases, self.recognising, self.counts = erases, recognising, []

    def redrawn(self, images, *_):
        self.counts.append(len(images))
        return images[:, :1, :1] + 0 * images if self.erases else images

    def recognises(self, *_):
        return self.recognising


def test_every_second_picture_is_redrawn(monkeypatch):
    """Of pictures of the ground alone nothing can be cut out."""
    monkeypatch.setattr(train_scorer, "SCENES", 6)
    monkeypatch.setattr(train_scorer, "WRONG", 8)
    redrawer = Redrawer(erases=True, recognising=True)
    every, others = (train_scorer.scene_examples(np.random.default_rng(3), 0.0, one) for one in (None, redrawer))
    cut_out = [crop.tobytes() for crop, _ in every]
    kept = [cut_out.index(crop.tobytes()) for crop, _ in others]
    assert kept == [1, 2, 6, 9, 10, 11]  # of pictures with one, two, three, one, two and three things
    assert len(train_scorer.wrong_examples(np.random.default_rng(3), redrawer)) == 4
    assert redrawer.counts == [3, 4]


def test_redrawn_things_that_are_not_recognised_are_left_out(monkeypatch):
    """Those of the style that the model does not know are not redrawn, and stay."""
    monkeypatch.setattr(train_scorer, "SCENES", 40)
    doubting = Redrawer(erases=False, recognising=False)
    every, known = (train_scorer.scene_examples(np.random.default_rng(3), 0.0, one) for one in (None, doubting))
    monkeypatch.setattr(train_scorer, "HELD_OUT", None)
    none_known = train_scorer.scene_examples(np.random.default_rng(3), 0.0, doubting)
    assert 0 < len(none_known) < len(known) < len(every)


def test_a_drawn_cat_is_recognised_as_a_cat_only():
    picture = scenes.arrange(np.random.default_rng(0), [Thing("cat", None, None, 0.5, 0.5, 0.4, False)], STYLES[0])
    ((region, _),) = train_scorer.found_in(picture, scenes.draw(picture) * 255)
    redrawer = train_scorer.Redrawer(None, reader.trained())
    assert [redrawer.recognises(region.crop, KINDS.index(kind)) for kind in ("cat", "dog")] == [True, False]


def test_learning_rate_falls_to_zero_in_each_phase():
    ends = train_scorer.PHASES[1:]
    assert all(train_scorer.rate_at(end - 1) < 1e-4 * train_scorer.RATE for end in ends)
    assert all(train_scorer.rate_at(end) == train_scorer.RATE / 2 for end in ends[:-1])


def test_weights_are_small():
    assert reader.WEIGHTS.stat().st_size < 2e6
