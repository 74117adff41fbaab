"""Reads a picture of the things world back into things and judges it against a caption.

What differs from the ground is cut into regions; a small network (reader), trained on drawn scenes, names each.
"""
from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from .grammar import Scene, Wanted, parse
from .reader import BLOT, MIXTURE, Region, are_near, ground_of, joined, parts, regions, trained
from .world import COLOURS, GROUNDS, KINDS, OBJECTS, SIDE, WEARERS, WORN, holds

Array = np.ndarray

PLAIN = 0.9  # of the border has one colour where the ground is plain
GROUND = 45.0  # a ground is within this of one of GROUNDS, each channel 0..255
SURE = 0.5  # a name that the network gives with less probability is none
WORN_SURE = 0.7  # an animal wears nothing that has less probability: dark eyes resemble glasses

LABELS = ("all right", "thing missing", "mixture of two", "wrong colour", "something extra", "unreadable")


@dataclass(frozen=True)
class Found:
    """A thing read from a picture; its box in fractions of the picture's shorter side, the probability of its kind."""

    kind: str
    colour: str | None
    worn: str | None
    left: float
    top: float
    right: float
    bottom: float
    probability: float

    @property
    def x(self) -> float:
        """The middle of the box."""
        return (self.left + self.right) / 2

    @property
    def y(self) -> float:
        """The middle of the box."""
        return (self.top + self.bottom) / 2


@dataclass(frozen=True)
class Reading:
    """What a picture shows. ground is None where it is no plain ground of the world; blots have no name."""

    found: tuple[Found, ...]
    ground: str | None
    mixtures: int
    blots: int


@dataclass(frozen=True)
class Verdict:
    """One label of LABELS; whether a relation holds is judged apart.

    matched: for each thing asked for, the index of its like in reading.found, or None.
    placed: True where the caption names no relation, False where the label is not "all right".
    """

    label: str
    reading: Reading
    matched: tuple[int | None, ...]
    placed: bool

    @property
    def right(self) -> bool:
        """All things asked for and nothing else, wherever they are."""
        return self.label == LABELS[0]

    @property
    def complete(self) -> bool:
        """Right, and in place as the caption says."""
        return self.right and self.placed


def read(image: Array) -> Reading:
    """Reads an image [h w 3] with values 0..1, of any size."""
    return readings([image])[0]


def readings(images: Sequence[Array]) -> list[Reading]:
    """What read() gives for each image; all regions pass the network together, parts and joined regions apart."""
    scaled, grounds, cut = [_scaled(image) for image in images], [], []
    for pixels in scaled:
        ground, share = ground_of(pixels)
        name, distance = min(((name, np.linalg.norm(ground - c)) for name, c in GROUNDS.items()), key=lambda p: p[1])
        grounds.append(name if share >= PLAIN and distance <= GROUND else None)
        cut.append(regions(pixels, ground) if grounds[-1] else [])
    names = iter(_named([region for found in cut for region in found]))
    read_back = []
    for pixels, ground, found in zip(scaled, grounds, cut):
        seen = _joined(pixels, [(region, next(names)) for region in found])
        things = tuple(thing for thing in seen if isinstance(thing, Found))
        read_back.append(Reading(things, ground, seen.count(MIXTURE), seen.count(BLOT)))
    return read_back


def verdict(image: Array, wanted: Scene | str) -> Verdict:
    """Judges an image [h w 3], 0..1, against a scene or a caption of the grammar."""
    scene = parse(wanted) if isinstance(wanted, str) else wanted
    return judge(read(image), scene)


def judge(reading: Reading, scene: Scene) -> Verdict:
    """Judges what was read against a scene."""
    likes = [_match(reading.found, scene.things, fits) for fits in (_fulfils, _but_for_colour, _but_for_worn)]
    matched = likes[0]
    if reading.ground is None:
        label = "unreadable"
    elif reading.mixtures:
        label = "mixture of two"
    elif reading.blots:
        label = "unreadable"
    elif None not in matched:
        label = "all right" if len(reading.found) == len(scene.things) else "something extra"
    elif None not in likes[1]:
        label = "wrong colour"
    elif None not in likes[2]:
        label = "something extra"  # an animal wears what nobody asked for
    else:
        label = "thing missing"
    right = label == "all right"
    placed = right and (scene.relation is None
                        or holds(scene.relation, *(reading.found[i] for i in matched[:2])))
    return Verdict(label, reading, matched, placed)


