"""The numbers of the authors' implementation, in float32. Needs a booted host."""

import functools
import json
from pathlib import Path

import comfy.model_detection
import comfy.supported_models
import safetensors.torch
import torch
from safetensors import safe_open

from support import toy

FOLDER = Path(__file__).resolve().parents[1] / "reference"
_UNET = "diffusion_model."


@functools.cache
def load(name: str = "reference_a") -> tuple[dict, dict[str, torch.Tensor]]:
    """The settings and the tensors of a reference file."""
    path = FOLDER / f"{name}.safetensors"
    with safe_open(path, "pt") as file:
        settings = json.loads(file.metadata()["reference"])
    return settings, safetensors.torch.load_file(path)


def reference_model():
    """The MODEL whose outputs reference_a holds: an SD 1.x U-Net in ComfyUI's classes, float32."""
    settings, tensors = load()
    weights = {name: value for name, value in tensors.items() if name.startswith(_UNET)}
    unet = comfy.model_detection.detect_unet_config(weights, _UNET)
    heads = {"num_heads": settings["unet"]["num_heads"], "num_head_channels": -1}
    config = type("SD15", (comfy.supported_models.SD15,), {"unet_extra_config": heads})(unet)
    config.set_inference_dtype(torch.float32, None)
    base = config.get_model({}, device=torch.device("cpu"))
    weights = {name.removeprefix(_UNET): value.float() for name, value in weights.items()}
    base.diffusion_model.load_state_dict(weights, strict=True)
    return toy.patcher(base.eval())


def reference_noise() -> torch.Tensor:
    """[1, 4, 32, 32], to be scaled by the first sigma as ComfyUI's samplers do."""
    return load()[1]["noise"]
