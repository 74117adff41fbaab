"""The networks of ComfyUI that EBCA does not apply to, with the reason."""

from __future__ import annotations

from torch.nn import Module

_JOINT = "it attends to text and image in one softmax, in an order that EBCA does not know"
_KEPT_KEYS = "it attends to text and image in one softmax, and keeps the text's keys from step to step"
_IMAGES = "it attends to an image, not to text"
_NO_IMAGES = "it is not an image generator"

#: Modules of comfy.ldm, all of whose networks share a reason.
REASONS = {
    "wan.ar_model": "it keeps the keys of its text from one block of frames to the next, so no layer reads an update",
    **dict.fromkeys(("hidream_o1.model", "qwen_image21.model"), _KEPT_KEYS),
    "hunyuan_video.model": "it averages its text before it attends to text and image in one softmax",
    "ernie.model": "it attends to text and image in one softmax that other nodes cannot reach",
    "hunyuan3d.model": _IMAGES,
    "hunyuan3dv2_1.hunyuandit": _IMAGES,
    "triposplat.model": _IMAGES,
    "sam3.detector": _NO_IMAGES,
    "rt_detr.rtdetr_v4": _NO_IMAGES,
    "depth_anything_3.model": _NO_IMAGES,
    **dict.fromkeys(
        (
            "aura.mmdit", "cascade.stage_b", "cascade.stage_c", "genmo.joint_model.asymm_models_joint",
            "minimax.model", "pixeldit.model", "pixeldit.pid", "seedvr.model",
        ),
        _JOINT,
    ),
}  # fmt: skip


def refusal(network: Module) -> str | None:
    """Why EBCA does not apply to a network; None for one that is not known here."""
    return REASONS.get(type(network).__module__.removeprefix("comfy.ldm."))