def _scaled(image: Array) -> Array:
    """float32 [h w 3] in 0..255 with a shorter side of SIDE."""
    if image.ndim != 3 or image.shape[-1] != 3:
        raise ValueError(f"expected an image [h w 3], got {list(image.shape)}")
    pixels = np.clip(np.asarray(image, dtype=np.float32), 0.0, 1.0) * 255.0
    height, width = pixels.shape[:2]
    scale = SIDE / min(height, width)
    if scale == 1.0:
        return pixels
    size, filter_ = (round(width * scale), round(height * scale)), Image.Resampling.BICUBIC
    return np.stack([np.asarray(Image.fromarray(pixels[..., c]).resize(size, filter_)) for c in range(3)], axis=-1)


def _named(cut: Sequence[Region]) -> list[list[Found | int]]:
    """For each region the things that it shows, or MIXTURE or BLOT."""
    return [_parted(region, whole) for region, whole in zip(cut, _things(cut))]


def _parted(region: Region, whole: Found | int) -> list[Found | int]:
    """The things in the parts of a region, if each has a name and their mean probability is above the whole's."""
    least = whole.probability if isinstance(whole, Found) else 0.0
    for found in map(_things, parts(region)):
        if all(isinstance(one, Found) for one in found) and np.mean([one.probability for one in found]) > least:
            return found
    return [whole]


def _joined(pixels: Array, seen: list[tuple[Region, list[Found | int]]]) -> list[Found | int]:
    """What regions of pixels [h w 3] show, one without a name joined to a near one where the two show one thing.

    A thing is joined only if it remains what it is and its kind is no less probable. Each join leaves one region less.
    """
    for (first, (region, names)), (second, (piece, of_piece)) in itertools.permutations(enumerate(seen), 2):
        if of_piece == [BLOT] and len(names) == 1 and names != [MIXTURE] and are_near(region, piece):
            whole = joined(pixels, region, piece)
            (thing,) = _things([whole])
            if isinstance(thing, Found) and (names == [BLOT] or _completes(thing, names[0])):
                others = [one for index, one in enumerate(seen) if index not in (first, second)]
                return _joined(pixels, [*others, (whole, [thing])])
    return [one for _, names in seen for one in names]


def _completes(whole: Found, part: Found) -> bool:
    """Whether a thing is what its part was, and no less probable."""
    same = (whole.kind, whole.colour, whole.worn) == (part.kind, part.colour, part.worn)
    return same and whole.probability >= part.probability


def _things(cut: Sequence[Region]) -> list[Found | int]:
    """For each region the thing that it shows, or MIXTURE or BLOT."""
    if not cut:
        return []
    kinds, worn, colours = _probabilities(torch.from_numpy(np.stack([region.crop for region in cut])))
    named: list[Found | int] = []
    for region, (probability, kind), (certainty, item), (_, colour) in zip(cut, kinds, worn, colours):
        if probability < SURE or kind >= len(KINDS):
            named.append(MIXTURE if kind == MIXTURE and probability >= SURE else BLOT)
            continue
        name = KINDS[kind]
        named.append(Found(
            name, list(COLOURS)[colour] if name in OBJECTS else None,
            WORN[item] if name in WEARERS and item < len(WORN) and certainty >= WORN_SURE else None,
            region.left, region.top, region.right, region.bottom, probability,
        ))  # fmt: skip
    return named


def _probabilities(crops: torch.Tensor) -> list[list[tuple[float, int]]]:
    """Of each cut-out [n 4 CROP CROP] the likeliest kind, what is worn and the colour, each as (probability, class).

    Means over a cut-out and its mirror image, as all things may be mirrored.
    """
    with torch.inference_mode():
        views = [trained()(view) for view in (crops, crops.flip(-1))]
    means = [torch.stack(logits).softmax(-1).mean(0).max(-1) for logits in zip(*views)]
    return [list(zip(*(part.tolist() for part in mean))) for mean in means]


def _fulfils(found: Found, wanted: Wanted) -> bool:
    return _but_for_colour(found, wanted) and wanted.colour in (None, found.colour)


def _but_for_colour(found: Found, wanted: Wanted) -> bool:
    return (found.kind, found.worn) == (wanted.kind, wanted.worn)


def _but_for_worn(found: Found, wanted: Wanted) -> bool:
    """Whether it is the thing asked for and wears something though nothing was asked for."""
    return found.kind == wanted.kind and wanted.worn in (None, found.worn) and wanted.colour in (None, found.colour)


def _match(found: tuple[Found, ...], things: tuple[Wanted, ...], fits) -> tuple[int | None, ...]:
    """For each thing asked for one that was found, none twice, so that as many as can be have one."""
    options = [[i for i, f in enumerate(found) if fits(f, wanted)] + [None] for wanted in things]
    best: tuple[int | None, ...] = (None,) * len(things)
    for choice in itertools.product(*options):
        used = [i for i in choice if i is not None]
        if len(set(used)) == len(used) > sum(i is not None for i in best):
            best = choice
    return best
