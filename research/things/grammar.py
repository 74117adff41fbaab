"""Captions of the things world: what a caption asks for, captions from pictures, and captions read back.

    caption  = [ "a photo of" | "a drawing of" | "a picture of" ] things
    things   = thing | thing relation thing | thing "and" thing | thing "," thing "and" thing
    thing    = article animal [ "with" article ( "glasses" | "bow" | "crown" ) ] | article [ colour ] object
    article  = [ "a" | "an" ]
    relation = "left of" | "above"

All 276 prompts of Attend-and-Excite are captions of it; as they do, a caption says "a elephant" and "a glasses".
"""
from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from .world import COLOURS, KINDS, OBJECTS, WEARERS, WORN, Picture, holds

RELATIONS = ("left of", "above")
PREFIXES = ("a photo of", "a drawing of", "a picture of")
WORDS: tuple[str, ...] = (
    "a", "an", "and", ",", "with", "left", "of", "above", "photo", "drawing", "picture", *COLOURS, "grey", *KINDS,
)


@dataclass(frozen=True)
class Wanted:
    """A thing that a caption asks for; None leaves the colour open, and asks for an animal that wears nothing."""

    kind: str
    colour: str | None = None
    worn: str | None = None

    def words(self, article: bool = True, an: bool = False) -> str:
        """E.g. "a green clock", "a cat with a glasses"; an: "an elephant", where English wants that."""
        phrase = " ".join(word for word in (self.colour, self.kind) if word)
        phrase = f"{phrase} with a {self.worn}" if self.worn else phrase
        if not article:
            return phrase
        return ("an " if an and phrase[0] in "aeiou" else "a ") + phrase


@dataclass(frozen=True)
class Scene:
    """What a caption asks for. A relation holds between the first two things."""

    things: tuple[Wanted, ...]
    relation: str | None = None

    def caption(self, article: bool = True, prefix: str = "", an: bool = False) -> str:
        """The caption that parse() reads back as this scene."""
        phrases = [wanted.words(article, an) for wanted in self.things]
        if self.relation:
            text = f"{phrases[0]} {self.relation} {phrases[1]}"
        else:
            text = " and ".join(filter(None, [", ".join(phrases[:-1]), phrases[-1]]))
        return " ".join(part for part in (prefix, text) if part)


def parse(caption: str) -> Scene:
    """The scene that a caption of the grammar asks for. ValueError names what it does not understand."""
    text = " ".join(re.findall(r"[a-z]+|,", caption.lower()))
    text = re.sub(r"^a (photo|drawing|picture) of ", "", text)
    relation = next((r for r in RELATIONS if f" {r} " in text), None)
    parts = text.split(f" {relation} ") if relation else re.split(r" (?:, and|,|and) ", text)
    if relation and len(parts) != 2:
        raise ValueError(f"'{caption}': '{relation}' needs one thing on each side")
    return Scene(tuple(_wanted(part, caption) for part in parts), relation)


def _wanted(phrase: str, caption: str) -> Wanted:
    what, _, worn = phrase.partition(" with ")
    *before, kind = re.sub(r"^an? ", "", what).split() or [""]
    colour = {"grey": "gray"}.get(before[0], before[0]) if before else None
    worn = re.sub(r"^an? ", "", worn) or None
    if kind not in KINDS:
        raise ValueError(f"'{kind}' in '{caption}': expected one of {', '.join(KINDS)}")
    if before and (len(before) > 1 or colour not in COLOURS or kind not in OBJECTS):
        raise ValueError(f"'{' '.join(before)}' in '{caption}': expected one of {', '.join(COLOURS)}, and an object")
    if worn and (worn not in WORN or kind not in WEARERS):
        raise ValueError(f"'with {worn}' in '{caption}': expected an animal with one of {', '.join(WORN)}")
    return Wanted(kind, colour, worn)


def wanted_of(thing) -> Wanted:
    """All that a caption can say of a thing: of anything with a kind, a colour and what it wears."""
    return Wanted(thing.kind, thing.colour, thing.worn)


def describe(picture: Picture, rng: np.random.Generator) -> Scene:
    """A scene that the picture fulfils: things in random order, now and then a relation, or no colours."""
    things = [picture.things[i] for i in rng.permutation(len(picture.things))]
    relation = None
    if len(things) == 2 and rng.random() < 0.4:
        relation = next((r for r in RELATIONS if holds(r, *things)), None)
    bare = rng.random() < 0.1
    return Scene(tuple(Wanted(t.kind, None if bare else t.colour, t.worn) for t in things), relation)


def training_caption(picture: Picture, rng: np.random.Generator) -> str:
    """A caption for training: mostly the grammar's full form, else words alone, a prefix, or nothing (for guidance)."""
    draw = rng.random()
    if draw < 0.10:
        return ""
    scene = describe(picture, rng)
    an = bool(rng.random() < 0.3)
    if len(scene.things) == 1 and draw < 0.18:  # "red", "a cat": words that edits use on their own
        (thing,) = scene.things
        parts = [word for word in (thing.colour, thing.worn) if word]
        if parts and rng.random() < 0.5:
            return str(parts[rng.integers(len(parts))])
        return scene.caption(article=rng.random() < 0.5, an=an)
    prefix = PREFIXES[rng.integers(len(PREFIXES))] if rng.random() < 0.1 else ""
    caption = scene.caption(article=bool(prefix) or rng.random() < 0.85, prefix=prefix, an=an)
    return caption.replace("gray", "grey") if rng.random() < 0.2 else caption
