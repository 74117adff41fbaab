"""Encodes the prompts of edits, and checks their CONDITIONING."""

from __future__ import annotations

import torch

from ..pack_formats import holds_keys_and_values_in_turns

#: {option of a conditioning that edits do not support: its name, and the alternative}
NOT_FOR_EDITS = {
    "area": "an area: use the mask input of EBCA Edit Context",
    "mask": "a mask: use the mask input of EBCA Edit Context",
    "strength": "a strength: use alpha of EBCA Edit Context",
    "default": "the `default` flag of Set Default Conditioning: apply it to the main prompt",
    "unclip_conditioning": "unCLIP images: apply them to the main prompt",
    "gligen": "GLIGEN boxes: apply them to the main prompt",
    "control": "a ControlNet: apply it to the main prompt",
    "hooks": "hooks: apply them to the main prompt",
    "start_percent": "a timestep range: use start_percent and end_percent of EBCA Edit Context",
    "end_percent": "a timestep range: use start_percent and end_percent of EBCA Edit Context",
    "clip_start_percent": "a CLIP schedule: encode the edit with an unscheduled CLIP",
}


#: Values of these options that have no effect; some packs always set them.
NEUTRAL = {"start_percent": 0.0, "end_percent": 1.0, "strength": 1.0, "default": False}


def checked_conditioning(conditioning: list) -> list:
    """The conditioning of an edit: one encoded prompt [b, t, c]. Raises ValueError for unsupported options."""
    if len(conditioning) != 1:
        raise ValueError(
            f"The conditioning of an edit has {len(conditioning)} prompts instead of one. Use one EBCA Edit Context "
            "for each prompt, or join them with ConditioningConcat."
        )
    context, options = conditioning[0]
    for name, advice in NOT_FOR_EDITS.items():
        if options.get(name) not in (None, NEUTRAL.get(name)):
            raise ValueError(f"The conditioning of an edit has {advice}.")
    if not isinstance(context, torch.Tensor) or context.ndim != 3 or 0 in context.shape[:2]:
        received = list(context.shape) if isinstance(context, torch.Tensor) else type(context).__name__
        raise ValueError(
            f"The conditioning of an edit is {received} instead of an encoded prompt [batch, tokens, width]. Connect a "
            "CLIP Text Encode."
        )
    if holds_keys_and_values_in_turns(context):
        raise ValueError(
            "The conditioning of an edit is encoded with a NegPip CLIP, whose keys and values edits do not take apart. "
            "Encode the edit with the CLIP from before CLIP NegPip."
        )
    return conditioning


def encode_prompt(clip, text: str) -> list:
    """The CONDITIONING that CLIP Text Encode returns. Raises ValueError without a CLIP."""
    if clip is None:
        raise ValueError("The CLIP is empty: the checkpoint has no text encoder. Load one with Load CLIP.")
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))
