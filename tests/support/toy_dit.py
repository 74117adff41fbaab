"""Tiny transformers of ComfyUI's own classes with random weights, text by cross-attention. Needs a booted host."""

from typing import Any

import comfy.supported_models
import torch

from support.toy import noise, patcher

WIDTH = 40  # of the text, as encoders give it
TOKENS = 12

#: family: the class of comfy.supported_models, its settings, the shape of a latent without the batch
_FAMILIES: dict[str, tuple[str, dict[str, Any], tuple[int, ...]]] = {
    "wan": ("WAN21_T2V", dict(
        image_model="wan2.1", model_type="t2v", dim=48, ffn_dim=96, num_heads=2, num_layers=3, text_dim=WIDTH,
        in_dim=16, out_dim=16, freq_dim=32,
    ), (16, 1, 8, 8)),
    "predict2": ("CosmosT2IPredict2", dict(
        image_model="cosmos_predict2", in_channels=16, out_channels=16, max_img_h=240, max_img_w=240, max_frames=128,
        patch_spatial=2, patch_temporal=1, model_channels=64, num_blocks=3, num_heads=2, concat_padding_mask=True,
        crossattn_emb_channels=WIDTH, pos_emb_cls="rope3d", pos_emb_learnable=True, pos_emb_interpolation="crop",
        use_adaln_lora=True, adaln_lora_dim=16,
    ), (16, 1, 8, 8)),
    "ltxv": ("LTXV", dict(
        image_model="ltxv", in_channels=128, cross_attention_dim=64, attention_head_dim=32, num_attention_heads=2,
        caption_channels=WIDTH, num_layers=3,
    ), (128, 1, 4, 4)),
}  # fmt: skip


def fill(module: torch.nn.Module, seed: int) -> None:
    """Random matrices, norms spread around 1, small biases; ComfyUI's layers start as uninitialised memory."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(module.named_parameters()):
            values = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim <= 1:
                parameter.copy_(1 + 0.3 * values if name.endswith("weight") else 0.02 * values)
            elif ("modulation" in name and parameter.ndim > 2) or "scale_shift_table" in name:
                parameter.copy_(0.2 * values)
            else:
                parameter.copy_(values * parameter[0].numel() ** -0.5)


def model(family: str, seed: int = 0):
    """A MODEL of one of the families, in float32."""
    class_name, settings, _ = _FAMILIES[family]
    config = getattr(comfy.supported_models, class_name)(dict(settings))
    config.set_inference_dtype(torch.float32, None)
    base = config.get_model({}, device=torch.device("cpu"))
    fill(base.diffusion_model, seed)
    return patcher(base.eval())


def shape(family: str, batch: int = 1, frames: int | None = None) -> list[int]:
    """[batch, channels, frames, height, width] of the family's small latents."""
    channels, few, height, width = _FAMILIES[family][2]
    return [batch, channels, frames or few, height, width]


def conditioning(family: str, seed: int = 0) -> list:
    """A random CONDITIONING as the family's text encoder gives it."""
    options = {"attention_mask": torch.ones(1, TOKENS, dtype=torch.long)} if family == "ltxv" else {}
    return [[noise(1, TOKENS, WIDTH, seed=1000 + seed), options]]
