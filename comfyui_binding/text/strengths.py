"""Numbers that users write after a word, as in `a red balloon = 0.15`."""

from __future__ import annotations


def parse_number(text: str, most: float) -> float | None:
    """A number from 0 to `most`; None for any other text."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if 0 <= number <= most else None  # not for nan
