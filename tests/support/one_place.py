"""The score "one place each" as it is written in words, position by position."""

import math

import numpy as np


def score_by_loops(objects):
    """near - second of one image, objects [i, rows, columns], as it is written in words, position by position."""
    count, rows, columns = objects.shape
    side, positions = math.sqrt(rows * columns), list(np.ndindex(rows, columns))
    claimed = np.zeros_like(objects)
    for place in positions:
        total = sum(objects[(one, *place)] for one in range(count))
        for one in range(count):
            claimed[(one, *place)] = (objects[(one, *place)] / total) ** 3 * total
    p = [claimed[one] / claimed[one].sum() for one in range(count)]
    peak = [max(positions, key=lambda place: values[place]) for values in p]

    def far(a, b):
        return math.dist(a, b) / side

    near = sum(claimed[(slice(None), *at)].sum() for at in positions if any(far(at, one) <= 0.29 for one in peak))
    second = [
        max((values[at] for at in positions if far(at, top) > 0.36), default=0.0) / values[top]
        for values, top in zip(p, peak, strict=True)
    ]
    return near / claimed.sum() - max(second)
