"""U-Nets of genuine size, and transformers of genuine widths with a few blocks, made of ComfyUI's classes, with random
weights. Needs a booted host.

What the weights are makes no difference to speed and memory; what size they have does.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.supported_models
import torch

_COMMON = dict(
    image_size=32, in_channels=4, out_channels=4, model_channels=320, use_spatial_transformer=True, legacy=False,
    use_checkpoint=False, use_temporal_attention=False, use_temporal_resblock=False,
)  # fmt: skip
_SD15 = dict(
    **_COMMON, num_res_blocks=[2, 2, 2, 2], channel_mult=[1, 2, 4, 4], transformer_depth=[1, 1, 1, 1, 1, 1, 0, 0],
    transformer_depth_output=[1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0], transformer_depth_middle=1, context_dim=768,
    use_linear_in_transformer=False, num_classes=None, adm_in_channels=None,
)  # fmt: skip
_SDXL = dict(
    **_COMMON, num_res_blocks=[2, 2, 2], channel_mult=[1, 2, 4], transformer_depth=[0, 0, 2, 2, 10, 10],
    transformer_depth_output=[0, 0, 0, 2, 2, 2, 10, 10, 10], transformer_depth_middle=10, context_dim=2048,
    use_linear_in_transformer=True, num_classes="sequential", adm_in_channels=2816,
)  # fmt: skip
_WAN13B = dict(
    image_model="wan2.1", model_type="t2v", dim=1536, ffn_dim=8960, num_heads=12, num_layers=3, text_dim=4096,
    in_dim=16, out_dim=16, freq_dim=256,
)  # fmt: skip
_ANIMA = dict(
    image_model="anima", in_channels=16, out_channels=16, max_img_h=240, max_img_w=240, max_frames=128, patch_spatial=2,
    patch_temporal=1, model_channels=2048, num_blocks=3, num_heads=16, concat_padding_mask=True,
    crossattn_emb_channels=1024, pos_emb_cls="rope3d", pos_emb_learnable=True, pos_emb_interpolation="crop",
    use_adaln_lora=True, adaln_lora_dim=256,
)  # fmt: skip
_POOLED = 1280


@dataclass(frozen=True)
class Geometry:
    """A family's network, and the width and length of its text as encoders give it."""

    family: str
    config: dict[str, Any] = field(repr=False)
    context_width: int
    tokens: int = 77

    def model(self, dtype: torch.dtype, seed: int = 0) -> comfy.model_patcher.ModelPatcher:
        """A MODEL that stores and computes in dtype."""
        config = getattr(comfy.supported_models, self.family)(self.config)
        config.set_inference_dtype(dtype, None)
        base = config.get_model({}, device=torch.device("cpu")).eval()
        _fill(base.diffusion_model, seed)
        management = comfy.model_management
        cls = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)
        return cls(base, load_device=management.get_torch_device(), offload_device=management.unet_offload_device())

    def conditioning(self, seed: int) -> list:
        """A CONDITIONING of random numbers, as large as a text encoder's."""
        generator = torch.Generator().manual_seed(seed)
        text = torch.randn(1, self.tokens, self.context_width, generator=generator)
        return [[text, {"pooled_output": torch.randn(1, _POOLED, generator=generator)}]]


SD15 = Geometry("SD15", _SD15, 768)
SDXL = Geometry("SDXL", _SDXL, 2048)
WAN13B = Geometry("WAN21_T2V", _WAN13B, 4096, 512)
#: Its text as its adapter gives it.
ANIMA = Geometry("Anima", _ANIMA, 1024, 512)


def _fill(module: torch.nn.Module, seed: int) -> None:
    """Weights that keep activations at unit size, cut from one short random vector: billions would take minutes."""
    generator = torch.Generator().manual_seed(seed)
    source = torch.randn(2**20 + 7, generator=generator)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.ndim == 1:
                parameter.fill_(1.0 if name.endswith("weight") else 0.0)
                continue
            times = -(-parameter.numel() // source.numel())
            values = source.repeat(times)[: parameter.numel()].view(parameter.shape)
            parameter.copy_(values * parameter[0].numel() ** -0.5)
