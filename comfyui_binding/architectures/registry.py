"""The architecture of a model, or a refusal that names the model and says which ones work."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from torch import Tensor

from ..runtime.protocols import Architecture
from ..runtime.torch_compile import uncompiled
from . import joint_families, transformer_families, unet
from .joint_attention import JointTransformer
from .refused_networks import refusal
from .transformer import Transformer

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

#: The one list of supported models in messages.
SUPPORTED = (
    f"EBCA works with models that read text through cross-attention: {unet.NAMES}, {transformer_families.NAMES}; EBCA "
    f"Compose and EBCA Concepts also with {joint_families.NAMES} and others (docs/models.md)."
)

UNET = unet.UNet()
TRANSFORMERS = [
    *map(Transformer, transformer_families.FAMILIES),
    *map(JointTransformer, joint_families.FAMILIES),
]


def architecture_of(model: ModelPatcher) -> Architecture:
    """The architecture of a MODEL. Raises ValueError, naming the model's class, if EBCA cannot act on it."""
    name, network = type(model.model).__name__, network_of(model)
    architecture = _architecture_of(network)
    reason = refusal(network) if architecture is None else architecture.why_unsupported(network, name)
    if architecture is None and reason is None:
        raise ValueError(f"{name} has no cross-attention to text that EBCA can reach. {SUPPORTED}")
    if reason is not None:
        raise ValueError(f"EBCA does not apply to {name}: {reason}. {SUPPORTED}")
    return architecture


def _architecture_of(network: torch.nn.Module) -> Architecture | None:
    if isinstance(network, UNetModel):
        return UNET
    return next((one for one in TRANSFORMERS if one.family.matches(network)), None)


def network_of(model: ModelPatcher) -> torch.nn.Module:
    """The denoising network of a MODEL, without the wrapper of torch.compile."""
    return uncompiled(model.get_model_object("diffusion_model"))


def layer_names(model: ModelPatcher) -> tuple[str, ...]:
    """The text cross-attention layers of a supported MODEL, in the order of a call."""
    return architecture_of(model).layer_names(network_of(model))


def context_width(model: ModelPatcher) -> int | None:
    """Width c of the text context that a MODEL reads; None where it is not known."""
    network = network_of(model)
    architecture = _architecture_of(network)
    return None if architecture is None else architecture.context_width(network, model.model.model_config)


def check_text_width(model: ModelPatcher, text: Tensor, what: str) -> None:
    """Raises ValueError where a text [b, t, c] has another width than a MODEL is known to read."""
    width = context_width(model)
    if width is not None and text.shape[-1] != width:
        name = type(model.model.model_config).__name__
        raise ValueError(
            f"{what} is encoded with width {text.shape[-1]}, but {name} reads text of width {width}. Encode it with "
            "the CLIP of the checkpoint that the model comes from."
        )
