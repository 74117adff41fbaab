"""Inputs that several nodes have."""

from __future__ import annotations

from comfy_api.latest import io
from torch import Tensor

from ..ebca_core import Window

CATEGORY = "energy attention"
TokenWeightsType = io.Custom("EBCA_TOKEN_WEIGHTS")
EditType = io.Custom("EBCA_EDIT")
ScheduleType = io.Custom("EBCA_SCHEDULE")
TraceType = io.Custom("EBCA_TRACE")


def gamma_input(name: str, default: float, tooltip: str) -> io.Float.Input:
    return io.Float.Input(name, default=default, min=0.0, max=1.0, step=0.0001, tooltip=tooltip)


def start_input(default: float, what: str, name: str = "start_percent", advice: str = "") -> io.Float.Input:
    tooltip = (
        f"When {what} begins: 0 is pure noise, 1 the finished image, as in core's timestep ranges. {advice}".strip()
    )
    return io.Float.Input(name, default=default, min=0.0, max=1.0, step=0.001, tooltip=tooltip)


def end_input(what: str, name: str = "end_percent") -> io.Float.Input:
    tooltip = f"When {what} ends. Must be after its start."
    return io.Float.Input(name, default=1.0, min=0.0, max=1.0, step=0.001, tooltip=tooltip)


def schedule_input(name: str, what: str) -> ScheduleType.Input:
    return ScheduleType.Input(name, optional=True, tooltip=f"From EBCA Schedule: multiplies {what} along a curve.")


def prompt_inputs() -> list[io.Input]:
    """The positive prompt as text, and the CLIP that encodes it."""
    return [
        io.Clip.Input("clip", tooltip="The CLIP that encodes the prompt: SD 1.x, SD 2.x or SDXL."),
        io.String.Input(
            "text",
            multiline=True,
            default="",
            tooltip="The positive prompt, the same text that CLIP Text Encode gets. Wire one text to both.",
        ),
    ]


def checked_window(start: float, end: float, prefix: str = "") -> Window:
    """A window. Raises ValueError, naming the two inputs, unless it begins before it ends."""
    try:
        return Window(start, end)
    except ValueError as error:
        raise ValueError(f"{prefix}start_percent and {prefix}end_percent: {error}") from None


def checked_mask(mask: Tensor | None) -> Tensor | None:
    """A MASK as [b, height, width] in [0, 1]. Raises ValueError for other shapes and values."""
    if mask is None:
        return None
    if mask.ndim < 2 or mask.numel() == 0:
        raise ValueError(f"Expected a mask of shape [batch, height, width], but got {list(mask.shape)}.")
    if not (mask >= 0).logical_and(mask <= 1).all():
        raise ValueError(
            f"Expected mask values from 0 to 1, but got {float(mask.min()):g} to {float(mask.max()):g}. "
            "Make the mask from an image or with ComfyUI's mask nodes."
        )
    return mask.reshape(-1, *mask.shape[-2:])
