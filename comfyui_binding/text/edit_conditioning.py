"""Reading a CONDITIONING as the context of one edit."""

from __future__ import annotations

import torch
from torch import Tensor

#: Entries of a conditioning that an edit cannot honour, and what to do instead.
NOT_FOR_EDITS = {
    "area": "an area: use the mask input of EBCA Edit Context",
    "mask": "a mask: use the mask input of EBCA Edit Context",
    "strength": "a strength: use alpha of EBCA Edit Context",
    "default": "the mark of a default: put the default on the main prompt",
    "unclip_conditioning": "unCLIP images: put them on the main prompt",
    "gligen": "GLIGEN boxes: put them on the main prompt",
    "control": "a ControlNet: put it on the main prompt",
    "hooks": "hooks: put them on the main prompt",
    "start_percent": "a timestep range: use start_percent and end_percent of EBCA Edit Context",
    "end_percent": "a timestep range: use start_percent and end_percent of EBCA Edit Context",
    "clip_start_percent": "a CLIP schedule: encode the edit with an unscheduled CLIP",
}


#: Values of these that say nothing; some packs always write them.
NEUTRAL = {"start_percent": 0.0, "end_percent": 1.0, "strength": 1.0, "default": False}


def edit_context(conditioning: list) -> Tensor:
    """The context [b, t, c] of a conditioning with one prompt. Raises ValueError for anything an edit cannot honour."""
    if len(conditioning) != 1:
        raise ValueError(
            f"Expected one prompt for an edit, but got {len(conditioning)}. Use one EBCA Edit Context for each, or "
            "ConditioningConcat to make them one."
        )
    context, options = conditioning[0]
    for name, advice in NOT_FOR_EDITS.items():
        if options.get(name) not in (None, NEUTRAL.get(name)):
            raise ValueError(f"Expected a plain prompt for an edit, but got one with {advice}.")
    if not isinstance(context, torch.Tensor) or context.ndim != 3 or 0 in context.shape[:2]:
        came = list(context.shape) if isinstance(context, torch.Tensor) else type(context).__name__
        raise ValueError(
            f"Expected an encoded prompt of shape [batch, tokens, width] for an edit, but got {came}. Connect a CLIP "
            "Text Encode."
        )
    return context
