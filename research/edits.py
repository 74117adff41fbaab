"""The edits of pictures that are counted: drawn pictures, what is to change in each, and how the result is judged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

import shapes.scorer
import things.scorer
from authors_edits import ANIMAL_TO_GOAT, CAT_TO_DOG, HORSE_TO_ZEBRA, Edit
from shapes.cases import MARGIN, ObjectCase
from shapes.cases import cases as shapes_cases
from shapes.drawing import draw as draw_shapes
from things.grammar import Scene, Wanted, wanted_of
from things.scenes import arrange, box, random_thing
from things.scenes import draw as draw_things
from things.world import HELD_OUT, SIDE, WEARERS, Thing

UNASKED = float("nan")  # a mark of a picture to which the question does not apply


@dataclass(frozen=True)
class Case:
    """A drawn picture [h w 3] and what is to change in it.

    before, after: captions of the picture and of what it is to become. added, removed: texts of the change.
    outside [h w]: where nothing is to change. marks(image): 1 or 0 for each mark of its kind, or UNASKED.
    """

    image: np.ndarray
    before: str
    after: str
    added: str
    removed: str
    outside: np.ndarray
    marks: Callable[[np.ndarray], Sequence[float]]


@dataclass(frozen=True)
class EditKind:
    """One kind of edit. authors: the edit of the paper whose numbers are tried as they are, and these numbers."""

    cases: Callable[[int, int], list[Case]]
    marks: Sequence[str]
    authors: tuple[str, Edit]


_DOG, _ZEBRA, _GOAT = ("cat -> dog", CAT_TO_DOG), ("horse -> zebra", HORSE_TO_ZEBRA), ("animal -> goat", ANIMAL_TO_GOAT)


def _shapes(count: int, seed: int) -> list[Case]:
    """One object on a plain ground, and another of a different colour and any shape in its place."""
    return [
        Case(draw_shapes(case.picture), case.caption(case.old), case.caption(case.new), " ".join(case.new),
             " ".join(case.old), case.background(), partial(_shapes_marks, case))
        for case in shapes_cases(count, seed)
    ]  # fmt: skip


def _shapes_marks(case: ObjectCase, image: np.ndarray) -> Sequence[float]:
    reading = shapes.scorer.read(image)
    shown = [(found.colour, found.shape) for found in reading.found]
    new, gone = case.new in shown, case.old not in shown
    return new, gone, new and gone, shown == [case.new] and reading.clear


def _things(olds: Sequence[Wanted], new: Wanted, count: int, seed: int) -> list[Case]:
    """One of `olds` in the style that no model has seen, in every second picture with another thing beside it."""
    rng, made = np.random.default_rng(seed), []
    for number in range(count):
        old = olds[rng.integers(len(olds))]
        thing, absent = (_thing(wanted, mirrored=bool(rng.random() < 0.5)) for wanted in (old, new))
        others = [random_thing(rng, [thing, absent])] if number % 2 else []
        picture = arrange(rng, [thing, *others], HELD_OUT)
        rest = tuple(map(wanted_of, others))
        before, after = (Scene((wanted, *rest)) for wanted in (old, new))
        outside = np.ones((SIDE, SIDE), bool)
        left, top, right, bottom = box(picture.things[0], HELD_OUT)
        outside[max(top - MARGIN, 0):bottom + MARGIN, max(left - MARGIN, 0):right + MARGIN] = False
        made.append(Case(draw_things(picture), before.caption(), after.caption(), new.words(), old.words(), outside,
                         partial(_things_marks, old, after)))  # fmt: skip
    return made


def _thing(wanted: Wanted, mirrored: bool) -> Thing:
    return Thing(wanted.kind, wanted.colour, wanted.worn, 0.5, 0.5, 0.5, mirrored)


def _things_marks(old: Wanted, after: Scene, image: np.ndarray) -> Sequence[float]:
    reading = things.scorer.read(image)
    shown = list(map(wanted_of, reading.found))
    new, *others = after.things
    stayed = all(other in shown for other in others) if others else UNASKED
    return new in shown and old not in shown, stayed, things.scorer.judge(reading, after).right


def _of_things(olds: Sequence[str], new: Wanted, authors: tuple[str, Edit]) -> EditKind:
    marks = ("changed as asked", "the other thing still there", "all right")
    return EditKind(partial(_things, [Wanted(old) for old in olds], new), marks, authors)


OBJECT = {"object": EditKind(_shapes, ("new there", "old gone", "both", "both, and nothing else"), _DOG)}
#: The paper's edits. Its numbers for glasses are not known; those of animal -> goat, which also only adds, are tried.
PAPER = {
    "cat_to_dog": _of_things(["cat"], Wanted("dog"), _DOG),
    "cat_with_glasses": _of_things(["cat"], Wanted("cat", worn="glasses"), _GOAT),
    "horse_to_zebra": _of_things(["horse"], Wanted("zebra"), _ZEBRA),
    "animal_to_goat": _of_things(WEARERS, Wanted("goat"), _GOAT),
}
