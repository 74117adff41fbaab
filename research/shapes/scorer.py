"""Reads a picture back into objects and judges it against a caption. Nothing here is learned.

A pixel that comes close to a colour of the world belongs to an object of that colour; connected pixels are one object;
its shape is the one whose drawing, with the same area and centre, overlaps it best.
"""
from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image
from scipy import ndimage

from .drawing import coverage
from .grammar import Scene, Wanted, parse
from .world import COLOURS, GROUNDS, SHAPES, SIDE, holds, size_of

Array = np.ndarray

# Distances between colours, each channel 0..255.
PURE = 55.0  # a pixel of an object is within this of the object's colour
MARK = 60.0  # a pixel further than this from the ground is not ground
GROUND = 50.0  # the ground is within this of white, grey or black
AREA = 14  # pixels (of SIDE x SIDE) that make an object, or a blot
OVERLAP = 0.72  # overlap (of a soft intersection with its union) that makes a shape

LABELS = ("all right", "object missing", "colours swapped", "something extra", "unreadable")


@dataclass(frozen=True)
class Found:
    """An object read from a picture. x, y and radius are fractions of the shorter side, as in Thing."""

    colour: str
    shape: str
    x: float
    y: float
    radius: float
    overlap: float  # with the drawing of this shape, 0..1

    @property
    def size(self) -> str:
        """small, medium or large."""
        return size_of(self.radius)

    def box(self, height: int, width: int) -> tuple[int, int, int, int]:
        """left, top, right, bottom in pixels of a height x width picture, all of the object inside."""
        side, reach = min(height, width), 1.05 * self.radius
        left, top = int((self.x - reach) * side), int((self.y - reach) * side)
        right, bottom = int(np.ceil((self.x + reach) * side)), int(np.ceil((self.y + reach) * side))
        return max(left, 0), max(top, 0), min(right, width), min(bottom, height)


@dataclass(frozen=True)
class Reading:
    """What a picture shows. ground is None where it is no ground of the world; blots are things without a name."""

    found: tuple[Found, ...]
    ground: str | None
    blots: int

    @property
    def clear(self) -> bool:
        """Whether everything could be read."""
        return self.ground is not None and not self.blots


@dataclass(frozen=True)
class Verdict:
    """One label of LABELS, on colours and shapes alone; the rest of the caption in the three flags.

    matched: for each object asked for, the index of its like in reading.found, or None.
    The flags are True where the caption does not ask, False where the label is not "all right".
    """

    label: str
    reading: Reading
    matched: tuple[int | None, ...]
    placed: bool
    sized: bool
    grounded: bool

    @property
    def right(self) -> bool:
        """All objects asked for and nothing else, whatever their places and sizes."""
        return self.label == LABELS[0]

    @property
    def complete(self) -> bool:
        """Right, and in place, size and ground as the caption says."""
        return self.right and self.placed and self.sized and self.grounded


def read(image: Array) -> Reading:
    """Reads an image [h w 3] with values 0..1, of any size: what is larger than SIDE is reduced to it first."""
    pixels = _reduced(image)
    frame = np.concatenate([pixels[:2].reshape(-1, 3), pixels[-2:].reshape(-1, 3),
                            pixels[:, :2].reshape(-1, 3), pixels[:, -2:].reshape(-1, 3)])
    plain = np.median(frame, axis=0)
    ground, distance = min(((name, np.linalg.norm(plain - c)) for name, c in GROUNDS.items()), key=lambda p: p[1])
    marked = np.linalg.norm(pixels - plain, axis=-1) > MARK
    cores = _cores(pixels, marked)
    found, blots = [], _leftovers(marked, [core for _, core in cores])
    near = _nearest([core for _, core in cores])
    for index, (colour, core) in enumerate(cores):
        thing = _fit(colour, _alpha(pixels, plain, core) * (near == index))
        if thing.overlap >= OVERLAP:
            found.append(thing)
        else:
            blots += 1
    return Reading(tuple(found), ground if distance <= GROUND else None, blots)


def verdict(image: Array, wanted: Scene | str) -> Verdict:
    """Judges an image [h w 3], 0..1, against a scene or a caption of the grammar."""
    scene = parse(wanted) if isinstance(wanted, str) else wanted
    return judge(read(image), scene)


def judge(reading: Reading, scene: Scene) -> Verdict:
    """Judges what was read against a scene. A wrong shape or colour is an object missing, unless it is a swap."""
    found, objects = reading.found, scene.objects
    matched = _match(found, objects)
    missing = matched.count(None)
    if not reading.clear:
        label = "unreadable"
    elif not missing:
        label = "all right" if len(found) == len(objects) else "something extra"
    elif _swapped(found, objects):
        label = "colours swapped"
    else:
        label = "object missing"
    right = label == "all right"
    like = [found[i] for i in matched] if right else []
    placed = right and (scene.relation is None or holds(scene.relation, like[0], like[1]))
    sized = right and all(w.size in (None, f.size) for w, f in zip(objects, like, strict=True))
    return Verdict(label, reading, matched, placed, sized, right and scene.ground in (None, reading.ground))


