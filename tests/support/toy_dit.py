"""Tiny transformers of ComfyUI's own classes with random weights, text by cross-attention. Needs a booted host."""

from typing import Any

import comfy.supported_models
import torch

from support.toy import noise, patcher

WIDTH = 40  # of the text, as encoders give it
POOLED = 24  # of Kandinsky's pooled text
TOKENS = 12

#: family: the class of comfy.supported_models, its settings, the shape of a latent without the batch
_FAMILIES: dict[str, tuple[str, dict[str, Any], tuple[int, ...]]] = {
    "wan": ("WAN21_T2V", dict(
        image_model="wan2.1", model_type="t2v", dim=48, ffn_dim=96, num_heads=2, num_layers=3, text_dim=WIDTH,
        in_dim=16, out_dim=16, freq_dim=32,
    ), (16, 1, 8, 8)),
    "wan_i2v": ("WAN21_T2V", dict(
        image_model="wan2.1", model_type="i2v", dim=48, ffn_dim=96, num_heads=2, num_layers=3, text_dim=WIDTH,
        in_dim=36, out_dim=16, freq_dim=32,
    ), (16, 1, 8, 8)),
    "wan_vace": ("WAN21_Vace", dict(
        image_model="wan2.1", model_type="vace", dim=48, ffn_dim=96, num_heads=2, num_layers=4, text_dim=WIDTH,
        in_dim=16, out_dim=16, freq_dim=32, vace_layers=2, vace_in_dim=96,
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
    "kandinsky5": ("Kandinsky5Image", dict(
        image_model="kandinsky5", in_visual_dim=16, out_visual_dim=16, in_text_dim=WIDTH, in_text_dim2=POOLED,
        time_dim=32, model_dim=64, ff_dim=96, visual_embed_dim=64, num_text_blocks=1, num_visual_blocks=3,
        axes_dims=(8, 12, 12),
    ), (16, 8, 8)),
    "pixart": ("PixArtSigma", dict(
        image_model="pixart_sigma", hidden_size=48, depth=3, num_heads=2, caption_channels=WIDTH, model_max_length=12,
        micro_condition=False, input_size=48, pe_interpolation=1,
    ), (4, 4, 62)),  # its position embedding divides by zero where the mean side is below 33
    "hydit": ("HunyuanDiT", dict(
        image_model="hydit", hidden_size=64, depth=4, num_heads=4, text_states_dim=WIDTH, text_states_dim_t5=32,
        text_len=5, text_len_t5=7, size_cond=False, use_style_cond=False,
    ), (4, 8, 8)),
}  # fmt: skip
FAMILIES = list(_FAMILIES)
#: Those that normalise their keys.
KEY_NORMS = [family for family in FAMILIES if family != "pixart"]
HYDIT_T5_TOKENS = 7


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


def model(
    family: str, seed: int = 0, dtype: torch.dtype = torch.float32, compute: torch.dtype | None = None, **more: Any
):
    """A MODEL of one of the families.

    dtype: of the stored weights; compute: the type that they are cast to, the same by default. more: settings of the
    network that differ.
    """
    class_name, settings, _ = _FAMILIES[family]
    config = getattr(comfy.supported_models, class_name)({**settings, **more})
    config.set_inference_dtype(dtype, compute)
    base = config.get_model({}, device=torch.device("cpu"))
    fill(base.diffusion_model, seed)
    return patcher(base.eval())


def shape(family: str, batch: int = 1, frames: int | None = None) -> list[int]:
    """[batch, channels, (frames,) height, width] of the family's small latents."""
    channels, *few, height, width = _FAMILIES[family][2]
    return [batch, channels, *([frames or few[0]] if few else []), height, width]


def conditioning(family: str, seed: int = 0, tokens: int = TOKENS, batch: int = 1, **options: Any) -> list:
    """A random CONDITIONING as the family's text encoder gives it.

    tokens: that the layers read; HunyuanDiT reads 7 of its second encoder behind 5 or more of its first.
    """
    text = noise(batch, tokens, WIDTH, seed=1000 + seed)
    if family == "ltxv":
        options["attention_mask"] = torch.ones(batch, tokens, dtype=torch.long)
    if family == "kandinsky5":
        options["pooled_output"] = noise(batch, POOLED, seed=2000 + seed)
    if family == "wan_i2v":
        states = noise(batch, 9, 1280, seed=3000 + seed)
        options["clip_vision_output"] = type("VisionOutput", (), {"penultimate_hidden_states": states})
    if family == "hydit":
        t5 = HYDIT_T5_TOKENS
        text = text[:, t5:]
        clip = text.shape[1]
        options |= dict(
            attention_mask=torch.ones(batch, clip), conditioning_mt5xl=noise(batch, t5, 32, seed=4000 + seed),
            attention_mask_mt5xl=torch.ones(batch, t5),
        )  # fmt: skip
    return [[text, options]]
