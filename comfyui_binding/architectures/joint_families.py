"""The transformers with joint attention, one entry a family: where their texts, images and positions lie.

A family is one class of network, not its subclasses: another class may order its tokens in another way. It is named,
not imported: a ComfyUI need not have all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch.nn import Module

from ..runtime import notices
from .joint_attention import JointFamily, Padding
from .transformer import Grid


def _qwen_layers(network: Module) -> dict[str, Module]:
    return {f"b{index}.0": block.attn for index, block in enumerate(network.transformer_blocks)}


def _qwen(network: str) -> JointFamily:
    return JointFamily(
        network,
        _qwen_layers,
        lambda network, shape, conds: Grid.of_patches(shape, (1, *[network.patch_size] * 2)[-len(shape[2:]) :]),
        text_width=lambda network: network.txt_in.in_features,
        positions=lambda network: network.pe_embedder,
        text=lambda args, kwargs: kwargs["encoder_hidden_states"],
    )


def _flux_layers(network: Module) -> dict[str, Module]:
    """Blocks with weights of their own for the text, then those with one text and image in a row."""
    return {f"b{index}.0": block for index, block in enumerate((*network.double_blocks, *network.single_blocks))}


def _flux(network: str) -> JointFamily:
    return JointFamily(
        network,
        _flux_layers,
        lambda network, shape, conds: Grid.of_patches(shape, (network.patch_size, network.patch_size)),
        text_width=lambda network: network.txt_in.in_features,
        positions=lambda network: network.pe_embedder,
        text=lambda args, kwargs: kwargs.get("txt"),
        masks="text and image",
        has_pooled_text=lambda network: getattr(network, "vector_in", None) is not None,
    )


def _lumina_layers(network: Module) -> dict[str, Module]:
    return {f"b{index}.0": block.attention for index, block in enumerate(network.layers)}


def _lumina_padding(network: Module) -> Padding | None:
    multiple = network.pad_tokens_multiple
    return None if multiple is None else Padding(network.cap_embedder, network.cap_pad_token, multiple)


def _why_no_krea2(network: Module, kwargs: Mapping[str, Any]) -> str | None:
    """A patch of the input may lengthen the text, which its layers get in one with the image."""
    patches = kwargs["transformer_options"].get("patches", {})
    return notices.edits_skipped(notices.TOKENS) if "post_input" in patches else None


def _why_no_sd3(network: Module) -> str | None:
    """Of MMDiT, which has variants besides SD 3 and 3.5."""
    if network.context_processor is None and network.register_length == 0:
        return None
    return "it changes its text as a whole before it attends to text and image in one softmax"


FAMILIES = [
    _qwen("qwen_image.model.QwenImageTransformer2DModel"),
    # Flux 1 and 2, LongCat (whose texts are padded to one length, so that its images stand where they do alone), Ovis.
    _flux("flux.model.Flux"),
    _flux("chroma.model.Chroma"),
    _flux("chroma_radiance.model.ChromaRadiance"),
    _qwen("mage_flow.model.MageFlowTransformer2DModel"),
    # Lumina 2, Z-Image, NewBie.
    JointFamily(
        "lumina.model.NextDiT",
        _lumina_layers,
        lambda network, shape, conds: Grid.of_patches(shape, (network.patch_size, network.patch_size)),
        text_width=lambda network: network.cap_embedder[1].in_features,
        positions=lambda network: network.rope_embedder,
        masks="nothing",
        text_layers=lambda network: [block.attention for block in network.context_refiner],
        padding=_lumina_padding,
        axis_behind_text=0,
        why_refused=lambda network, kwargs: notices.REFERENCES if kwargs.get("ref_latents") else None,
    ),
    JointFamily(
        "krea2.model.SingleStreamDiT",
        lambda network: {f"b{index}.0": block.attn for index, block in enumerate(network.blocks)},
        lambda network, shape, conds: Grid.of_patches(shape, (network.patch, network.patch)),
        text_width=lambda network: network.txtlayers * network.txtdim,
        positions=lambda network: network.pe_embedder,
        masks="nothing",
        text_layers=lambda network: [block.attn for block in network.txtfusion.refiner_blocks],
        why_refused=_why_no_krea2,
    ),
    JointFamily(
        "modules.diffusionmodules.mmdit.OpenAISignatureMMDITWrapper",
        lambda network: {f"b{index}.0": block for index, block in enumerate(network.joint_blocks)},
        lambda network, shape, conds: Grid.of_patches(shape, network.x_embedder.patch_size),
        text_width=lambda network: network.context_embedder.in_features,
        text=lambda args, kwargs: args[0],
        masks="nothing",
        has_pooled_text=lambda network: network.y_embedder is not None,
        why_unsupported=_why_no_sd3,
    ),
]
