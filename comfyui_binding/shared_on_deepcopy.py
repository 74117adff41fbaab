"""What a run writes to, in the options of its calls, which other packs copy."""

from __future__ import annotations


class CopiedAsItself:
    """A deep copy is the object itself: whoever copies the options of a run means the settings in them.

    Copied with them, a run would be told nothing more, and would take the model along that it remembers.
    """

    def __deepcopy__(self, memo: dict) -> CopiedAsItself:
        return self
