"""Tiny transformers of ComfyUI's own classes with random weights, text and image in one attention. Needs a booted host.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import comfy.ops
import comfy.sample
import comfy.supported_models
import torch
from comfy.ldm.chroma_radiance.model import ChromaRadianceParams

from support.toy import noise, patcher
from support.toy_dit import POOLED, WIDTH, fill

#: PyTorch multiplies matrices of 8, 16, .. rows in one way, so that a token does not depend on how many there are.
TOKENS = 8
LLAMA_WIDTH = 48

_FLUX = dict(
    image_model="flux", in_channels=16, patch_size=2, out_channels=16, context_in_dim=WIDTH, hidden_size=64,
    mlp_ratio=2.0, num_heads=2, depth=2, depth_single_blocks=3, axes_dim=[8, 12, 12], theta=10000, qkv_bias=True,
)  # fmt: skip
_CHROMA = dict(_FLUX, in_dim=64, out_dim=64, hidden_dim=32, n_layers=2, vec_in_dim=None, txt_ids_dims=[])
_OMNIGEN = dict(
    patch_size=2, in_channels=16, hidden_size=64, num_refiner_layers=1, num_attention_heads=2, num_kv_heads=1,
    multiple_of=32, axes_dim_rope=(8, 12, 12),
)  # fmt: skip
_LUMINA = dict(
    image_model="lumina2", patch_size=2, in_channels=16, dim=256, n_layers=3, n_refiner_layers=2, n_heads=4,
    multiple_of=32, ffn_dim_multiplier=2.0, qk_norm=True, axes_dims=[16, 24, 24], axes_lens=[64, 64, 64],
    rope_theta=256.0,
)  # fmt: skip


def _known(params: type, **settings: Any) -> dict[str, Any]:
    """The settings that a network takes in this ComfyUI."""
    return {name: value for name, value in settings.items() if name in params.__dataclass_fields__}


@dataclass(frozen=True)
class Toy:
    """The class of comfy.supported_models, its settings, the shape of a latent without the batch, and what differs."""

    class_name: str
    settings: dict[str, Any]
    shape: tuple[int, ...]
    #: The setting with the width of the text.
    width: str
    #: The side of a patch of the latent.
    patch: int
    #: A layer's path in the network, and the name of the first blocks in which text and image attend to each other.
    layer: str
    blocks: str
    #: Tokens of the image behind those of its patches.
    after: int = 0
    #: The shapes of reference latents, where the family takes some.
    references: tuple[tuple[int, ...], ...] = ()
    #: Whether their tokens are in front of the picture's.
    are_references_first: bool = False
    has_text_mask: bool = False
    #: The setting with the width of its pooled text, where it has one.
    pooled: str | None = None


TOYS = {
    "qwen": Toy("QwenImage", dict(
        image_model="qwen_image", num_layers=4, attention_head_dim=32, num_attention_heads=2, in_channels=64,
        axes_dims_rope=(8, 12, 12),
    ), (16, 1, 8, 8), "joint_attention_dim", 2, "transformer_blocks.1.attn", "transformer_blocks",
        references=((1, 16, 1, 4, 8), (1, 16, 1, 6, 4)), has_text_mask=True),
    "flux": Toy("Flux", dict(_FLUX, guidance_embed=True, txt_ids_dims=[]), (16, 8, 8),
        "context_in_dim", 2, "single_blocks.1", "double_blocks", references=((1, 16, 4, 6),), pooled="vec_in_dim"),
    "flux2": Toy("Flux2", dict(
        _FLUX, image_model="flux2", in_channels=128, patch_size=1, out_channels=128, vec_in_dim=None, mlp_ratio=3.0,
        axes_dim=[8, 8, 8, 8], theta=2000, qkv_bias=False, guidance_embed=True, txt_ids_dims=[3],
        global_modulation=True, mlp_silu_act=True, ops_bias=False, default_ref_method="index", ref_index_scale=10.0,
    ), (128, 6, 6), "context_in_dim", 1, "double_blocks.1", "double_blocks",
        references=((1, 128, 4, 2), (1, 128, 2, 4))),
    "longcat": Toy("LongCatImage", dict(_FLUX, vec_in_dim=None, guidance_embed=False, txt_ids_dims=[1, 2]), (16, 8, 8),
        "context_in_dim", 2, "single_blocks.0", "double_blocks"),
    "ovis": Toy("Flux", dict(
        _FLUX, vec_in_dim=None, guidance_embed=False, txt_ids_dims=[1, 2], yak_mlp=True, txt_norm=True,
    ), (16, 8, 8), "context_in_dim", 2, "double_blocks.0", "double_blocks"),
    "chroma": Toy("Chroma", dict(_CHROMA, image_model="chroma", in_channels=64, out_channels=64), (16, 8, 8),
        "context_in_dim", 2, "single_blocks.2", "double_blocks"),
    "chroma_radiance": Toy("ChromaRadiance", dict(
        _CHROMA, image_model="chroma_radiance", in_channels=3, out_channels=3, patch_size=4, nerf_hidden_size=16,
        nerf_mlp_ratio=2, nerf_depth=1, nerf_max_freqs=2, nerf_tile_size=0, nerf_final_head_type="conv",
        nerf_embedder_dtype=None, use_x0=False, **_known(ChromaRadianceParams, use_sequential_txt_ids=True),
    ), (3, 16, 16), "context_in_dim", 4, "double_blocks.0", "double_blocks"),
    "mage_flow": Toy("MageFlow", dict(
        image_model="mage_flow", num_layers=3, attention_head_dim=32, num_attention_heads=2, in_channels=128,
        axes_dims_rope=(8, 12, 12),
    ), (128, 6, 6), "joint_attention_dim", 1, "transformer_blocks.0.attn", "transformer_blocks",
        references=((1, 128, 3, 4), (1, 128, 4, 2)), has_text_mask=True),
    "zimage": Toy("ZImage", dict(
        _LUMINA, n_kv_heads=4, z_image_modulation=True, time_scale=1000.0, pad_tokens_multiple=8,
    ), (16, 8, 6), "cap_feat_dim", 2, "layers.1.attention", "layers", after=4),
    "lumina": Toy("Lumina2", dict(_LUMINA, n_kv_heads=2), (16, 8, 8), "cap_feat_dim", 2, "context_refiner.0.attention",
        "layers"),
    "omnigen2": Toy("Omnigen2", dict(_OMNIGEN, image_model="omnigen2", num_layers=3), (16, 8, 8), "text_feat_dim", 2,
        "layers.1.attn", "layers", references=((1, 16, 4, 6), (1, 16, 2, 4)), are_references_first=True),
    "boogu": Toy("Boogu", dict(_OMNIGEN, image_model="boogu", num_layers=2, num_double_stream_layers=2), (16, 8, 8),
        "instruction_feat_dim", 2, "double_stream_layers.1.img_instruct_attn", "double_stream_layers",
        references=((1, 16, 4, 6), (1, 16, 2, 4)), are_references_first=True),
    "ideogram4": Toy("Ideogram4", dict(
        image_model="ideogram4", in_channels=128, num_layers=3, num_attention_heads=2, attention_head_dim=32,
        intermediate_size=96, adaln_dim=32, mrope_section=[6, 5, 5],
    ), (128, 6, 6), "llm_features_dim", 1, "layers.1.attention", "layers", has_text_mask=True),
    "lens": Toy("Lens", dict(
        image_model="lens", num_layers=3, attention_head_dim=32, num_attention_heads=2, axes_dims_rope=(8, 12, 12),
        multi_layer_encoder_feature=False,
    ), (128, 6, 6), "enc_hidden_dim", 1, "transformer_blocks.1.attn", "transformer_blocks", has_text_mask=True),
    "joyimage": Toy("JoyImage", dict(
        image_model="joyimage", hidden_size=64, num_attention_heads=2, num_layers=3, rope_dim_list=[8, 12, 12],
    ), (16, 1, 8, 8), "text_dim", 2, "double_blocks.1.attn", "double_blocks",
        references=((1, 16, 1, 4, 6), (1, 16, 1, 2, 4))),
    "hidream": Toy("HiDream", dict(
        image_model="hidream", patch_size=2, in_channels=16, out_channels=16, num_layers=2, num_single_layers=2,
        attention_head_dim=32, num_attention_heads=2, axes_dims_rope=[16, 8, 8], max_resolution=[16, 16],
        llama_layers=[0, 1, 2, 2], num_routed_experts=3, num_activated_experts=2,
    ), (16, 8, 8), "caption_channels", 2, "single_stream_blocks.1.block.attn1", "double_stream_blocks",
        pooled="text_emb_dim"),
    "cogvideox": Toy("CogVideoX_T2V", dict(
        image_model="cogvideox", num_attention_heads=2, attention_head_dim=32, time_embed_dim=32, num_layers=3,
        patch_size_t=2, use_rotary_positional_embeddings=True,
    ), (16, 2, 8, 8), "text_embed_dim", 2, "blocks.1", "blocks"),
    "krea2": Toy("Krea2", dict(
        image_model="krea2", features=64, tdim=32, heads=2, kvheads=1, multiplier=2, layers=3, patch=2, channels=16,
        txtlayers=1, txtheads=2, txtkvheads=2, default_ref_method="index",
    ), (16, 1, 8, 8), "txtdim", 2, "txtfusion.refiner_blocks.1.attn", "blocks",
        references=((1, 16, 1, 4, 8), (1, 16, 1, 6, 4))),
    "sd35": Toy("SD3", dict(
        in_channels=16, pos_embed_scaling_factor=None, patch_size=2, depth=2, num_blocks=4, num_patches=64,
        pos_embed_max_size=8, qk_norm="rms", input_size=None, x_block_self_attn_layers=[0, 1],
    ), (16, 8, 8), "context_size", 2, "joint_blocks.1", "joint_blocks", pooled="adm_in_channels"),
}  # fmt: skip
#: Those that this ComfyUI has.
FAMILIES = [name for name, toy in TOYS.items() if hasattr(comfy.supported_models, toy.class_name)]
#: One for each way in which tokens lie: what does not depend on more is tested on these.
KINDS = [name for name in ("qwen", "flux", "zimage", "sd35", "hidream", "ideogram4") if name in FAMILIES]


def named(**wanted: Any) -> list[str]:
    """The families with fields of these values."""
    return [
        family for family in FAMILIES if all(getattr(TOYS[family], k) == v for k, v in wanted.items())
    ]


def model(family: str, seed: int = 0, dtype: torch.dtype = torch.float32, width: int = WIDTH, pooled: int = POOLED):
    """A MODEL of one of the families. width, pooled: of its text, and of its pooled text where it has one."""
    toy = TOYS[family]
    settings = {**toy.settings, toy.width: width, **({} if toy.pooled is None else {toy.pooled: pooled})}
    if toy.class_name == "SD3":
        embedder = dict(in_features=width, out_features=64 * settings["depth"])
        settings["context_embedder_config"] = {"target": "torch.nn.Linear", "params": embedder}
    if family == "hidream":  # a width for T5 and one for Llama
        settings[toy.width] = [width, LLAMA_WIDTH]
    config = getattr(comfy.supported_models, toy.class_name)(settings)
    config.unet_config |= settings  # some classes have sizes of their own
    if family == "cogvideox":  # its first noise level is 4,500, from which float32 comes back with errors of 1e-4
        config.sampling_settings = {**config.sampling_settings, "zsnr": False}
    config.set_inference_dtype(dtype, None)
    base = config.get_model({}, device=torch.device("cpu"))
    fill(base.diffusion_model, seed)
    for name, buffer in base.diffusion_model.named_buffers():
        if name == "pos_embed":  # of SD 3, in memory that is not initialised
            buffer.copy_(0.3 * noise(*buffer.shape, seed=seed))
    return patcher(base.eval())


def shape(family: str, batch: int = 1) -> list[int]:
    """[batch, channels, (frames,) height, width] of the family's small latents."""
    return [batch, *TOYS[family].shape]


