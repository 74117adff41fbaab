"""Inputs that several nodes have."""

from __future__ import annotations

from comfy_api.latest import io
from torch import Tensor

from ..ebca_core import Window

#: Folders of the node menu: prompts, edits, photos, and nodes that show what a run does.
CATEGORY = "energy attention"
PROMPT, EDIT, PHOTO, LOOK = (f"{CATEGORY}/{name}" for name in ("prompt", "edit", "photo", "look"))
#: How far rounding may carry a number out of its range.
ROUNDING = 1e-3
MODEL_TOOLTIP = "A supported model (see the README)."
CLIP_TOOLTIP = "The CLIP that encodes the prompt, from the same checkpoint as the model."
CONCEPTS_TOOLTIP = (
    "One concept per line, for prompts that cannot be split, such as lists of tags. 'a red balloon = 0.15' gives a "
    "concept a strength of its own. Empty: they are found in the prompt."
)
#: Of nodes that look where the concepts are, and give them no strength.
SCORED_CONCEPTS_TOOLTIP = (
    "One concept per line, in the words of the prompt: single things, at least two. The same list as in EBCA Concepts; "
    "strengths in it have no effect here. Empty: they are found in the prompt."
)
TokenWeightsType = io.Custom("EBCA_TOKEN_WEIGHTS")
EditType = io.Custom("EBCA_EDIT")
ScheduleType = io.Custom("EBCA_SCHEDULE")
TraceType = io.Custom("EBCA_TRACE")


def gamma_input(name: str, default: float, tooltip: str, advanced: bool = False) -> io.Float.Input:
    return io.Float.Input(
        name, default=default, min=0.0, max=1.0, step=0.0001, tooltip=tooltip, advanced=advanced or None
    )


def start_input(
    default: float, what: str, name: str = "start_percent", advice: str = "", advanced: bool = False
) -> io.Float.Input:
    tooltip = (
        f"Start of {what}: 0 is pure noise, 1 the finished image, as in ComfyUI's timestep ranges. {advice}".strip()
    )
    return io.Float.Input(
        name, default=default, min=0.0, max=1.0, step=0.001, tooltip=tooltip, advanced=advanced or None
    )


def end_input(default: float, what: str, name: str = "end_percent", advanced: bool = False) -> io.Float.Input:
    tooltip = f"End of {what}. Must be greater than the start."
    return io.Float.Input(
        name, default=default, min=0.0, max=1.0, step=0.001, tooltip=tooltip, advanced=advanced or None
    )


def blocks_input(what: str) -> io.String.Input:
    """Names of layers, for `parse_blocks`. what: the layers chosen."""
    return io.String.Input(
        "blocks",
        default="",
        optional=True,
        advanced=True,
        tooltip=f"{what}; empty: all. Example: d1-d2,m0,u0-u3, the down, middle and up blocks that have "
        "cross-attention, counted from 0; in transformers b0-b9. u0.4 is the fifth layer of u0 (SDXL).",
    )


def schedule_input(name: str, what: str) -> ScheduleType.Input:
    return ScheduleType.Input(name, optional=True, tooltip=f"From EBCA Schedule: multiplies {what} by a curve.")


def prompt_inputs() -> list[io.Input]:
    """The positive prompt as text, and the CLIP that encodes it."""
    return [
        io.Clip.Input("clip", tooltip=CLIP_TOOLTIP),
        io.String.Input(
            "text",
            multiline=True,
            default="",
            tooltip="The positive prompt: the text that CLIP Text Encode receives. Connect one text to both.",
        ),
    ]


def concept_inputs(concepts: str = CONCEPTS_TOOLTIP) -> list[io.Input]:
    """The prompt, and the concepts in it. concepts: the tooltip of their box."""
    return [
        io.String.Input(
            "prompt",
            multiline=True,
            default="",
            dynamic_prompts=True,
            tooltip="The positive prompt. Its concepts are found if it is an English caption, such as 'a bear, a red "
            "balloon and a blue bench'.",
        ),
        io.String.Input(
            "concepts",
            multiline=True,
            default="",
            placeholder="found in the prompt",
            tooltip=concepts,
        ),
    ]


def validated_window(start: float, end: float, *strengths: float, prefix: str = "") -> Window:
    """The window of strengths; the whole run if all of them are 0, whose window has no effect.

    Raises ValueError, naming the two inputs, unless the window starts before it ends.
    """
    if strengths and not any(strengths):
        return Window()
    try:
        return Window(_unrounded(start), _unrounded(end))
    except ValueError:
        problem = "one of them is outside the range 0 to 1" if start < end else "the start is not less than the end"
        raise ValueError(
            f"{prefix}start_percent is {start:.9g} and {prefix}end_percent is {end:.9g}: {problem}. Set 0 <= start < "
            "end <= 1."
        ) from None


def _unrounded(percent: float) -> float:
    """A share of the schedule without what arithmetic in other nodes adds to it by rounding.

    So it stays in [0, 1], and two windows that touch do not overlap.
    """
    percent = round(percent, 6)
    return min(max(percent, 0.0), 1.0) if -ROUNDING <= percent <= 1 + ROUNDING else percent


def validated_mask(mask: Tensor | None) -> Tensor | None:
    """A MASK as [b, height, width] in [0, 1]. Raises ValueError for other shapes and values.

    A channel axis of length 1, in front of the height or behind the width, is dropped. Values that rounding has carried
    out of [0, 1], as a blur does, are clamped.
    """
    if mask is None:
        return None
    if mask.ndim < 2 or mask.numel() == 0:
        raise ValueError(
            f"The mask has the shape {list(mask.shape)} instead of [batch, height, width]. Make the mask from an image "
            "or with ComfyUI's mask nodes."
        )
    flat = _without_channels(mask)
    flat = flat.reshape(-1, *flat.shape[-2:])
    flat = flat if flat.is_floating_point() else flat.float()
    least, largest = float(flat.min()), float(flat.max())
    if not (least >= -ROUNDING and largest <= 1 + ROUNDING):  # True for NaN too
        raise ValueError(
            f"The mask has values from {least:.9g} to {largest:.9g} instead of 0 to 1. Make the mask from an image or "
            "with ComfyUI's mask nodes."
        )
    return flat if least >= 0 and largest <= 1 else flat.clamp(0, 1)


def _without_channels(mask: Tensor) -> Tensor:
    """[..., height, width]: without the channel axis of an image. Raises ValueError for several channels."""
    if mask.ndim > 2 and mask.shape[-1] == 1 < min(mask.shape[-3:-1]):
        return mask.squeeze(-1)
    if mask.ndim == 4 and mask.shape[1] != 1:
        raise ValueError(
            f"The mask has the shape {list(mask.shape)}, which is that of an image with several channels, instead of "
            "[batch, height, width]. Convert the image with Image To Mask."
        )
    return mask


def own_id(node: type[io.ComfyNode]) -> str | None:
    """The id of a node in the graph, None where it is called without one. Its schema has the hidden unique_id."""
    return getattr(node.hidden, "unique_id", None)
