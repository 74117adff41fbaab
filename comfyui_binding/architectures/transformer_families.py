"""The transformers that read text by cross-attention, one entry a family. To support another, add an entry."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from comfy.ldm.cosmos.predict2 import MiniTrainDIT
from comfy.ldm.hydit.attn_layers import apply_rotary_emb
from comfy.ldm.hydit.models import HunYuanDiT
from comfy.ldm.kandinsky5.model import Kandinsky5
from comfy.ldm.lightricks.model import LTXVModel
from comfy.ldm.pixart.pixartms import PixArtMS
from comfy.ldm.wan import model as wan
from torch.nn import Module

from .transformer import Family, Grid, Parts


def _in_blocks(attribute: str, blocks: str = "blocks"):
    """Layers b0.0, b1.0, ...: one module in each block."""

    def layers(network: Module) -> dict[str, Module]:
        return {f"b{index}.0": getattr(block, attribute) for index, block in enumerate(getattr(network, blocks))}

    return layers


def _patches(*patch_size: int):
    """A grid of patches of the input, its last dimensions rounded up."""

    def grid(network: Module, shape: torch.Size, kwargs: Mapping[str, Any]) -> Grid:
        sides = shape[-len(patch_size) :]
        return Grid(tuple(math.ceil(side / patch) for side, patch in zip(sides, patch_size, strict=True)))

    return grid


# --- Wan ---


def _wan_layers(network: Module) -> dict[str, Module]:
    """VACE's own blocks follow the blocks that they are attached to."""
    layers, attached = {}, getattr(network, "vace_layers_mapping", {})
    for index, block in enumerate(network.blocks):
        layers[f"b{index}.0"] = block.cross_attn
        if index in attached:
            layers[f"v{attached[index]}.0"] = network.vace_blocks[attached[index]].cross_attn
    return layers


def _wan_parts(module: Module) -> Parts:
    norm = module.norm_k if isinstance(module.norm_k, torch.nn.RMSNorm) else None
    return Parts(module.num_heads, module.k, module.v, norm, per_head=False)


def _wan_grid(network: Module, shape: torch.Size, kwargs: Mapping[str, Any]) -> Grid:
    """The tokens of a reference image come first."""
    size, reference = _patches(*network.patch_size)(network, shape, kwargs).size, kwargs.get("reference_latent")
    if reference is None or getattr(network, "ref_conv", None) is None:
        return Grid(size)
    rows, columns = (side // patch for side, patch in zip(reference.shape[-2:], network.patch_size[1:], strict=True))
    return Grid(size, before=rows * columns)


def _wan_image_rows(module: Module, kwargs: Mapping[str, Any]) -> int:
    """Text-to-video modules get the number too where an image is wired, but no rows."""
    return (kwargs.get("context_img_len") or 0) if isinstance(module, wan.WanI2VCrossAttention) else 0


def _wan(network: type, **more: Any) -> Family:
    return Family(
        network,
        _wan_layers,
        _wan_parts,
        _wan_grid,
        text_width=lambda network: network.text_embedding[0].in_features,
        rows_before_text=_wan_image_rows,
        attention_call=lambda module: int(isinstance(module, wan.WanI2VCrossAttention)),
        **more,
    )


# --- HunyuanDiT ---


def _hydit_queries(q: torch.Tensor, args: tuple) -> torch.Tensor:
    """Its rotary embedding follows the norm."""
    return apply_rotary_emb(q, None, args[2])[0].flatten(2) if args[2] is not None else q.flatten(2)


FAMILIES = [
    _wan(wan.WanModel),
    _wan(wan.VaceWanModel),
    Family(
        MiniTrainDIT,
        _in_blocks("cross_attn"),
        lambda module: Parts(module.n_heads, module.k_proj, module.v_proj, module.k_norm),
        lambda network, shape, kwargs: _patches(network.patch_temporal, network.patch_spatial, network.patch_spatial)(
            network, shape, kwargs
        ),
        subclasses=True,
    ),
    Family(
        PixArtMS,
        _in_blocks("cross_attn"),
        lambda module: Parts(
            module.num_heads, module.kv_linear, None, q=module.q_linear, out=module.proj, queries=lambda q, args: q
        ),
        lambda network, shape, kwargs: _patches(network.patch_size, network.patch_size)(network, shape, kwargs),
        text=(1, "cond"),
        packed_rows=True,
    ),
    Family(
        LTXVModel,
        _in_blocks("attn2", "transformer_blocks"),
        lambda module: Parts(module.heads, module.to_k, module.to_v, module.k_norm, per_head=False),
        _patches(1, 1, 1),
    ),
    Family(
        Kandinsky5,
        _in_blocks("cross_attention", "visual_transformer_blocks"),
        lambda module: Parts(module.num_heads, module.to_key, module.to_value, module.key_norm),
        lambda network, shape, kwargs: _patches(*network.patch_size)(
            network, shape if len(shape) == 5 else torch.Size([*shape[:2], 1, *shape[2:]]), kwargs
        ),
        text_depends_on_sigma=True,
    ),
    Family(
        HunYuanDiT,
        _in_blocks("attn2"),
        lambda module: Parts(
            module.num_heads,
            module.kv_proj,
            None,
            module.k_norm if isinstance(module.k_norm, torch.nn.LayerNorm) else None,
            q=module.q_norm,
            out=module.out_proj,
            queries=_hydit_queries,
        ),
        lambda network, shape, kwargs: _patches(network.patch_size, network.patch_size)(network, shape, kwargs),
        text=(1, "y"),
    ),
]
