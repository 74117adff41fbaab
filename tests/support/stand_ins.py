"""Loaders for the tests' server that read no file: each makes a tiny model with random weights, of the kind that the
file of that name holds.

Diffusion models and text encoders are ComfyUI's classes, narrowed. Its own loaders could not tell these from a file:
they take most widths for granted. Of autoencoders, ComfyUI knows tiny ones with the same latents. Needs a booted host.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import comfy.sd
import torch
from comfy.taesd.taehv import TAEHV
from comfy.taesd.taesd import TAESD

from support import toy, toy_dit_more, toy_joint, toy_text_encoders

#: {file: what makes its model}
DIFFUSION_MODELS: dict[str, Callable[[], Any]] = {
    "wan2.2_ti2v_5B_fp16.safetensors": lambda: toy_dit_more.model("wan_22_5b"),
    "anima-base-v1.0.safetensors": lambda: toy_dit_more.model("anima"),
    "qwen_image_fp8_e4m3fn.safetensors": lambda: toy_joint.model("qwen"),
    "z_image_turbo_bf16.safetensors": lambda: toy_joint.model("zimage"),
}
#: {(file, type): family in toy_text_encoders}. Under another type, ComfyUI makes another encoder of a file.
TEXT_ENCODERS = {
    ("umt5_xxl_fp8_e4m3fn_scaled.safetensors", "wan"): "wan",
    ("qwen_3_06b_base.safetensors", "stable_diffusion"): "anima",
    ("qwen_2.5_vl_7b_fp8_scaled.safetensors", "qwen_image"): "qwen",
    ("qwen_3_4b.safetensors", "lumina2"): "zimage",
}
#: {file: an autoencoder with its latents}
AUTOENCODERS: dict[str, Callable[[], torch.nn.Module]] = {
    "wan2.2_vae.safetensors": lambda: TAEHV(latent_channels=48, latent_format=None),
    "qwen_image_vae.safetensors": lambda: TAEHV(latent_channels=16, latent_format=None),
    "ae.safetensors": lambda: TAESD(latent_channels=16),
}


def _text(*names: str) -> dict[str, tuple[str, dict]]:
    return {name: ("STRING", {}) for name in names}


class StandInUNETLoader:
    CATEGORY, FUNCTION, RETURN_TYPES = "tests", "load", ("MODEL",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": _text("unet_name", "weight_dtype")}

    def load(self, unet_name, weight_dtype):
        return (DIFFUSION_MODELS[unet_name](),)


class StandInCLIPLoader:
    CATEGORY, FUNCTION, RETURN_TYPES = "tests", "load", ("CLIP",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": _text("clip_name", "type"), "optional": _text("device")}

    def load(self, clip_name, type, device="default"):
        return (toy_text_encoders.clip(TEXT_ENCODERS[clip_name, type]),)


class StandInVAELoader:
    CATEGORY, FUNCTION, RETURN_TYPES = "tests", "load", ("VAE",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": _text("vae_name")}

    def load(self, vae_name):
        return (comfy.sd.VAE(sd=dict(toy.fill(AUTOENCODERS[vae_name](), 2).state_dict())),)


NODE_CLASS_MAPPINGS = {cls.__name__: cls for cls in (StandInUNETLoader, StandInCLIPLoader, StandInVAELoader)}


def write_pack(folder: Path) -> Path:
    """Make `folder` a pack with these nodes. On a server, nothing of the tests can be imported without it."""
    lines = ("import sys", f"sys.path.append({str(Path(__file__).resolve().parents[1])!r})",
             "from support.stand_ins import NODE_CLASS_MAPPINGS")  # fmt: skip
    (folder / "__init__.py").write_text("\n".join(lines), encoding="utf-8")
    return folder


def replace_loaders(prompt: dict[str, dict[str, Any]]) -> None:
    """Put these nodes in the place of ComfyUI's loaders, in place."""
    for node in prompt.values():
        stand_in = f"StandIn{node['class_type']}"
        if stand_in in NODE_CLASS_MAPPINGS:
            node["class_type"] = stand_in
