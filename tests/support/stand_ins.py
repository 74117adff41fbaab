"""Loaders for the tests' server that read no file: each makes a tiny model with random weights, of the kind that the
file of that name holds.

Diffusion models and text encoders are ComfyUI's classes, narrowed. Its own loaders could not tell these from a file:
they take most widths for granted. Of autoencoders, ComfyUI knows tiny ones with the same latents. Needs a booted host.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import comfy.sd
import torch
from comfy.taesd.taehv import TAEHV
from comfy.taesd.taesd import TAESD

from support import toy, toy_dit, toy_dit_more, toy_joint, toy_text_encoders

#: {file: what makes its model}
DIFFUSION_MODELS: dict[str, Callable[[], Any]] = {
    "wan2.2_ti2v_5B_fp16.safetensors": lambda: toy_dit_more.model("wan_22_5b"),
    "anima-base-v1.0.safetensors": lambda: toy_dit_more.model("anima"),
    "qwen_image_fp8_e4m3fn.safetensors": lambda: toy_joint.model("qwen"),
    "z_image_turbo_bf16.safetensors": lambda: toy_joint.model("zimage"),
    "wan2.1_t2v_1.3B_fp16.safetensors": lambda: toy_dit.model("wan"),
    "kandinsky5lite_t2i.safetensors": lambda: toy_dit.model("kandinsky5"),
    "ltx-video-2b-v0.9.safetensors": lambda: toy_dit.model("ltxv"),
    "ltx-2-19b-dev-fp8.safetensors": lambda: toy_dit_more.model("ltxav"),
    "stable-audio-open-1.0.safetensors": lambda: toy_dit_more.model("stable_audio1", io_channels=64),
    "stable_audio_3_medium_base.safetensors": lambda: toy_dit_more.model(
        "stable_audio3", io_channels=256, local_add_cond_dim=257
    ),
    "ace_step_v1_3.5b.safetensors": lambda: toy_dit_more.model("ace", lyric_encoder_vocab_size=6693),
}
#: {(file, type): family in toy_text_encoders}. Under another type, ComfyUI makes another encoder of a file.
TEXT_ENCODERS = {
    ("umt5_xxl_fp8_e4m3fn_scaled.safetensors", "wan"): "wan",
    ("qwen_3_06b_base.safetensors", "stable_diffusion"): "anima",
    ("qwen_2.5_vl_7b_fp8_scaled.safetensors", "qwen_image"): "qwen",
    ("qwen_3_4b.safetensors", "lumina2"): "zimage",
    ("t5xxl_fp16.safetensors", "ltxv"): "ltxv",
    ("t5-base.safetensors", "stable_audio"): "stable_audio1",
    ("t5gemma_b_b_ul2.safetensors", "stable_audio"): "stable_audio3",
    ("qwen_2.5_vl_7b_fp8_scaled.safetensors", "kandinsky5_image"): "kandinsky5",
    ("gemma_3_12B_it_fp4_mixed.safetensors", "ltxv"): "ltxav",
    ("ace_step_v1_3.5b.safetensors", "ace"): "ace",
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


class StandInDualCLIPLoader(StandInCLIPLoader):
    @classmethod
    def INPUT_TYPES(cls):
        return {"required": _text("clip_name1", "clip_name2", "type"), "optional": _text("device")}

    def load(self, clip_name1, clip_name2, type, device="default"):
        return super().load(clip_name1, type)


class StandInLTXAVTextEncoderLoader(StandInCLIPLoader):
    @classmethod
    def INPUT_TYPES(cls):
        return {"required": _text("text_encoder", "ckpt_name"), "optional": _text("device")}

    def load(self, text_encoder, ckpt_name, device="default"):
        return super().load(text_encoder, "ltxv")


class StandInCheckpointLoaderSimple:
    """Without an autoencoder; with a text encoder where the file holds one."""

    CATEGORY, FUNCTION, RETURN_TYPES = "tests", "load", ("MODEL", "CLIP", "VAE")

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": _text("ckpt_name")}

    def load(self, ckpt_name):
        family = next((family for (file, _), family in TEXT_ENCODERS.items() if file == ckpt_name), None)
        return DIFFUSION_MODELS[ckpt_name](), family and toy_text_encoders.clip(family), None


class StandInLTXVAudioVAELoader:
    """What LTXV Empty Latent Audio asks of LTX-2's autoencoder for sound, and nothing more."""

    CATEGORY, FUNCTION, RETURN_TYPES = "tests", "load", ("VAE",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": _text("ckpt_name")}

    def load(self, ckpt_name):
        sizes = SimpleNamespace(latent_frequency_bins=16, num_of_latents_from_frames=lambda frames, rate: 5)
        return (SimpleNamespace(latent_channels=8, first_stage_model=sizes),)


class LatentDigest:
    """Shows of a LATENT, in the history of its run, the least standard deviation of its parts and a digest of them."""

    CATEGORY, FUNCTION, RETURN_TYPES, OUTPUT_NODE = "tests", "digest", (), True

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"samples": ("LATENT",)}}

    def digest(self, samples):
        latent = samples["samples"]
        parts = [part.float().contiguous() for part in (latent.unbind() if latent.is_nested else [latent])]
        digest = hashlib.sha256(b"".join(part.numpy().tobytes() for part in parts)).hexdigest()
        return {"ui": {"deviation": [min(float(part.std()) for part in parts)], "digest": [digest]}}


class StandInVAELoader:
    CATEGORY, FUNCTION, RETURN_TYPES = "tests", "load", ("VAE",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": _text("vae_name")}

    def load(self, vae_name):
        return (comfy.sd.VAE(sd=dict(toy.fill(AUTOENCODERS[vae_name](), 2).state_dict())),)


NODE_CLASS_MAPPINGS = {
    cls.__name__: cls
    for cls in (
        StandInUNETLoader, StandInCLIPLoader, StandInDualCLIPLoader, StandInLTXAVTextEncoderLoader,
        StandInCheckpointLoaderSimple, StandInVAELoader, StandInLTXVAudioVAELoader, LatentDigest,
    )
}  # fmt: skip


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