def _reduced(image: Array) -> Array:
    """float32 [h w 3] in 0..255 with a shorter side of SIDE at most."""
    if image.ndim != 3 or image.shape[-1] != 3:
        raise ValueError(f"expected an image [h w 3], got {list(image.shape)}")
    pixels = np.clip(np.asarray(image, dtype=np.float32), 0.0, 1.0) * 255.0
    height, width = pixels.shape[:2]
    scale = SIDE / min(height, width)
    if scale >= 1.0:
        return pixels
    size = (round(width * scale), round(height * scale))
    channels = [np.asarray(Image.fromarray(pixels[..., c]).resize(size, Image.Resampling.BOX)) for c in range(3)]
    return np.stack(channels, axis=-1)


def _cores(pixels: Array, marked: Array) -> list[tuple[str, Array]]:
    """(colour, mask [h w]) of every connected region of one of the world's colours."""
    distances = np.stack([np.linalg.norm(pixels - np.float32(colour), axis=-1) for colour in COLOURS.values()])
    nearest = np.where(marked & (distances.min(0) < PURE), distances.argmin(0), -1)
    cores = []
    for index, colour in enumerate(COLOURS):
        regions, count = ndimage.label(nearest == index)
        sizes = np.bincount(regions.ravel(), minlength=count + 1)
        cores += [(colour, regions == i) for i in range(1, count + 1) if sizes[i] >= AREA]
    return cores


def _leftovers(marked: Array, cores: list[Array]) -> int:
    """How many regions off the ground belong to no object; the soft edges of objects are two pixels wide."""
    known = np.zeros_like(marked)
    for core in cores:
        known |= ndimage.binary_dilation(core, iterations=2, structure=np.ones((3, 3)))
    regions, count = ndimage.label(marked & ~known)
    return int((np.bincount(regions.ravel(), minlength=count + 1)[1:] >= AREA).sum())


def _nearest(cores: list[Array]) -> Array | None:
    """Index [h w] of the core that is nearest to each pixel, -1 further than three pixels from all."""
    if not cores:
        return None
    distances = np.stack([ndimage.distance_transform_edt(~core) for core in cores])
    return np.where(distances.min(0) <= 3.0, distances.argmin(0), -1)


def _alpha(pixels: Array, plain: Array, core: Array) -> Array:
    """How far each pixel lies on the way from the ground's colour to the object's own, 0..1."""
    line = pixels[core].mean(0) - plain
    return np.clip((pixels - plain) @ line / (line @ line), 0.0, 1.0)


@lru_cache
def _moments(shape: str) -> tuple[float, float]:
    """Area over radius squared, and how far the centre of mass lies below the centre, in radii."""
    mask = coverage(shape, 0.5, 0.5, 0.25, 512, 512)
    rows = (np.arange(512) + 0.5) / 512
    return float(mask.mean() / 0.25 ** 2), float(((mask.sum(1) * rows).sum() / mask.sum() - 0.5) / 0.25)


def _fit(colour: str, alpha: Array) -> Found:
    """The shape that overlaps alpha [h w] best when it has the same area and centre of mass."""
    height, width = alpha.shape
    side, area = min(height, width), float(alpha.sum())
    x = float((alpha.sum(0) * (np.arange(width) + 0.5)).sum()) / area / side
    y = float((alpha.sum(1) * (np.arange(height) + 0.5)).sum()) / area / side
    fits = []
    for shape in SHAPES:
        share, below = _moments(shape)
        radius = (area / share) ** 0.5 / side
        drawn = coverage(shape, x, y - below * radius, radius, height, width)
        overlap = float(np.minimum(alpha, drawn).sum() / np.maximum(alpha, drawn).sum())
        fits.append(Found(colour, shape, x, y - below * radius, radius, overlap))
    return max(fits, key=lambda fit: fit.overlap)


def _fulfils(found: Found, wanted: Wanted) -> bool:
    return wanted.colour in (None, found.colour) and wanted.shape in (None, found.shape)


def _match(found: tuple[Found, ...], objects: tuple[Wanted, ...]) -> tuple[int | None, ...]:
    """For each object asked for one that was found, none twice: as many as can be, then as many sizes right."""
    options = [[i for i, f in enumerate(found) if _fulfils(f, wanted)] + [None] for wanted in objects]
    best, best_score = (None,) * len(objects), -1
    for choice in itertools.product(*options):
        used = [i for i in choice if i is not None]
        if len(set(used)) < len(used):
            continue
        sizes = sum(i is not None and w.size == found[i].size for i, w in zip(choice, objects, strict=True))
        if (score := 10 * len(used) + sizes) > best_score:
            best, best_score = choice, score
    return best


def _swapped(found: tuple[Found, ...], objects: tuple[Wanted, ...]) -> bool:
    """Whether the right colours and the right shapes are there, in the wrong pairs."""
    if any(wanted.colour is None or wanted.shape is None for wanted in objects):
        return False
    return (sorted(f.colour for f in found) == sorted(w.colour for w in objects)
            and sorted(f.shape for f in found) == sorted(w.shape for w in objects))
