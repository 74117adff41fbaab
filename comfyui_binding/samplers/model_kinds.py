"""What inversion and RePaint need to know about a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from comfy.model_sampling import EPS, IMG_TO_IMG

if TYPE_CHECKING:
    from comfy.model_base import BaseModel


def family_of(model: BaseModel) -> str:
    """ComfyUI's name for the family of a model: SD15, SDXL, ..."""
    return type(model.model_config).__name__


def predicts_eps_or_v(sampling: Any) -> bool:
    """Whether a model sees pictures with noise added, and predicts noise (eps) or velocity (v)."""
    return isinstance(sampling, EPS) and not isinstance(sampling, IMG_TO_IMG)
