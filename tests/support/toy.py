"""Tiny models made of ComfyUI's own classes, with deterministic random weights. Needs a booted host.

The sizes of the models are chosen for speed: 32 and 64 channels, two resolutions, cross-attention width WIDTH. Every
other block on the way up has no attention; those like SDXL have it at the lower resolution alone.
"""

import functools
from typing import Any

import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.sd
import comfy.sd1_clip
import comfy.sdxl_clip
import comfy.supported_models
import comfy.taesd.taesd
import comfy.text_encoders.sd2_clip
import torch
from comfy.supported_models_base import ClipTarget

WIDTH = 64  # cross-attention width; SDXL's is the sum of its two text encoders' widths
POOLED = 32  # width of SDXL's pooled text vector

_UNET = dict(
    image_size=32, in_channels=4, out_channels=4, model_channels=32, num_res_blocks=[1, 1], channel_mult=[1, 2],
    transformer_depth=[1, 1], transformer_depth_output=[1, 0, 1, 0], transformer_depth_middle=1, context_dim=WIDTH,
    use_spatial_transformer=True, use_linear_in_transformer=False, use_checkpoint=False, legacy=False,
    num_classes=None, adm_in_channels=None, use_temporal_attention=False, use_temporal_resblock=False,
)  # fmt: skip
_DEEP = dict(transformer_depth=[0, 2], transformer_depth_output=[0, 0, 2, 2], transformer_depth_middle=2)
_LINEAR = dict(use_linear_in_transformer=True)
_VIDEO = dict(
    in_channels=8, use_temporal_attention=True, use_temporal_resblock=True, use_spatial_context=True,
    extra_ff_mix_layer=True, merge_strategy="learned_with_images", merge_factor=0.0, video_kernel_size=[3, 1, 1],
)  # fmt: skip
_HEADS = {"num_heads": 4, "num_head_channels": -1}


def _adm(width: int) -> dict[str, Any]:
    return dict(num_classes="sequential", adm_in_channels=width)


# family: the class of comfy.supported_models, what its U-Net has besides _UNET, what the class adds to every U-Net
_FAMILIES: dict[str, tuple[str, dict, dict]] = {
    "sd1": ("SD15", {}, _HEADS),
    "sd1_inpaint": ("SD15", {"in_channels": 9}, _HEADS),
    "sd1_ip2p": ("SD15_instructpix2pix", {"in_channels": 8}, _HEADS),
    "sd2": ("SD20", _LINEAR, {**_HEADS, "attn_precision": torch.float32}),
    "sd2_v": ("SD20", _LINEAR, {**_HEADS, "attn_precision": torch.float32}),
    "sdxl": ("SDXL", {**_DEEP, **_LINEAR, **_adm(POOLED + 6 * 256)}, _HEADS),
    "sdxl_inpaint": ("SDXL", {**_DEEP, **_LINEAR, **_adm(POOLED + 6 * 256), "in_channels": 9}, _HEADS),
    "sdxl_ip2p": ("SDXL_instructpix2pix", {**_DEEP, **_LINEAR, **_adm(POOLED + 6 * 256), "in_channels": 8}, _HEADS),
    "sdxl_refiner": ("SDXLRefiner", {**_DEEP, **_LINEAR, **_adm(POOLED + 5 * 256)}, _HEADS),
    "ssd1b": ("SSD1B", {**_DEEP, **_LINEAR, **_adm(POOLED + 6 * 256)}, _HEADS),
    "vega": ("Segmind_Vega", {**_DEEP, **_LINEAR, **_adm(POOLED + 6 * 256), "transformer_depth_middle": -1}, _HEADS),
    "koala": ("KOALA_700M", {**_DEEP, **_LINEAR, **_adm(POOLED + 6 * 256), "transformer_depth_middle": -2}, _HEADS),
    # The families that have no text cross-attention to act on.
    "svd": ("SVD_img2vid", {**_LINEAR, **_VIDEO, **_adm(3 * 256)}, {**_HEADS, "attn_precision": torch.float32}),
    "x4_upscaler": ("SD_X4Upscaler", {**_LINEAR, "in_channels": 7},
                    {**_HEADS, "disable_self_attentions": [True, False], "num_classes": 1000}),
}  # fmt: skip
FAMILIES = [name for name in _FAMILIES if name not in ("svd", "x4_upscaler")]
REFUSED = ["svd", "x4_upscaler", "hunyuan_video"]


