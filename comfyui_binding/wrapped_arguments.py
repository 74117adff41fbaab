"""Arguments of wrapped calls by position, as ComfyUI passes them: a wrapper of another pack may have named them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

#: The parameters of BaseModel.apply_model and of UNetModel.forward that ComfyUI passes by position.
APPLY_MODEL = ("x", "t", "c_concat", "c_crossattn", "control", "transformer_options")
UNET_FORWARD = ("x", "timesteps", "context", "y", "control", "transformer_options")
#: Position of the last one, in both.
TRANSFORMER_OPTIONS = 5


def by_position(names: Sequence[str], args: tuple, kwargs: Mapping[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """The arguments of a call with all parameters of these names by position; those not given have their defaults."""
    rest = dict(kwargs)
    named = (rest.pop(name, {} if name == "transformer_options" else None) for name in names[len(args) :])
    return (*args, *named), rest
