"""Bootstrap intervals of means, such as differences between two methods on the same captions and noise, and of other
statistics."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

DRAWS, FEWER_DRAWS = 4000, 1000  # the second of statistics that take longer than a mean


@dataclass(frozen=True)
class Estimate:
    """A mean, or another statistic, and its 95 % interval."""

    mean: float
    low: float
    high: float

    @property
    def side(self) -> int:
        """The side of zero on which the interval lies, 1 or -1; 0 where it includes zero."""
        return (self.low > 0) - (self.high < 0)

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves zero out."""
        return self.side != 0

    def text(self, form: str, scale: float = 1.0, unit: str = "") -> str:
        """Such as 12.5 % (9.0 to 16.0). form: of a number, times scale."""
        mean, low, high = (format(scale * value, form) for value in (self.mean, self.low, self.high))
        return f"{mean}{unit} ({low} to {high})"


def mean_of(sets: Sequence[np.ndarray], seed: int = 0) -> Estimate:
    """The mean over sets of each set's mean over its images.

    sets: values of each image [n]; differences to another method, where two are compared. Images are drawn again,
    with replacement, within each set; the interval lies between the percentiles 2.5 and 97.5.
    """
    rng = np.random.default_rng(seed)
    drawn = [values[rng.integers(len(values), size=(DRAWS, len(values)))].mean(1) for values in sets]
    low, high = np.percentile(np.mean(drawn, axis=0), (2.5, 97.5))
    return Estimate(float(np.mean([values.mean() for values in sets])), float(low), float(high))


def statistic_of(statistic: Callable[[np.ndarray], float], count: int, seed: int = 0) -> Estimate:
    """A statistic of `count` items, such as captions with all their pictures: a function of the items' numbers.

    Items are drawn again, with replacement; the interval lies between the percentiles 2.5 and 97.5.
    """
    rng = np.random.default_rng(seed)
    drawn = [statistic(rng.integers(count, size=count)) for _ in range(FEWER_DRAWS)]
    low, high = np.percentile(drawn, (2.5, 97.5))
    return Estimate(float(statistic(np.arange(count))), float(low), float(high))
