"""How EBCA edits a picture, and the strengths of the authors' edits, where they are known."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Edit:
    """How EBCA edits: alphas of what is added and what is removed, 0 for not at all; where they begin; their gammas,
    and where these begin if it is elsewhere."""

    alphas: tuple[float, float]
    start: float
    gammas: tuple[float, float]
    gamma_start: float | None = None


CAT_TO_DOG = Edit((0.75, 0.65), 0.5, (6e-4, 5e-4))
HORSE_TO_ZEBRA = Edit((0.6, 0.5), 0.3, (5e-4, 4e-4))
ANIMAL_TO_GOAT = Edit((0.6, 0.0), 0.35, (1e-3, 0.0), gamma_start=0.3)
