"""What choosing by a score gives: computed from runs that were all sampled to their end, with what it would have cost.

Scores, right: [caption, noise]. Times are in whole runs of the plain model.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations

import numpy as np


@dataclass(frozen=True)
class Cost:
    """early: of a run until its score is known; whole: of all of it; goes_on: whether it is on its way to its end then,
    and not one of few steps.
    """

    early: float
    whole: float
    goes_on: bool = True


def rerolled(
    scores: np.ndarray, right: np.ndarray, tries: int, threshold: float, cost: Cost
) -> tuple[np.ndarray, np.ndarray]:
    """Share of right pictures and time [caption, noise], by the noise of the first try: means over the orders of the
    others.

    A run whose score is below the threshold is dropped, and another noise is tried. If all tries are dropped, the best
    one is what counts: the last one goes on, an earlier one is run again. Threshold infinity: the best of `tries`.
    Scores of runs that cannot go on are those of short ones with the same noise.
    """
    by_first: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in range(scores.shape[1])]
    for order in permutations(range(scores.shape[1]), tries):
        tried = scores[:, order]
        passes = tried >= threshold
        any_passes = passes.any(1)
        kept = np.where(any_passes, passes.argmax(1), tried.argmax(1))
        last = np.where(any_passes, kept, tries - 1)
        begun = last + (kept != last) if cost.goes_on else last + 1
        kept_right = np.take_along_axis(right[:, order], kept[:, None], 1)[:, 0]
        by_first[order[0]].append((kept_right, cost.whole + cost.early * begun))
    return tuple(np.mean(by_first, axis=1).transpose(1, 2, 0))


def ranked(scores: np.ndarray, right: np.ndarray, place: int = 0) -> np.ndarray:
    """Whether the picture in a place is right [caption], of all noises ordered from the highest score."""
    order = np.argsort(-scores, axis=1, kind="stable")
    return np.take_along_axis(right, order[:, [place]], 1)[:, 0]


def auc(scores: np.ndarray, right: np.ndarray) -> float:
    """How often a right picture has a higher score than one that is not; equal scores count half. Both [n]."""
    good, bad = scores[right > 0], np.sort(scores[right == 0])
    below = np.searchsorted(bad, good, "left") + np.searchsorted(bad, good, "right")
    return float(below.mean() / (2 * len(bad)))


def auc_within(scores: np.ndarray, right: np.ndarray) -> float:
    """The same over the pairs of one caption's pictures alone."""
    higher = np.sign(scores[:, :, None] - scores[:, None, :]) / 2 + 0.5
    counts = (right[:, :, None] > 0) & (right[:, None, :] == 0)
    return float(higher[counts].mean())