def conditioning(family: str, seed: int = 0, tokens: int = TOKENS, batch: int = 1, width: int = WIDTH, **options: Any):
    """A random CONDITIONING as the family's text encoder gives it."""
    if TOYS[family].blocks in ("double_blocks", "joint_blocks"):  # some of these only ask for it
        options["pooled_output"] = noise(batch, POOLED, seed=2000 + seed)
    if family == "hidream":
        options["pooled_output"] = noise(batch, POOLED, seed=2000 + seed)
        options["conditioning_llama3"] = noise(batch, 3, tokens + 8, LLAMA_WIDTH, seed=3000 + seed)
    if family in ("omnigen2", "boogu"):
        options["attention_mask"] = torch.ones(batch, tokens, dtype=torch.long)
    return [[noise(batch, tokens, width, seed=1000 + seed), options]]


def double_blocks(family: str, model) -> torch.nn.ModuleList:
    """The first blocks in which text and image attend to each other."""
    return getattr(model.model.diffusion_model, TOYS[family].blocks)


def blocks(family: str, model) -> Sequence[torch.nn.Module]:
    """All of them, in their order."""
    names = "single_blocks", "single_stream_blocks", "single_stream_layers"
    network = model.model.diffusion_model
    return [*double_blocks(family, model), *(block for name in names for block in getattr(network, name, ()))]


def has_input_patches(family: str) -> bool:
    """Whether patches of other packs can change the input of the family's network in this ComfyUI."""
    return "post_input" in inspect.getsource(sys.modules[type(model(family).model.diffusion_model).__module__])