def fill(module: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Fill every parameter, in the order of the names; ComfyUI's layers start as uninitialised memory."""
    filled = [(name, one) for name, one in sorted(module.named_parameters()) if one.ndim and one.is_floating_point()]
    values = _weights(tuple((name, one.shape) for name, one in filled), seed)
    with torch.no_grad():
        for (_, parameter), value in zip(filled, values, strict=True):
            parameter.copy_(value)
    return module


@functools.lru_cache(maxsize=16)  # drawing the numbers takes longer than copying them, and most tests make a model
def _weights(named: tuple[tuple[str, torch.Size], ...], seed: int) -> list[torch.Tensor]:
    """The weights of parameters by their names and shapes, in order."""
    generator, weights = torch.Generator().manual_seed(seed), []
    for name, shape in named:
        noise = torch.randn(shape, generator=generator)
        if len(shape) == 1:
            weights.append(0.02 * noise + (1.0 if name.endswith("weight") else 0.0))
        else:
            weights.append(noise * shape[1:].numel() ** -0.5)
    return weights


def patcher(model: torch.nn.Module) -> comfy.model_patcher.ModelPatcher:
    """The model as a loader node would hand it out."""
    cls = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)
    management = comfy.model_management
    return cls(model, load_device=management.get_torch_device(), offload_device=management.unet_offload_device())


def model(family: str = "sd1", seed: int = 0, dtype: torch.dtype = torch.float32, **unet: Any):
    """A MODEL of one of FAMILIES or REFUSED.

    Args:
        dtype: the weights are stored in it; computation is in float32.
        unet: settings of ComfyUI's UNetModel that differ, say `context_dim=48`.
    """
    if family == "hunyuan_video":
        return _hunyuan_video(seed)
    class_name, settings, extra = _FAMILIES[family]
    methods = {"unet_extra_config": extra}
    if family == "sd2_v":
        methods["model_type"] = lambda self, state_dict, prefix="": comfy.model_base.ModelType.V_PREDICTION
    config = type(class_name, (getattr(comfy.supported_models, class_name),), methods)({**_UNET, **settings, **unet})
    config.set_inference_dtype(dtype, None if dtype == torch.float32 else torch.float32)
    base = config.get_model({}, device=torch.device("cpu"))
    fill(base.diffusion_model, seed)
    return patcher(base.eval())


def _hunyuan_video(seed: int):
    """A transformer with text and image in one attention that averages its text first: nothing for EBCA to reach."""
    config = comfy.supported_models.HunyuanVideo(dict(
        image_model="hunyuan_video", in_channels=16, patch_size=[1, 2, 2], out_channels=16, vec_in_dim=POOLED,
        context_in_dim=WIDTH, hidden_size=32, mlp_ratio=2.0, num_heads=2, depth=1, depth_single_blocks=1,
        axes_dim=[4, 6, 6], theta=256, qkv_bias=True, guidance_embed=False, byt5=False, meanflow=False,
        use_cond_type_embedding=False, vision_in_dim=None, meanflow_sum=False,
    ))  # fmt: skip
    config.set_inference_dtype(torch.float32, None)
    base = config.get_model({}, device=torch.device("cpu"))
    fill(base.diffusion_model, seed)
    return patcher(base.eval())


def _clip_config(width: int) -> dict[str, int]:
    return dict(hidden_size=width, intermediate_size=2 * width, num_attention_heads=4, num_hidden_layers=3,
                max_position_embeddings=77, projection_dim=width)  # fmt: skip


def clip(family: str = "sd1", seed: int = 1) -> comfy.sd.CLIP:
    """A CLIP of family sd1, sd2 or sdxl: ComfyUI's tokenizer and text encoder, narrowed."""
    sd2 = comfy.text_encoders.sd2_clip
    targets = {
        "sd1": (comfy.sd1_clip.SD1Tokenizer, comfy.sd1_clip.SD1ClipModel, {"clip_l": WIDTH}),
        "sd2": (sd2.SD2Tokenizer, sd2.SD2ClipModel, {"clip_h": WIDTH}),
        "sdxl": (comfy.sdxl_clip.SDXLTokenizer, comfy.sdxl_clip.SDXLClipModel, {"clip_l": 32, "clip_g": POOLED}),
    }
    tokenizer, encoder, widths = targets[family]
    options = {f"{name}_model_config": _clip_config(width) for name, width in widths.items()}
    made = comfy.sd.CLIP(ClipTarget(tokenizer, encoder), model_options={**options, "dtype": torch.float32})
    fill(made.cond_stage_model, seed)
    return made


def vae(seed: int = 2) -> comfy.sd.VAE:
    """A VAE that ComfyUI detects (TAESD): latents of 4 channels, 8 pixels to a position."""
    return comfy.sd.VAE(sd=dict(fill(comfy.taesd.taesd.TAESD(latent_channels=4), seed).state_dict()))


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    """Standard normal noise from a generator of its own."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def latent(batch: int = 1, height: int = 8, width: int = 8, channels: int = 4) -> dict[str, torch.Tensor]:
    """An empty LATENT; height and width in latent positions."""
    return {"samples": torch.zeros(batch, channels, height, width)}


def conditioning(seed: int = 0, tokens: int = 77, batch: int = 1, width: int = WIDTH, **options: Any) -> list:
    """A random CONDITIONING with a pooled vector; `options` are entries of its dict (area, mask, strength, ...)."""
    text = noise(batch, tokens, width, seed=1000 + seed)
    return [[text, {"pooled_output": noise(batch, POOLED, seed=2000 + seed), **options}]]
