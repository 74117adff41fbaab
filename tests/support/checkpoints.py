"""Small checkpoints that ComfyUI's loader takes for SD 1.5 and SDXL. Needs a booted host.

Only the U-Net's widths are genuine: it has few blocks, and several cross-attention layers. The weights are random.
"""

from pathlib import Path

import comfy.ldm.modules.diffusionmodules.openaimodel
import comfy.ops
import comfy.sd1_clip
import comfy.sdxl_clip
import comfy.supported_models
import comfy.taesd.taesd
import torch

_SDXL = dict(context_dim=2048, use_linear_in_transformer=True, adm_in_channels=2816, num_classes="sequential",
             transformer_depth_middle=-2)  # fmt: skip
_SD15 = dict(num_res_blocks=[1, 1], channel_mult=[1, 1], transformer_depth=[1, 1],
             transformer_depth_output=[1, 1, 1, 1], transformer_depth_middle=1, context_dim=768,
             use_linear_in_transformer=False, adm_in_channels=None)  # fmt: skip
# name: the class of comfy.supported_models, a small U-Net that is detected as it
LAYOUTS = {
    "sd15": ("SD15", _SD15),
    "sd15_inpaint": ("SD15", dict(in_channels=9, **_SD15)),  # the latent, the mask, and the latent of the rest
    "sdxl": ("SDXL", dict(num_res_blocks=[2, 2, 2], channel_mult=[1, 1, 1], transformer_depth=[0, 0, 2, 2, 10, 10],
                          transformer_depth_output=[0] * 9, **_SDXL)),
    "vega": ("Segmind_Vega", dict(num_res_blocks=[2, 2, 2], channel_mult=[1, 1, 1],
                                  transformer_depth=[0, 0, 1, 1, 2, 2], transformer_depth_output=[0] * 9, **_SDXL)),
    "koala": ("KOALA_700M", dict(num_res_blocks=[1, 1, 1], channel_mult=[1, 1, 1], transformer_depth=[0, 2, 5],
                                 transformer_depth_output=[0] * 6, **_SDXL)),
}  # fmt: skip


def write_checkpoint(path: Path, layout: str = "sd15", seed: int = 0) -> Path:
    """Write a checkpoint of one of LAYOUTS as a .ckpt file; those of SD15 and SDXL hold text encoders in full size.

    The file keeps the strides of its tensors: each weight is a view into one random vector (row i starts at number i),
    which is of full rank and takes a few megabytes where the weights would take gigabytes.
    """
    shapes = _unet_shapes(layout) | _shapes(comfy.taesd.taesd.TAESD(latent_channels=4), "first_stage_model.")
    torch.save({"state_dict": _views(shapes | _text_encoder_shapes(layout), seed)}, path)
    return path


def _text_encoder_shapes(layout: str) -> dict[str, torch.Size]:
    if LAYOUTS[layout][0] == "SD15":
        encoder = _shapes(comfy.sd1_clip.SDClipModel(device="meta", dtype=torch.float32), "cond_stage_model.")
        return {k: v for k, v in encoder.items() if not k.endswith(("logit_scale", "text_projection.weight"))}
    if layout == "sdxl":
        encoders = comfy.sdxl_clip.SDXLClipModel(device="meta", dtype=torch.float32).state_dict()
        # ComfyUI's own way from its names back to those of the published checkpoints; it needs nothing of the model.
        saved = comfy.supported_models.SDXL.process_clip_state_dict_for_saving(None, encoders)
        return {k: v.shape for k, v in saved.items() if not k.endswith("position_ids")}
    return {}


def _unet_shapes(layout: str) -> dict[str, torch.Size]:
    class_name, unet = LAYOUTS[layout]
    unet = {"in_channels": 4, **unet, **getattr(comfy.supported_models, class_name).unet_extra_config}
    model = comfy.ldm.modules.diffusionmodules.openaimodel.UNetModel(
        image_size=32, out_channels=4, model_channels=320, use_spatial_transformer=True, use_checkpoint=False,
        legacy=False, use_temporal_attention=False, use_temporal_resblock=False, device="meta", dtype=torch.float32,
        operations=comfy.ops.disable_weight_init, **unet,
    )  # fmt: skip
    return _shapes(model, "model.diffusion_model.")


def _shapes(module: torch.nn.Module, prefix: str) -> dict[str, torch.Size]:
    return {prefix + name: value.shape for name, value in module.state_dict().items()}


def _views(shapes: dict[str, torch.Size], seed: int) -> dict[str, torch.Tensor]:
    pool = torch.randn(1 << 17, generator=torch.Generator().manual_seed(seed))
    scaled: dict[float, torch.Tensor] = {}
    views, offset = {}, 0
    for name, shape in shapes.items():
        if len(shape) == 0:
            views[name] = torch.tensor(1.0)
        elif len(shape) == 1:
            views[name] = (torch.ones if name.endswith("weight") else torch.zeros)(1).expand(shape)
        else:
            fan = shape[1:].numel()
            scale = 0.1 if "embedding" in name else round(fan**-0.5, 6)
            vector = scaled.setdefault(scale, pool * scale)
            offset = (offset + 977) % (len(pool) - shape[0] - fan)
            views[name] = vector.as_strided(shape, (1, *torch.empty(shape[1:], device="meta").stride()), offset)
    return views
