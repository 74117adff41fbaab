"""When a strength is on: updates and edits act in a share of the sampling steps (paper, section 4)."""

from __future__ import annotations

from dataclasses import dataclass


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
