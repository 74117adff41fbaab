"""What inversion and RePaint need to know about a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from comfy.model_base import LTXAV, LTXV
from comfy.model_sampling import CONST, COSMOS_RFLOW, EPS, IMG_TO_IMG, IMG_TO_IMG_FLOW

from ...ebca_core import ADDITIVE, FLOW, Noising

if TYPE_CHECKING:
    from comfy.model_base import BaseModel

#: Sigmas of flow-matching models end at 1; a schedule may round to a little more.
HIGHEST_FLOW_SIGMA = 1.0001


def family_of(model: BaseModel) -> str:
    """ComfyUI's name for the family of a model: SD15, SDXL, ..."""
    return type(model.model_config).__name__


def noising_of(sampling: Any) -> Noising | None:
    """How the latents of a model with this model_sampling consist of image and noise.

    None for models that predict neither noise nor a velocity, and for those whose noise has another scale than 1.
    """
    if isinstance(sampling, IMG_TO_IMG | IMG_TO_IMG_FLOW) or getattr(sampling, "noise_scale", 1.0) != 1.0:
        return None
    if isinstance(sampling, CONST):
        return FLOW
    return ADDITIVE if isinstance(sampling, EPS | COSMOS_RFLOW) else None


def is_flow_matching(sampling: Any) -> bool:
    """Whether a model was trained by flow matching, whichever way ComfyUI writes its latents."""
    return isinstance(sampling, CONST | COSMOS_RFLOW)


def reads_noise_mask(model: BaseModel) -> bool:
    """Whether a model takes the noise mask as an input: LTX models see the known region without noise at any sigma."""
    return isinstance(model, LTXV | LTXAV)
