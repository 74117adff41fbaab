"""The transformers with joint attention, one entry a family: where their texts, images and positions lie.

A family is one class of network, not its subclasses: another class may order its tokens in another way. It is named,
not imported: a ComfyUI need not have all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.nn import Module

from ..runtime import notices
from .joint_attention import JointFamily, Padding
from .transformer_families import Grid

if TYPE_CHECKING:
    from ..runtime.denoiser_call import DenoiserCall

#: In messages, short enough to be read.
NAMES = "Qwen-Image, Flux, Chroma, Z-Image, Lumina 2, SD 3.5, HiDream I1"


def _qwen_layers(network: Module) -> dict[str, Module]:
    return _numbered(block.attn for block in network.transformer_blocks)


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
    return _numbered((*network.double_blocks, *network.single_blocks))


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
    return _numbered(block.attention for block in network.layers)


def _lumina_padding(network: Module) -> Padding | None:
    multiple = network.pad_tokens_multiple
    return None if multiple is None else Padding(network.cap_embedder, network.cap_pad_token, multiple)


def _omnigen(network: str, layers: Callable[[Module], dict[str, Module]]) -> JointFamily:
    return JointFamily(
        network,
        layers,
        lambda network, shape, conds: Grid.of_patches(
            shape, [network.patch_size] * 2, before=_tokens_of(conds.get("ref_latents") or (), network.patch_size)
        ),
        text_width=lambda network: network.time_caption_embed.caption_embedder[1].in_features,
        token_count="num_tokens",
        positions=lambda network: network.rope_embedder.rope_embedder,
        masks="nothing",
        text_layers=lambda network: [block.attn for block in network.context_refiner],
        axis_behind_text=0,
    )


def _omnigen_layers(network: Module) -> dict[str, Module]:
    return _numbered(block.attn for block in network.layers)


def _boogu_layers(network: Module) -> dict[str, Module]:
    paired = [block.img_instruct_attn for block in network.double_stream_layers]
    return _numbered([*paired, *(block.attn for block in network.single_stream_layers)])


def _hidream_layers(network: Module) -> dict[str, Module]:
    return _numbered(block.block.attn1 for block in (*network.double_stream_blocks, *network.single_stream_blocks))


def _why_no_hidream(kwargs: Mapping[str, Any], call: DenoiserCall) -> str | None:
    """HiDream E1 has the picture that it edits at the right of its own."""
    is_beside = kwargs.get("image_cond") is not None
    return notices.MASKS_BESIDE_IMAGE if is_beside and any(edit.mask is not None for edit in call.edits) else None


def _cogvideo_grid(network: Module, shape: Sequence[int], conds: Mapping[str, Any]) -> Grid:
    return Grid.of_patches(shape, (network.patch_size_t or 1, network.patch_size, network.patch_size))


def _numbered(modules: Iterable[Module]) -> dict[str, Module]:
    return {f"b{index}.0": module for index, module in enumerate(modules)}


def _tokens_of(latents: Sequence[Tensor], patch_size: int) -> int:
    """The patches of latents [b, c, height, width]."""
    return sum(math.prod(math.ceil(side / patch_size) for side in latent.shape[-2:]) for latent in latents)


def _why_no_krea2(kwargs: Mapping[str, Any], call: DenoiserCall) -> str | None:
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
        why_refused=lambda kwargs, call: notices.REFERENCES if kwargs.get("ref_latents") else None,
    ),
    _omnigen("omnigen.omnigen2.OmniGen2Transformer2DModel", _omnigen_layers),
    _omnigen("boogu.model.BooguTransformer2DModel", _boogu_layers),
    JointFamily(
        "ideogram4.model.Ideogram4Transformer2DModel",
        _lumina_layers,
        lambda network, shape, conds: Grid(tuple(shape[-2:])),
        text_width=lambda network: network.llm_cond_proj.in_features,
        rotation=2,
        masks="text, by the network",
    ),
    JointFamily(
        "lens.model.LensTransformer2DModel",
        _qwen_layers,
        lambda network, shape, conds: Grid(tuple(shape[-2:])),
        text_width=lambda network: network.txt_in.in_features,
        is_text_first=False,
        positions=lambda network: network.pos_embed,
        text=lambda args, kwargs: kwargs["encoder_hidden_states"],
        masks="text, by the network",
    ),
    JointFamily(
        "joyimage.model.JoyImageTransformer3DModel",
        lambda network: _numbered(block.attn for block in network.double_blocks),
        lambda network, shape, conds: Grid.of_patches(shape, network.patch_size),
        text_width=lambda network: network.condition_embedder.text_embedder.linear_1.in_features,
        is_text_first=False,
        text=lambda args, kwargs: args[1],
        masks="nothing",
    ),
    # Each block has the text of T5, that of Llama's last layer, and that of the layer of Llama that is the block's own.
    JointFamily(
        "hidream.model.HiDreamImageTransformer2DModel",
        _hidream_layers,
        lambda network, shape, conds: Grid.of_patches(shape, [network.patch_size] * 2),
        text_width=lambda network: network.caption_projection[-1].linear.in_features,
        texts={"context": 1, "encoder_hidden_states_llama3": 2},
        sequence=("context", "encoder_hidden_states_llama3", "encoder_hidden_states_llama3"),
        is_text_first=False,
        text=lambda args, kwargs: args[2] if len(args) > 2 else None,
        masks="nothing",
        has_pooled_text=lambda network: True,
        why_refused=_why_no_hidream,
    ),
    JointFamily(
        "cogvideo.model.CogVideoXTransformer3DModel",
        lambda network: _numbered(network.blocks),
        _cogvideo_grid,
        text_width=lambda network: network.patch_embed.text_proj.in_features,
        text=lambda args, kwargs: kwargs["encoder_hidden_states"],
        masks="nothing",
    ),
    JointFamily(
        "krea2.model.SingleStreamDiT",
        lambda network: _numbered(block.attn for block in network.blocks),
        lambda network, shape, conds: Grid.of_patches(shape, (network.patch, network.patch)),
        text_width=lambda network: network.txtlayers * network.txtdim,
        positions=lambda network: network.pe_embedder,
        masks="nothing",
        text_layers=lambda network: [block.attn for block in network.txtfusion.refiner_blocks],
        why_refused=_why_no_krea2,
    ),
    JointFamily(
        "modules.diffusionmodules.mmdit.OpenAISignatureMMDITWrapper",
        lambda network: _numbered(network.joint_blocks),
        lambda network, shape, conds: Grid.of_patches(shape, network.x_embedder.patch_size),
        text_width=lambda network: network.context_embedder.in_features,
        text=lambda args, kwargs: args[0],
        masks="nothing",
        has_pooled_text=lambda network: network.y_embedder is not None,
        why_unsupported=_why_no_sd3,
    ),
]
