"""The transformers with joint attention, one entry a family: where their texts, images and positions lie.

A family is one class of network, not its subclasses: another class may order its tokens in another way. It is named,
not imported: a ComfyUI need not have all of them.
"""

from __future__ import annotations

from torch.nn import Module

from .joint_attention import JointFamily
from .transformer import Grid


def _qwen_layers(network: Module) -> dict[str, Module]:
    return {f"b{index}.0": block.attn for index, block in enumerate(network.transformer_blocks)}


FAMILIES = [
    JointFamily(
        "qwen_image.model.QwenImageTransformer2DModel",
        _qwen_layers,
        lambda network, shape, conds: Grid.of_patches(shape, (1, network.patch_size, network.patch_size)),
        text_width=lambda network: network.txt_in.in_features,
        positions=lambda network: network.pe_embedder,
        text=lambda args, kwargs: kwargs["encoder_hidden_states"],
    ),
]
