"""Objects that travel in ComfyUI's options and must stay the same object when the options are copied."""

from __future__ import annotations


class SharedOnDeepcopy:
    """Mixin: `copy.deepcopy` returns the same object.

    Some packs deep-copy `model_options` during sampling. A copied run would lose its state and keep the model alive.
    """

    def __deepcopy__(self, memo: dict) -> SharedOnDeepcopy:
        return self
