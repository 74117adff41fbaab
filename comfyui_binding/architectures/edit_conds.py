"""What ComfyUI makes of an edit's CONDITIONING for a model."""

from __future__ import annotations

from typing import Any

import comfy.sampler_helpers
import comfy.samplers
import torch
from torch import Tensor
from torch.nn import Module

from ..runtime.settings import Edit


def conds_of(model: Module, edit: Edit, x: Tensor) -> dict[str, Any]:
    """Arguments of apply_model for an edit in place of the prompt, one row for each of its texts, on the device of x.

    x [b, c, ..]: the latent of a call. The text [b, t, c] is `c_crossattn`.
    """
    conds = {"edit": comfy.sampler_helpers.convert_cond(edit.conditioning)}
    (cond,) = comfy.samplers.process_conds(model, x, conds, x.device)["edit"]
    images = edit.context.shape[0]
    return {
        name: _copied(one.process_cond(batch_size=images, area=None).cond, x.device)
        for name, one in cond["model_conds"].items()
        if name != "c_concat"
    }


def _copied(value: Any, device: torch.device) -> Any:
    """A tensor's copy: some networks write into their inputs."""
    return value.to(device, copy=True) if torch.is_tensor(value) else value
