"""The things world: its drawings, scenes and captions. Pure numpy, no model."""

import json
from pathlib import Path

import numpy as np
import pytest

from things import drawings, grammar, scenes
from things.drawings import CELL, COLUMNS, SHEET, coloured, drawing, plain
from things.grammar import Scene, Wanted, describe, parse, training_caption
from things.world import (
    ANIMALS,
    COLOURS,
    GROUNDS,
    HELD_OUT,
    KINDS,
    OBJECTS,
    SIDE,
    SIZES,
    STYLES,
    TRAINED,
    WEARERS,
    WORN,
    Picture,
    Thing,
)

PROMPTS = json.loads((Path(scenes.__file__).parents[1] / "data" / "attend_and_excite_prompts.json").read_text())


def pictures(count: int, seed: int = 0, styles=STYLES):
    rng = np.random.default_rng(seed)
    for index in range(count):
        picture = scenes.random_picture(rng, 1 + index % 3, styles)
        yield picture, describe(picture, rng)


# Drawings


def test_the_sheet_is_small_and_no_drawing_is_empty_or_twice_there():
    assert SHEET.stat().st_size < 1e6
    assert drawings._sheet().shape == (len(STYLES) * CELL, COLUMNS * CELL, 4)
    seen = [plain(kind, style) for kind in KINDS for style in STYLES]
    assert all((cell[..., 3] > 128).mean() > 0.12 for cell in seen)
    assert len({cell.tobytes() for cell in seen}) == len(seen)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("kind", OBJECTS)
