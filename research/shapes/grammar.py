"""Captions of the shapes world: what a caption asks for, captions from pictures, and captions read back.

    caption  = [ "a photo of" | "a drawing of" | "a picture of" ] objects [ "on a" ground "background" ]
    objects  = object | object relation object | object "and" object | object "," object "and" object
    object   = [ "a" | "an" ] [ "small" | "large" | "big" ] [ colour ] [ shape ]      (a colour or a shape at least)
    relation = "left of" | "above"
"""
from __future__ import annotations

import re
from dataclasses import dataclass, replace

import numpy as np

from .world import COLOURS, GROUNDS, SHAPES, Picture, Thing, holds

RELATIONS = ("left of", "above")
PREFIXES = ("a photo of", "a drawing of", "a picture of")
SIZE_WORDS = {"small": "small", "large": "large", "big": "large"}
WORDS: tuple[str, ...] = (
    "a", "an", "and", ",", "on", "background", "left", "of", "above", "photo", "drawing", "picture",
    *SIZE_WORDS, *COLOURS, *SHAPES, *GROUNDS, "gray",
)


@dataclass(frozen=True)
class Wanted:
    """An object that a caption asks for; None leaves that open."""

    colour: str | None = None
    shape: str | None = None
    size: str | None = None

    def words(self, article: bool = True) -> str:
        """E.g. "a large red circle"."""
        phrase = " ".join(word for word in (self.size, self.colour, self.shape) if word)
        if not article:
            return phrase
        return ("an " if phrase[0] in "aeiou" else "a ") + phrase


@dataclass(frozen=True)
class Scene:
    """What a caption asks for. A relation holds between the first two objects."""

    objects: tuple[Wanted, ...]
    relation: str | None = None
    ground: str | None = None

    def caption(self, article: bool = True, prefix: str = "") -> str:
        """The caption that parse() reads back as this scene."""
        phrases = [wanted.words(article) for wanted in self.objects]
        if self.relation:
            text = f"{phrases[0]} {self.relation} {phrases[1]}"
        else:
            text = " and ".join(filter(None, [", ".join(phrases[:-1]), phrases[-1]]))
        ground = f"on a {self.ground} background" if self.ground else ""
        return " ".join(part for part in (prefix, text, ground) if part)


def parse(caption: str) -> Scene:
    """The scene that a caption of the grammar asks for. ValueError names what it does not understand."""
    text = " ".join(re.findall(r"[a-z]+|,", caption.lower()))
    text = re.sub(r"^a (photo|drawing|picture) of ", "", text)
    ground = None
    found = re.search(r" ?on a (\w+) background$", text)
    if found:
        ground = {"gray": "grey"}.get(found[1], found[1])
        if ground not in GROUNDS:
            raise ValueError(f"background '{found[1]}' in '{caption}': expected one of {', '.join(GROUNDS)}")
        text = text[:found.start()]
    relation = next((r for r in RELATIONS if f" {r} " in text), None)
    parts = text.split(f" {relation} ") if relation else re.split(r" (?:, and|,|and) ", text)
    if relation and len(parts) != 2:
        raise ValueError(f"'{caption}': '{relation}' needs one object on each side")
    return Scene(tuple(_wanted(part, caption) for part in parts), relation, ground)


def _wanted(phrase: str, caption: str) -> Wanted:
    wanted = Wanted()
    for word in re.sub(r"^an? ", "", phrase).split():
        if word in SIZE_WORDS and not (wanted.size or wanted.colour or wanted.shape):
            wanted = replace(wanted, size=SIZE_WORDS[word])
        elif word in COLOURS and not (wanted.colour or wanted.shape):
            wanted = replace(wanted, colour=word)
        elif word in SHAPES and not wanted.shape:
            wanted = replace(wanted, shape=word)
        else:
            raise ValueError(f"'{word}' in '{caption}': expected [size] [colour] [shape] in this order")
    if not (wanted.colour or wanted.shape):
        raise ValueError(f"'{phrase}' in '{caption}': expected a colour or a shape")
    return wanted


def describe(picture: Picture, rng: np.random.Generator) -> Scene:
    """A scene that the picture fulfils: objects in random order, sizes, relation and ground named now and then."""
    things = [picture.things[i] for i in rng.permutation(len(picture.things))]
    relation = None
    if len(things) == 2 and rng.random() < 0.5:
        relation = next((r for r in RELATIONS if holds(r, *things)), None)
    objects = tuple(Wanted(t.colour, t.shape, _size_word(t, rng)) for t in things)
    return Scene(objects, relation, picture.ground if rng.random() < 0.4 else None)


def _size_word(thing: Thing, rng: np.random.Generator) -> str | None:
    return thing.size if thing.size in SIZE_WORDS and rng.random() < 0.5 else None


def training_caption(picture: Picture, rng: np.random.Generator) -> str:
    """A caption for training: mostly the grammar's full form, else words alone, a prefix, or nothing (for guidance)."""
    draw = rng.random()
    if draw < 0.10:
        return ""
    scene = describe(picture, rng)
    if len(scene.objects) == 1 and draw < 0.18:  # "red", "a circle": words that edits use on their own
        part = Wanted(scene.objects[0].colour) if rng.random() < 0.5 else Wanted(shape=scene.objects[0].shape)
        return Scene((part,), None, scene.ground).caption(article=rng.random() < 0.5)
    prefix = str(rng.choice(PREFIXES)) if rng.random() < 0.1 else ""
    caption = scene.caption(article=bool(prefix) or rng.random() < 0.85, prefix=prefix)
    return caption.replace("large", "big") if rng.random() < 0.2 else caption
