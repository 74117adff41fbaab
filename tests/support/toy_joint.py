"""Tiny transformers of ComfyUI's own classes with random weights, text and image in one attention. Needs a booted host.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import comfy.ops
import comfy.sample
import comfy.supported_models
import torch

from support.toy import noise, patcher
from support.toy_dit import WIDTH, fill

TOKENS = 7

#: family: the class of comfy.supported_models, its settings, the shape of a latent without the batch
_FAMILIES: dict[str, tuple[str, dict[str, Any], tuple[int, ...]]] = {
    "qwen": ("QwenImage", dict(
        image_model="qwen_image", num_layers=4, attention_head_dim=32, num_attention_heads=2,
        joint_attention_dim=WIDTH, in_channels=64, axes_dims_rope=(8, 12, 12),
    ), (16, 1, 8, 8)),
}  # fmt: skip
#: The side of a patch of the latent; families whose encoders mask texts; the shapes of two reference latents.
PATCH = {"qwen": 2}
MASKED = {"qwen"}
EDITING = {"qwen": [(1, 16, 1, 4, 8), (1, 16, 1, 6, 4)]}
#: Families whose blocks, and whose input, patches of other packs can change in this ComfyUI.
WITH_BLOCK_PATCHES = {"qwen"}
WITH_INPUT_PATCHES = {
    family for family, path in {"qwen": "qwen_image.model"}.items()
    if "post_input" in inspect.getsource(import_module(f"comfy.ldm.{path}"))
}  # fmt: skip
#: Where a family has the width of its text among its settings.
_WIDTH = {"qwen": "joint_attention_dim"}
#: Those that this ComfyUI has.
FAMILIES = [name for name, (class_name, *_) in _FAMILIES.items() if hasattr(comfy.supported_models, class_name)]


def model(family: str, seed: int = 0, dtype: torch.dtype = torch.float32, width: int = WIDTH, **more: Any):
    """A MODEL of one of the families. width: of its text; more: settings of the network that differ."""
    class_name, settings, _ = _FAMILIES[family]
    config = getattr(comfy.supported_models, class_name)({**settings, _WIDTH[family]: width, **more})
    config.set_inference_dtype(dtype, None)
    base = config.get_model({}, device=torch.device("cpu"))
    fill(base.diffusion_model, seed)
    return patcher(base.eval())


def shape(family: str, batch: int = 1) -> list[int]:
    """[batch, channels, (frames,) height, width] of the family's small latents."""
    return [batch, *_FAMILIES[family][2]]


def conditioning(family: str, seed: int = 0, tokens: int = TOKENS, batch: int = 1, **options: Any) -> list:
    """A random CONDITIONING as the family's text encoder gives it."""
    return [[noise(batch, tokens, WIDTH, seed=1000 + seed), options]]


def double_blocks(model) -> torch.nn.ModuleList:
    """The blocks with weights of their own for the text."""
    return model.model.diffusion_model.transformer_blocks


def blocks(model) -> Sequence[torch.nn.Module]:
    """All blocks in which text and image attend to each other, in their order."""
    return [*double_blocks(model), *getattr(model.model.diffusion_model, "single_blocks", ())]


def layer_path(family: str) -> str:
    """The path in the network of a module that attends to text and image."""
    return {"qwen": "transformer_blocks.1.attn"}[family]


def has_wrapper(family: str) -> bool:
    """Whether ComfyUI's wrappers of a network act on the family's."""
    return True
