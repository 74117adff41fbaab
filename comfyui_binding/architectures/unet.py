"""Which models have text cross-attention that EBCA can reach, and the names of its layers."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

from comfy.ldm.modules.attention import (
    BasicTransformerBlock,
    CrossAttention,
    SpatialTransformer,
    SpatialVideoTransformer,
)
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.model_sampling import EPS, IMG_TO_IMG

if TYPE_CHECKING:
    from comfy.model_base import BaseModel
    from comfy.model_patcher import ModelPatcher

SUPPORTED = (
    "EBCA works with U-Net models that read text through cross-attention: SD 1.x, SD 2.x, SDXL (base and refiner), "
    "SSD-1B, Segmind Vega, KOALA, and their inpainting and InstructPix2Pix variants."
)

#: U-Nets whose cross-attention does not read the user's text.
NO_TEXT = {
    "Stable_Zero123": "its cross-attention reads an image and a camera position, not text",
    "Lotus": "it estimates depth and always reads an empty prompt",
}

SIDES = {"d": "input", "m": "middle", "u": "output"}
#: One item of `blocks`: a block, a layer in it, or a range from one to another.
BLOCK_ITEM = r"([dmu])(\d+)(?:\.(\d+))?(?:-([dmu])(\d+)(?:\.(\d+))?)?"


class LayerKey(NamedTuple):
    """ComfyUI's name of one cross-attention layer: `block` and `block_index` of transformer_options."""

    side: str
    block: int
    depth: int


def family_of(model: BaseModel) -> str:
    """ComfyUI's name for the family of a model: SD15, SDXL, ..."""
    return type(model.model_config).__name__


def adds_noise(sampling: Any) -> bool:
    """Whether a model sees pictures with noise added, and predicts noise (eps) or velocity (v)."""
    return isinstance(sampling, EPS) and not isinstance(sampling, IMG_TO_IMG)


def unet_of(model: ModelPatcher) -> UNetModel:
    """The model's U-Net. Raises ValueError, naming the model's class, if it has no text cross-attention to reach."""
    name = type(model.model).__name__
    unet = model.get_model_object("diffusion_model")
    unet = getattr(unet, "_orig_mod", unet)
    if not isinstance(unet, UNetModel):
        raise ValueError(f"{name} has no cross-attention to text that EBCA can reach. {SUPPORTED}")
    if name in NO_TEXT:
        raise ValueError(f"EBCA does not apply to {name}: {NO_TEXT[name]}. {SUPPORTED}")
    if any(isinstance(module, SpatialVideoTransformer) for module in unet.modules()):
        raise ValueError(f"EBCA does not apply to {name}: it makes videos from an image, without text. {SUPPORTED}")
    if any(isinstance(module, BasicTransformerBlock) and module.disable_self_attn for module in unet.modules()):
        raise ValueError(
            f"EBCA does not apply to {name}: its self-attention layers read the text too (as in the x4 upscaler), and "
            f"the method knows no such layers. {SUPPORTED}"
        )
    if not cross_attention_layers(unet):
        raise ValueError(f"{name} has no cross-attention layers. {SUPPORTED}")
    return unet


def cross_attention_layers(unet: UNetModel) -> dict[LayerKey, CrossAttention]:
    """Every cross-attention layer to the text, in the order in which a call of the U-Net passes them."""
    blocks = [("input", index, block) for index, block in enumerate(unet.input_blocks)]
    if unet.middle_block is not None:
        blocks.append(("middle", 0, unet.middle_block))
    blocks += [("output", index, block) for index, block in enumerate(unet.output_blocks)]
    return {
        LayerKey(side, index, depth): transformer_block.attn2
        for side, index, block in blocks
        for transformer in block
        if isinstance(transformer, SpatialTransformer)
        for depth, transformer_block in enumerate(transformer.transformer_blocks)
        if transformer_block.attn2 is not None
    }


