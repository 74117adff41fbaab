"""The transformers that read text by cross-attention: what is said of a family, and one entry for each.

To support another, add an entry to FAMILIES and its name to NAMES, and remove it from refused_networks.py. Its other
places, if they apply: the token lists of its text encoder (SUPPORTED in text/tokenized_prompt.py; a new kind of
vocabulary: text/vocabularies.py), which token weights, attention maps, EBCA Rank and EBCA Reroll need; in the tests a
tiny network (tests/support/toy_dit_more.py) and its real size (tests/test_families.py); FILES in bench/templates.py,
which writes the table of docs/models.md; the lists of models in README.md and, by family, in docs/transformers.md; the
encoders in web/docs/EBCATokenWeights.md. `_predict2` is the simplest entry.

A family is one class of network, not its subclasses: a subclass that reads its text in another way would be updated
wrongly, without an error. A class of another pack can name its family itself (`Family.matches`). A family is named, not
imported, but for one helper function: a ComfyUI need not have all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch
from comfy.ldm.hydit.attn_layers import apply_rotary_emb
from torch import Tensor
from torch.nn import Module

#: Keyword arguments of apply_model that hold the attention mask of the text.
TEXT_MASKS = ("attention_mask",)
#: Keyword arguments of apply_model that stay the prompt's where an edit's text is read: its pooled text.
POOLED_TEXTS = ("y",)


@dataclass(frozen=True)
class Parts:
    """How a cross-attention module makes keys and values of a text [b, t, c]."""

    heads: int
    k: Module
    #: None: `k` makes keys and values in one product of `pieces` equal pieces, the values last.
    v: Module | None
    _: KW_ONLY
    pieces: int = 2
    #: Of the keys, an RMSNorm or a LayerNorm: key_norms.py raises TypeError for another class. per_head: it acts on
    #: each head instead of all of them together; heads_first: on [b, h, t, d].
    k_norm: Module | None = None
    per_head: bool = True
    heads_first: bool = False
    #: Heads of the keys, where several heads of the queries share one.
    key_heads: int | None = None
    #: Whether queries and keys are two halves, and the output is the attention of the first less that of the second.
    is_differential: bool = False
    #: In modules that get no options, or compute several attentions: what makes the queries, and what takes the
    #: attention's output.
    q: Module | None = None
    out: Module | None = None
    #: The same: the queries [b, n, (h d)] from the output of `q` and the module's arguments.
    queries: Callable[[Tensor, tuple], Tensor] | None = None


@dataclass(frozen=True)
class Grid:
    """Frames, rows and columns of a network's image tokens; tokens before and after them belong to no image.

    An empty size: all tokens belong to no image.
    """

    size: tuple[int, ...]
    before: int = 0

    @classmethod
    def of_patches(cls, sides: Sequence[int], patch_size: Sequence[int], before: int = 0) -> Grid:
        """The patches of an input whose last dimensions, `sides`, are rounded up."""
        sides = sides[-len(patch_size) :]
        return cls(tuple(math.ceil(side / patch) for side, patch in zip(sides, patch_size, strict=True)), before)


@dataclass(frozen=True)
class Blocks:
    """Blocks that change a text before their layers read it, or read several texts, which are streams of their own."""

    #: From the network and the name of a layer: the block around it.
    around: Callable[[Module, str], Module]
    #: {first letter of a layer's name: its text among the keyword arguments of the block}; the letter is the stream.
    texts: Mapping[str, str]
    #: From a block, a stream, its text and the block's keyword arguments: `scale` and `shift` [b or 1, 1, c] with which
    #: the layer reads text * scale + shift; None where it reads the text itself.
    modulation: Callable[[Module, str, Tensor, Mapping[str, Any]], tuple[Tensor, Tensor] | None]


@dataclass(frozen=True)
class Family:
    """What one kind of transformer looks like. TEXT_MASKS and POOLED_TEXTS hold for all of them."""

    #: Its class in comfy.ldm, by name; subclasses are families of their own.
    network: str
    #: {name: cross-attention module}, in the order of a call.
    layers: Callable[[Module], Mapping[str, Module]]
    parts: Callable[[Module], Parts]
    #: The grid of a stream's tokens, from the network, the shape [b, c, (frames,) height, width] of its input, the
    #: keyword arguments of apply_model and the stream.
    grid: Callable[[Module, Sequence[int], Mapping[str, Any], str], Grid]
    #: Position and name of the text among the arguments of the modules.
    text: tuple[int, str] = (1, "context")
    #: Width of the text that encoders give, None where it is not checked.
    text_width: Callable[[Module], int | None] = lambda network: None
    #: Whether a call of a module gets the image's tokens, and not another branch's, from these tokens [b, n, c] and
    #: their grid.
    is_picture: Callable[[Tensor, Grid], bool] = lambda tokens, grid: True
    #: Rows in front of the text that belong to an image, from the module and its keyword arguments.
    image_rows: Callable[[Module, Mapping[str, Any]], int] = lambda module, kwargs: 0
    #: Tokens of the text that are no words, from the keyword arguments and the context [b, t, c] of apply_model: where
    #: they are, or for each text, [b, t].
    not_words: Callable[[Mapping[str, Any], Tensor], slice | Tensor] | None = None
    #: How many of them are in front of the prompt's.
    tokens_before_text: int = 0
    #: Which of a module's attention calls reads the text.
    attention_call: Callable[[Module], int] = lambda module: 0
    #: Whether the text that layers read depends on the noise level.
    text_depends_on_sigma: bool = False
    #: How the texts of a batch lie in the argument, in the letters of einops.
    text_layout: str = "b t c"
    #: Turns keys [b, t, h, d] of a network by their positions, or where the last argument is True, steps in them back.
    rotate: Callable[[Module, Tensor, bool], Tensor] | None = None
    blocks: Blocks | None = None
    #: Why contexts cannot be updated in a network; None where they can.
    why_no_update: Callable[[Module], str | None] = lambda network: None

    def matches(self, network: Module) -> bool:
        return is_of_class(network, self.network)

    def stream(self, layer: str) -> str:
        """Which text a layer reads, where the network reads several."""
        return layer[0] if self.blocks is not None else ""


def is_of_class(network: Module, name: str) -> bool:
    """Whether a network is of the class `comfy.ldm.<name>`, or of one that names it as its own `ebca_family`.

    A class sets `ebca_family` to a class of ComfyUI's if it inherits all of its attention to the text unchanged. Its
    own subclasses do not inherit that.
    """
    of = vars(type(network)).get("ebca_family", type(network))
    return f"{of.__module__}.{of.__qualname__}" == f"comfy.ldm.{name}"


#: In messages.
NAMES = "Wan, Anima, Cosmos, LTX-Video, LTX-2, PixArt, Kandinsky 5, HunyuanDiT, Stable Audio, ACE-Step"

_patches = Grid.of_patches


def _in_blocks(attribute: str, blocks: str = "blocks", letter: str = "b"):
    """Layers b0.0, b1.0, ...: one module in each block."""

    def layers(network: Module) -> dict[str, Module]:
        return {f"{letter}{index}.0": getattr(block, attribute) for index, block in enumerate(getattr(network, blocks))}

    return layers


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
    return Parts(module.num_heads, module.k, module.v, k_norm=norm, per_head=False)


def _wan_grid(network: Module, shape: Sequence[int], conds: Mapping[str, Any], stream: str) -> Grid:
    """Tokens of a reference image lie in front of the video's where the network has a convolution for it."""
    reference = conds.get("reference_latent") if getattr(network, "ref_conv", None) is not None else None
    rows, columns = network.patch_size[1:]
    before = 0 if reference is None else (reference.shape[-2] // rows) * (reference.shape[-1] // columns)
    return _patches(shape, network.patch_size, before)


def _scail_grid(network: Module, shape: Sequence[int], conds: Mapping[str, Any], stream: str) -> Grid:
    """Frames of reference lie in front of the video's."""
    reference = conds.get("reference_latent")
    before = 0 if reference is None else math.prod(_patches(reference.shape, network.patch_size).size)
    return _patches(shape, network.patch_size, before)


def _reads_image(module: Module) -> bool:
    """Whether a module of Wan attends to image rows of its context, before it attends to the text."""
    return hasattr(module, "k_img")


def _wan(network: str, grid: Callable = _wan_grid, **more: Any) -> Family:
    return Family(
        network,
        _wan_layers,
        _wan_parts,
        grid,
        text_width=lambda network: network.text_embedding[0].in_features,
        image_rows=lambda module, kwargs: (kwargs.get("context_img_len") or 0) if _reads_image(module) else 0,
        attention_call=lambda module: int(_reads_image(module)),
        **more,
    )


# --- Cosmos, Anima ---


def _predict2(network: str, text_width: Callable[[Module], int]) -> Family:
    return Family(
        network,
        _in_blocks("cross_attn"),
        lambda module: Parts(module.n_heads, module.k_proj, module.v_proj, k_norm=module.k_norm),
        lambda network, shape, *_: _patches(
            shape, (network.patch_temporal, network.patch_spatial, network.patch_spatial)
        ),
        text_width=text_width,
    )


def _cosmos1_layers(network: Module) -> dict[str, Module]:
    return {
        f"b{index}.{depth}": part.block.attn
        for index, block in enumerate(network.blocks.values())
        for depth, part in enumerate(part for part in block.blocks if part.block_type in ("ca", "cross_attn"))
    }


# --- LTX ---


def _ltx_parts(module: Module) -> Parts:
    return Parts(module.heads, module.to_k, module.to_v, k_norm=module.k_norm, per_head=False)


def _ltx_modulation(
    block: Module, stream: str, text: Tensor, kwargs: Mapping[str, Any]
) -> tuple[Tensor, Tensor] | None:
    """From LTX-2.3 on, every block shifts and scales its text, by the noise level or always alike."""
    if not block.cross_attention_adaln:
        return None
    is_sound = stream == "a"
    table = block.audio_prompt_scale_shift_table if is_sound else block.prompt_scale_shift_table
    names = ("a_prompt_timestep",) if is_sound else ("v_prompt_timestep", "prompt_timestep")
    timestep = next(kwargs[name] for name in names if name in kwargs)
    both = table[None, None].to(text)
    if timestep is not None:
        both = both + timestep.reshape(*timestep.shape[:2], 2, -1)
    shift, scale = both.unbind(dim=2)
    return 1 + scale, shift


def _ltx_blocks(**texts: str) -> Blocks:
    return Blocks(lambda network, name: network.transformer_blocks[int(name[1:].split(".")[0])], texts, _ltx_modulation)


def _ltxav_layers(network: Module) -> dict[str, Module]:
    """The layers b read the video's text, the layers a the sound's."""
    return {
        f"{letter}{index}.0": module
        for index, block in enumerate(network.transformer_blocks)
        for letter, module in (("b", block.attn2), ("a", block.audio_attn2))
    }


# --- HunyuanDiT ---


def _hydit_queries(q: Tensor, args: tuple) -> Tensor:
    """Its rotary embedding follows the norm."""
    return apply_rotary_emb(q, None, args[2])[0].flatten(2) if args[2] is not None else q.flatten(2)


def _hydit_padding(conds: Mapping[str, Any], context: Tensor) -> Tensor:
    """Masked tokens of CLIP, then of T5: the network puts learned rows in their place."""
    return torch.cat([conds["text_embedding_mask"], conds["text_embedding_mask_t5"]], dim=1).to(context.device) == 0


# --- sound: rows of the grid are 1, and columns are time ---


def _stable_audio_parts(module: Module) -> Parts:
    """Stable Audio 3 subtracts a second attention from the first."""
    norm, is_differential = getattr(module, "k_norm", None), getattr(module, "differential", False)
    if not is_differential:
        return Parts(
            module.num_heads, module.to_kv, None, k_norm=norm, heads_first=True, key_heads=module.kv_heads
        )
    heads = 2 * module.num_heads

    def queries(q: Tensor, args: tuple) -> Tensor:
        return q if norm is None else module.q_norm(q.unflatten(-1, (heads, -1))).flatten(2)

    return Parts(
        heads, module.to_kv, None, pieces=3, k_norm=norm, heads_first=True, key_heads=2 * module.kv_heads,
        is_differential=True, q=module.to_q, out=module.to_out, queries=queries,
    )  # fmt: skip


def _stable_audio_grid(network: Module, shape: Sequence[int], conds: Mapping[str, Any], stream: str) -> Grid:
    transformer = network.transformer
    before = getattr(transformer, "num_memory_tokens", 0) + (network.global_cond_type == "prepend")
    return _patches((1, shape[-1]), (1, getattr(network, "patch_size", 1)), before)


def _no_differential_update(network: Module) -> str | None:
    if not any(getattr(layer.cross_attn, "differential", False) for layer in network.transformer.layers):
        return None
    return "its layers subtract two attentions, for which EBCA has no energy"


def _ace_rotate(network: Module, keys: Tensor, back: bool) -> Tensor:
    """ACE-Step gives each pair of channels two angles, so that this is no rotation; `back` is its transpose."""
    cos, sin = (one.to(keys.device)[:, None] for one in network.rotary_emb(keys, seq_len=keys.shape[1]))

    def turned(tensor: Tensor) -> Tensor:
        first, second = tensor.unflatten(-1, (-1, 2)).unbind(-1)
        return torch.stack([-second, first], dim=-1).flatten(-2)

    x = keys.float()
    return (x * cos - turned(x * sin) if back else x * cos + turned(x) * sin).to(keys.dtype)


FAMILIES = [
    _wan("wan.model.WanModel"),
    _wan("wan.model.VaceWanModel"),
    _wan("wan.model.CameraWanModel"),
    _wan("wan.model.HumoWanModel"),
    _wan("wan.model.WanModel_S2V"),
    _wan("wan.model_animate.AnimateWanModel"),
    # Its blocks first run on the frames of a pose, which are fewer, with a text of their own.
    _wan(
        "wan.model_animate2.WanAnimate2Model",
        is_picture=lambda tokens, grid: tokens.shape[1] == math.prod(grid.size),
    ),
    _wan("wan.model_wandancer.WanDancerModel"),
    _wan("wan.model.SCAILWanModel", _scail_grid),
    _wan("wan.model.SCAIL2WanModel", _scail_grid),
    _predict2("cosmos.predict2.MiniTrainDIT", lambda network: network.blocks[0].cross_attn.context_dim),
    _predict2("anima.model.Anima", lambda network: network.llm_adapter.blocks[0].cross_attn.context_dim),
    Family(
        "cosmos.model.GeneralDIT",
        _cosmos1_layers,
        lambda module: Parts(module.heads, module.to_k[0], module.to_v, k_norm=module.to_k[1], heads_first=True),
        lambda network, shape, *_: _patches(
            shape, (network.patch_temporal, network.patch_spatial, network.patch_spatial)
        ),
        text_width=lambda network: next(iter(_cosmos1_layers(network).values())).to_k[0].in_features,
        text_layout="t b c",
    ),
    Family(
        "lightricks.model.LTXVModel",
        _in_blocks("attn2", "transformer_blocks"),
        _ltx_parts,
        lambda network, shape, *_: _patches(shape, (1, 1, 1)),
        text_width=lambda network: network.caption_channels,
        blocks=_ltx_blocks(b="context"),
    ),
    Family(
        "lightricks.av_model.LTXAVModel",
        _ltxav_layers,
        _ltx_parts,
        lambda network, shape, conds, stream: _patches(shape, (1, 1, 1)) if stream == "b" else Grid(()),
        blocks=_ltx_blocks(b="v_context", a="a_context"),
    ),
    Family(
        "pixart.pixartms.PixArtMS",
        _in_blocks("cross_attn"),
        lambda module: Parts(
            module.num_heads, module.kv_linear, None, q=module.q_linear, out=module.proj, queries=lambda q, args: q
        ),
        lambda network, shape, *_: _patches(shape, (network.patch_size, network.patch_size)),
        text=(1, "cond"),
        text_width=lambda network: network.y_embedder.y_proj.fc1.in_features,
        text_layout="1 (b t) c",
    ),
    Family(
        "kandinsky5.model.Kandinsky5",
        _in_blocks("cross_attention", "visual_transformer_blocks"),
        lambda module: Parts(module.num_heads, module.to_key, module.to_value, k_norm=module.key_norm),
        lambda network, shape, *_: _patches((1, *shape[2:]), network.patch_size),
        text_width=lambda network: network.text_embeddings.in_layer.in_features,
        text_depends_on_sigma=True,
    ),
    Family(
        "hydit.models.HunYuanDiT",
        _in_blocks("attn2"),
        lambda module: Parts(
            module.num_heads,
            module.kv_proj,
            None,
            k_norm=module.k_norm if isinstance(module.k_norm, torch.nn.LayerNorm) else None,
            q=module.q_norm,
            out=module.out_proj,
            queries=_hydit_queries,
        ),
        lambda network, shape, *_: _patches(shape, (network.patch_size, network.patch_size)),
        text=(1, "y"),
        text_width=lambda network: network.text_states_dim,
        not_words=_hydit_padding,
    ),
    Family(
        "audio.dit.AudioDiffusionTransformer",
        lambda network: _in_blocks("cross_attn", "layers")(network.transformer),
        _stable_audio_parts,
        _stable_audio_grid,
        text_width=lambda network: network.cond_token_dim,
        # The numbers of seconds: start and length in Stable Audio 1, the length in 3.
        not_words=lambda conds, context: slice(-(conds["global_embed"].shape[-1] // context.shape[-1]), None),
        why_no_update=_no_differential_update,
    ),
    Family(
        "ace.model.ACEStepTransformer2DModel",
        _in_blocks("cross_attn", "transformer_blocks"),
        lambda module: Parts(module.heads, module.to_k, module.to_v),
        lambda network, shape, *_: _patches(shape, network.patch_size),
        text=(1, "encoder_hidden_states"),
        text_width=lambda network: network.genre_embedder.in_features,
        not_words=lambda conds, context: slice(0, 1),  # the speaker; tags and lyrics follow
        tokens_before_text=1,
        rotate=_ace_rotate,
    ),
    Family(
        "ace.ace_step15.AceStepConditionGenerationModel",
        lambda network: _in_blocks("cross_attn", "layers")(network.decoder),
        lambda module: Parts(
            module.num_heads,
            module.k_proj,
            module.v_proj,
            k_norm=module.k_norm,
            key_heads=module.num_kv_heads,
            q=module.q_norm,
            out=module.o_proj,
            queries=lambda q, args: q.flatten(2),
        ),
        lambda network, shape, *_: _patches((1, shape[-1]), (1, network.decoder.patch_size)),
        text=(1, "encoder_hidden_states"),
        text_width=lambda network: network.encoder.text_projector.in_features,
        # The timbre, between lyrics and tags.
        not_words=lambda conds, context: slice(conds["lyric_embed"].shape[1], -context.shape[1]),
    ),
]
