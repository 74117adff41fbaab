"""Replacing the attention of every cross-attention layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from comfy.ldm.modules.attention import SpatialTransformer
from comfy.model_patcher import set_model_options_patch_replace
from torch import Tensor

#: attend(q [b, n, (h d)], k [b, t, (h d)], v [b, t, (h d)], extra_options) -> [b, n, (h d)]
Attend = Callable[[Tensor, Tensor, Tensor, dict], Tensor]


def with_cross_attention(model_options: dict, unet, attend: Attend) -> dict:
    """model_options under which every cross-attention layer of the U-Net computes `attend`."""
    for side, number in _blocks(unet):
        model_options = set_model_options_patch_replace(model_options, attend, "attn2", side, number)
    return model_options


def _blocks(unet) -> Iterator[tuple[str, int]]:
    sides = {"input": unet.input_blocks, "middle": [unet.middle_block], "output": unet.output_blocks}
    for side, blocks in sides.items():
        for number, block in enumerate(blocks):
            if any(isinstance(part, SpatialTransformer) for part in block):
                yield side, number