def last_layer(unet: UNetModel) -> LayerKey:
    """The cross-attention layer that a call of the U-Net passes last."""
    return next(reversed(cross_attention_layers(unet)))


def context_width(model: ModelPatcher) -> int:
    """Width c of the text context that the model's cross-attention reads."""
    to_k = next(iter(cross_attention_layers(unet_of(model)).values())).to_k
    return getattr(to_k, "in_features", None) or model.model.model_config.unet_config["context_dim"]


def named_layers(unet: UNetModel) -> dict[tuple[str, int, int], LayerKey]:
    """(d, m or u; n-th block with attention on that side; layer in it) -> ComfyUI's key, in order."""
    names = {}
    for letter, side in SIDES.items():
        keys = [key for key in cross_attention_layers(unet) if key.side == side]
        blocks = list(dict.fromkeys(key.block for key in keys))
        names |= {(letter, blocks.index(key.block), key.depth): key for key in keys}
    return names


def layer_names(unet: UNetModel) -> dict[LayerKey, str]:
    """ComfyUI's key -> the name that `parse_blocks` reads: d0.0, m0.0, u3.1."""
    return {key: f"{letter}{block}.{depth}" for (letter, block, depth), key in named_layers(unet).items()}


def place_of(name: str) -> tuple[int, int, int]:
    """A name of `layer_names` as what sorts in the order in which a call of the U-Net passes its layers."""
    block, depth = name[1:].split(".")
    return list(SIDES).index(name[0]), int(block), int(depth)


def parse_blocks(unet: UNetModel, text: str) -> frozenset[LayerKey] | None:
    """`d1-d2,m0,u0-u3,u0.4` -> layers; empty text -> None, for all. Raises ValueError for what the model has not."""
    if not text.strip():
        return None
    names = named_layers(unet)
    try:
        items = block_items(text)
    except ValueError as error:
        raise ValueError(f"{error} The model has {_describe(names)}.") from None
    return frozenset(key for item in items for key in _parse_item(item, names))


def block_items(text: str) -> list[re.Match]:
    """The comma-separated items of `blocks`, matched. Raises ValueError for syntax that is malformed on any model."""
    items = [item for item in re.split(r"[,\s]+", text) if item] or [text] * bool(text and not text.isspace())
    matches = [re.fullmatch(BLOCK_ITEM, item) for item in items]
    if None in matches:
        wrong = items[matches.index(None)]
        raise ValueError(f"'{wrong}' in blocks is not a block. Write blocks as in d0-d2, m0, u1 or u0.4.")
    return matches


def _parse_item(match: re.Match, names: dict[tuple[str, int, int], LayerKey]) -> list[LayerKey]:
    item, first = match.group(), match.group(1, 2, 3)
    last = match.group(4, 5, 6) if match.group(4) else first
    order = list(names)
    inside = order[_find(first, order, names)[0] : _find(last, order, names)[-1] + 1]
    if not inside:
        raise ValueError(f"Expected a range from front to back, but got '{item}': the model passes {_describe(names)}.")
    return [names[name] for name in inside]


def _find(wanted: tuple[str, str, str | None], order: list[tuple[str, int, int]], names: dict) -> list[int]:
    letter, block, depth = wanted
    found = [
        index for index, name in enumerate(order) if name[:2] == (letter, int(block)) and depth in (None, str(name[2]))
    ]
    if not found:
        asked = f"{letter}{block}" + (f".{depth}" if depth is not None else "")
        raise ValueError(f"The model has no attention block {asked}. It has {_describe(names)}.")
    return found


def _describe(names: dict[tuple[str, int, int], LayerKey]) -> str:
    depths: dict[tuple[str, int], int] = {}
    for letter, block, depth in names:
        depths[letter, block] = max(depths.get((letter, block), 0), depth)
    return ", ".join(
        f"{letter}{block}" + (f" (layers {letter}{block}.0 to {letter}{block}.{depth})" if depth else "")
        for (letter, block), depth in depths.items()
    )
