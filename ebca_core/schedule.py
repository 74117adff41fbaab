"""When a strength is on, and the curve it follows over the run (paper, section 4: schedules of gamma and alpha)."""

from __future__ import annotations

import math
from dataclasses import dataclass

#: {shape: the factor at a share u of the way from start a to end b}
SHAPES = {
    "constant": lambda u, a, b: a,
    "linear": lambda u, a, b: a + (b - a) * u,
    "exponential": lambda u, a, b: a * (b / a) ** u,
    "cosine": lambda u, a, b: a + (b - a) * (1 - math.cos(math.pi * u)) / 2,
}

@dataclass(frozen=True)
class Window:
    """A share of the model's noise schedule: 0 is pure noise, 1 the finished image."""

    start_percent: float = 0.0
    end_percent: float = 1.0

    def __post_init__(self):
        if not 0 <= self.start_percent < self.end_percent <= 1:
            raise ValueError(
                f"Expected 0 <= start < end <= 1, but got start {self.start_percent} and end {self.end_percent}. "
                "Move the start before the end."
            )

    def covers(self, percent: float) -> bool:
        """Whether the window is on from `percent` on."""
        return self.start_percent <= percent < self.end_percent


WHOLE_RUN = Window()


@dataclass(frozen=True)
class Schedule:
    """A factor for a strength: start_factor until the window begins, a curve in it, end_factor when it has ended.

    constant stays at start_factor.
    """

    shape: str
    start_factor: float = 1.0
    end_factor: float = 1.0
    window: Window = WHOLE_RUN

    def __post_init__(self):
        if self.shape not in SHAPES:
            raise ValueError(f"{self.shape!r} is not a shape of a schedule. Choose one of: {', '.join(SHAPES)}.")
        for name in ("start_factor", "end_factor"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}. Set it to a number that is not negative.")
        if self.shape == "exponential" and not (self.start_factor > 0 and self.end_factor > 0):
            raise ValueError(
                f"An exponential schedule cannot have a factor of 0, but its factors are {self.start_factor:g} and "
                f"{self.end_factor:g}. Use factors above 0, for example 0.01, or a linear or cosine schedule."
            )

    def factor(self, percent: float) -> float:
        """The factor at a share of the noise schedule; 0 is pure noise, 1 the finished image."""
        start, end = self.window.start_percent, self.window.end_percent
        way = min(max((percent - start) / (end - start), 0.0), 1.0)
        return SHAPES[self.shape](way, self.start_factor, self.end_factor)

    def __str__(self) -> str:
        if self.shape == "constant":
            return f"constant {self.start_factor:g}"
        between = f", between {self.window.start_percent:g} and {self.window.end_percent:g}"
        return f"{self.shape} {self.start_factor:g} to {self.end_factor:g}" + between * (self.window != WHOLE_RUN)

    @property
    def is_zero(self) -> bool:
        """Whether the factor is zero throughout."""
        return self.start_factor == 0 and (self.end_factor == 0 or self.shape == "constant")
