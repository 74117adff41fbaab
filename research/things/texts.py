"""What methods are told of a scene: texts of its things, and words of its caption.

What an animal wears is a thing of its own here, as in Attend-and-Excite: "a cat with a glasses" has a cat and glasses.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from .grammar import Scene, Wanted


def apart(scene: Scene) -> list[Wanted]:
    """The things that a caption names, each by itself."""
    named = []
    for wanted in scene.things:
        named += [replace(wanted, worn=None), *([Wanted(wanted.worn)] if wanted.worn else [])]
    return named


TEXTS: dict[str, Callable[[Scene], list[str]]] = {
    "objects": lambda scene: [wanted.words() for wanted in apart(scene)],
    "nothing": lambda scene: [""],
}
WORDS: dict[str, Callable[[Scene], Sequence[str]]] = {
    "nouns": lambda scene: [wanted.kind for wanted in apart(scene)],
    "content": lambda scene: [word for wanted in apart(scene) for word in (wanted.colour, wanted.kind) if word],
    "names": lambda scene: [wanted.words(article=False) for wanted in apart(scene)],
    "words": lambda scene: scene.caption().replace(",", "").split(),
}
