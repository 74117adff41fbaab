"""What each part of the method changes on each trained model: one figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from alignment.columns import change
from alignment.results import Results
from alignment.settings import STUDIES
from bootstrap import Estimate

COLOURS = ((31, 119, 180), (214, 96, 20), (44, 140, 60), (130, 60, 170))  # of the models, in the order of STUDIES
WIDTH, NAMES, ROW, LINE, MARGIN = 900, 300, 58, 18, 24
GREY, BLACK = (200, 200, 200), (20, 20, 20)


@dataclass(frozen=True)
class Row:
    """A part of the method, and for each model that has it the change in the share of right pictures."""

    part: str
    changes: Mapping[str, Estimate]


def rows(results: Results, sets: Sequence[str], images: int) -> list[Row]:
    """The parts of all studies that have been sampled on these sets of captions."""
    found: dict[str, dict[str, Estimate]] = {}
    for model, study in STUDIES.items():
        for part, method, other in study.parts:
            both = [results.labels(one, model, sets, images) for one in (method, other)]
            if None not in both:
                found.setdefault(part, {})[model] = change(*both)
    return [Row(part, changes) for part, changes in found.items()]


def figure(shown: Sequence[Row], title: str) -> Image.Image:
    """A line for each part: a dot and a 95 % interval for each model with one, on an axis of percentage points."""
    ends = [100 * end for row in shown for estimate in row.changes.values() for end in (estimate.low, estimate.high)]
    low, high = (5 * int(np.floor(min(*ends, 0) / 5)), 5 * int(np.ceil(max(*ends, 0) / 5)))
    top, bottom = MARGIN + 2 * LINE + 12, MARGIN + 2 * LINE + 12 + ROW * len(shown)
    image = Image.new("RGB", (WIDTH, bottom + 2 * LINE + MARGIN), "white")
    pen, font, small = ImageDraw.Draw(image), ImageFont.load_default(15), ImageFont.load_default(12)

    def x(points: float) -> float:
        return NAMES + (points - low) / (high - low) * (WIDTH - NAMES - MARGIN)

    pen.text((MARGIN, MARGIN), title, BLACK, font)
    models = [model for model in STUDIES if any(model in row.changes for row in shown)]
    for number, model in enumerate(models):
        left = NAMES + 150 * number
        pen.ellipse((left, MARGIN + 26, left + 9, MARGIN + 35), COLOURS[number])
        pen.text((left + 15, MARGIN + 22), model, BLACK, small)
    for points in range(low, high + 1, 5):
        pen.line((x(points), top, x(points), bottom), BLACK if points == 0 else GREY)
        pen.text((x(points), bottom + 6), f"{points:+d}" if points else "0", BLACK, small, anchor="ma")
    for number, row in enumerate(shown):
        middle = top + ROW * (number + 0.5)
        pen.text((MARGIN, middle), row.part, BLACK, small, anchor="lm")
        for place, model in enumerate(models):
            y = middle + 14 * (place - (len(models) - 1) / 2)
            if model not in row.changes:
                pen.text((x(0) + 6, y), "not measured", COLOURS[place], small, anchor="lm")
                continue
            estimate = row.changes[model]
            mean, left, right = (x(100 * value) for value in (estimate.mean, estimate.low, estimate.high))
            pen.line((left, y, right, y), COLOURS[place], 2)
            pen.ellipse((mean - 4, y - 4, mean + 4, y + 4), COLOURS[place])
    return image