def test_an_object_takes_each_colour_and_keeps_the_rest(kind, style):
    drawn = plain(kind, style)
    paint, opaque = drawings._cell(style, len(KINDS) + OBJECTS.index(kind))[..., 0], drawn[..., 3] == 255
    assert ((paint == 255) & opaque).sum() > 250
    targets = np.array(list(COLOURS.values()), float)
    for index, colour in enumerate(COLOURS):
        found = coloured(kind, style, colour)
        assert np.array_equal(found[paint == 0], drawn[paint == 0])
        assert np.array_equal(found[..., 3], drawn[..., 3])
        shades, counts = np.unique(found[(paint == 255) & opaque][:, :3] // 8, axis=0, return_counts=True)
        frequent = shades[counts >= 0.15 * counts.sum()] * 8.0 + 4
        assert index in np.linalg.norm(frequent[:, None] - targets, axis=-1).argmin(-1)


def test_what_an_animal_wears_lies_on_it_and_hides_less_than_half_of_it():
    quarter = slice(CELL // 2, -CELL // 2)
    for style in STYLES:
        for kind in WEARERS:
            bare = plain(kind, style)
            for worn in WORN:
                dressed = np.asarray(drawings._dressed(kind, style, worn))
                changed = (dressed[quarter, quarter] != bare).any(-1)
                assert 0 < changed[bare[..., 3] == 255].mean() < 0.5
                assert drawing(kind, style, None, worn).width <= 1.3 * drawing(kind, style).width
    with pytest.raises(ValueError, match="no car in red with crown"):
        drawing("car", "noto", "red", "crown")
    with pytest.raises(ValueError, match="no cat in red with nothing"):
        drawing("cat", "noto", "red")


# Pictures


def test_pictures_depend_on_the_seed_alone():
    first, again, other = ([scenes.draw(p) for p, _ in pictures(6, seed)] for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(first, again))
    assert not all(np.array_equal(a, b) for a, b in zip(first, other))


def test_things_lie_apart_inside_and_in_their_boxes():
    for picture, _ in pictures(300, seed=3):
        boxes = [scenes.box(thing, picture.style) for thing in picture.things]
        marked = np.abs(scenes.draw(picture) * 255 - GROUNDS[picture.ground]).max(-1) > 2
        for thing, (left, top, right, bottom) in zip(picture.things, boxes):
            assert min(left, top) >= 2
            assert max(right, bottom) <= SIDE - 2
            low, high = SIZES[len(boxes)]
            assert low <= thing.size <= high
            assert marked[top:bottom, left:right].mean() > 0.1
            marked[top:bottom, left:right] = False
        assert not marked.any()
        for i, (l1, t1, r1, b1) in enumerate(boxes):
            for l2, t2, r2, b2 in boxes[:i]:
                assert max(l1 - r2, l2 - r1, t1 - b2, t2 - b1) >= 4


def test_a_mirrored_thing_is_the_mirror_image_and_larger_pictures_are_alike():
    thing = Thing("car", "red", None, 0.5, 0.5, 0.5)
    plain_one = scenes.draw(Picture((thing,), "noto", "teal"))
    mirrored = scenes.draw(Picture((Thing("car", "red", None, 0.5, 0.5, 0.5, True),), "noto", "teal"))
    assert not np.array_equal(plain_one, mirrored)
    assert np.array_equal(plain_one, mirrored[:, ::-1])
    large = scenes.draw(Picture((thing,), "noto", "teal"), 256)
    halved = large.reshape(128, 2, 128, 2, 3).mean((1, 3))
    assert np.abs(halved - plain_one).mean() < 0.01


def test_random_pictures_show_everything_and_training_none_of_the_style_held_out():
    rng = np.random.default_rng(5)
    drawn = [scenes.random_picture(rng, 1 + i % 3) for i in range(3000)]
    things = [thing for picture in drawn for thing in picture.things]
    assert {picture.style for picture in drawn} == set(TRAINED) == set(STYLES) - {HELD_OUT}
    assert {picture.ground for picture in drawn} == set(GROUNDS)
    objects = {(kind, colour) for kind in OBJECTS for colour in COLOURS}
    assert {(t.kind, t.colour) for t in things} == objects | {(kind, None) for kind in ANIMALS}
    assert {(t.kind, t.worn) for t in things if t.worn} == {(k, w) for k in WEARERS for w in WORN}
    for picture in drawn:
        names = [name for thing in picture.things for name in (thing.kind, thing.worn) if name]
        assert len(set(names)) == len(names)


def test_a_colour_is_no_ground_nor_another_colour():
    known = np.array([*COLOURS.values(), *GROUNDS.values()], float)
    gaps = np.linalg.norm(known[:, None] - known[None], axis=-1)
    assert gaps[~np.eye(len(known), dtype=bool)].min() > 40


# Grammar


def test_all_prompts_of_attend_and_excite_are_captions():
    prompts = [prompt for split in PROMPTS["prompts"].values() for prompt in split]
    assert len(prompts) == 276
    assert [parse(prompt).caption() for prompt in prompts] == prompts


@pytest.mark.parametrize(("caption", "scene"), [
    ("a cat", Scene((Wanted("cat"),))),
    ("A cat with glasses", Scene((Wanted("cat", None, "glasses"),))),
    ("a photo of an elephant with a bow", Scene((Wanted("elephant", None, "bow"),))),
    ("a horse and a green clock", Scene((Wanted("horse"), Wanted("clock", "green")))),
    ("a grey bow above a dog", Scene((Wanted("bow", "gray"), Wanted("dog")), "above")),
    ("car", Scene((Wanted("car"),))),
    ("a lion with a crown, an orange car, and a goat",
     Scene((Wanted("lion", None, "crown"), Wanted("car", "orange"), Wanted("goat")))),
])  # fmt: skip
def test_parse(caption, scene):
    assert parse(caption) == scene


def test_captions_are_read_back_as_their_scene():
    for _, scene in pictures(300, seed=2):
        assert parse(scene.caption()) == parse(scene.caption(an=True, prefix="a photo of")) == scene


def test_training_captions_belong_to_the_grammar_and_some_are_empty():
    rng = np.random.default_rng(3)
    captions = [training_caption(picture, rng) for picture, _ in pictures(2000)]
    assert 0.07 < np.mean([not c for c in captions]) < 0.13
    words = {word for caption in captions for word in caption.replace(",", " ,").split()}
    assert words == set(grammar.WORDS)
    for caption in filter(None, captions):
        assert caption in (*COLOURS, "grey") or parse(caption)


@pytest.mark.parametrize(("caption", "named"), [
    ("a red cat", "'red'"), ("a cup", "'cup'"), ("a green big clock", "'green big'"), ("", "''"),
    ("a car with a crown", "with crown"), ("a cat with a clock", "with clock"), ("a zebra with a bow", "with bow"),
    ("a cat above a dog above a car", "one thing on each"),
])  # fmt: skip
def test_captions_outside_the_grammar_are_refused(caption, named):
    with pytest.raises(ValueError, match=named):
        parse(caption)
