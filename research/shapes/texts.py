"""What methods are told of a scene: texts of it and of its objects, and words of its caption."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from .grammar import Scene, Wanted


def _turned(scene: Scene) -> list[str]:
    """The caption with its objects in each other cyclic order."""
    objects = scene.objects
    return [_only(scene, objects[i:] + objects[:i]) for i in range(1, len(objects))]


def _ten_names(scene: Scene) -> list[str]:
    """Ten concepts, as a long list has them: the objects, and further names of the same objects."""
    names = [wanted.words() for wanted in scene.objects]
    bare = [wanted.words(article=False) for wanted in scene.objects]
    return [*names, *bare, *(f"one {name}" for name in bare), *(f"the {name}" for name in bare)][:10]


def _less_one(scene: Scene) -> list[str]:
    """The caption without one object, for each."""
    objects = scene.objects
    return [_only(scene, objects[:i] + objects[i + 1:]) for i in range(len(objects))]


def _only(scene: Scene, objects: tuple[Wanted, ...]) -> str:
    return replace(scene, objects=objects, relation=None).caption()


TEXTS: dict[str, Callable[[Scene], list[str]]] = {
    "objects": lambda scene: [wanted.words() for wanted in scene.objects],
    "shapes": lambda scene: [Wanted(shape=wanted.shape).words() for wanted in scene.objects],
    "orders": _turned,
    "all but one": _less_one,
    "ten": _ten_names,
    "nothing": lambda scene: [""],
}
WORDS: dict[str, Callable[[Scene], Sequence[str]]] = {
    "colours": lambda scene: [wanted.colour for wanted in scene.objects],
    "shapes": lambda scene: [wanted.shape for wanted in scene.objects],
    "content": lambda scene: [word for wanted in scene.objects for word in (wanted.colour, wanted.shape)],
    "names": lambda scene: [wanted.words(article=False) for wanted in scene.objects],
    "last object": lambda scene: [scene.objects[-1].words(article=False)],
    "words": lambda scene: scene.caption().replace(",", "").split(),
}
