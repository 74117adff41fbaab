"""Composition in joint attention, made by hand in float64: row by row, with a text stream of its own for each context.

Needs a booted host. Nothing of the pack and no forward pass of ComfyUI's networks takes part: for the length of a `with
applied(...)` the forward pass of the network is replaced by one that is written here, with its weights.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from comfy.ldm.flux.layers import timestep_embedding
from torch import Tensor
from torch.nn.functional import gelu, silu

from support import joint_oracle_more, joint_parts
from support.joint_parts import (
    Mix,
    each_repeated,
    gate_of,
    head_norm,
    layer_norm,
    linear,
    patches,
    picture,
    places,
    rms_norm,
    rotated,
)
from support.oracle import Edit, _instead

# --- Qwen-Image, Mage-Flow ---


def _qwen(network, x: Tensor, timestep: Tensor, mix: Mix, conds: dict[str, Any]) -> Tensor:
    """x [16, 1, height, width] -> the same."""
    height, width = x.shape[-2:]
    images, ids = [patches(x[:, 0], 2)], [places(height // 2, width // 2, 0, -(height // 4), -(width // 4))]
    for index, reference in enumerate(conds.get("ref_latents") or ()):
        rows, columns = (side // 2 for side in reference.shape[-2:])
        images.append(patches(reference[0, :, 0].double(), 2))
        ids.append(places(rows, columns, index + 1, -(rows // 2), -(columns // 2)))
    start = max(height, width) // 4
    text_ids = [torch.arange(start, start + len(text))[:, None].expand(-1, 3) for text in mix.texts]
    out = _qwen_tokens(network, torch.cat(images), torch.cat(ids), text_ids, timestep, mix)
    return picture(out[: len(images[0])], 2, height, width)[:, None]


def _mage_flow(network, x: Tensor, timestep: Tensor, mix: Mix, conds: dict[str, Any]) -> Tensor:
    """x [128, height, width] -> the same."""
    images = [x, *(reference[0].double() for reference in conds.get("ref_latents") or ())]
    ids = [
        places(*image.shape[-2:], index, *(-((side + 1) // 2) for side in image.shape[-2:]))
        for index, image in enumerate(images)
    ]
    text_ids = [torch.zeros(len(text), 3) for text in mix.texts]
    tokens = torch.cat([patches(image, 1) for image in images])
    out = _qwen_tokens(network, tokens, torch.cat(ids), text_ids, timestep, mix)
    return picture(out[: math.prod(x.shape[-2:])], 1, *x.shape[-2:])


def _qwen_tokens(network, tokens, image_ids, text_ids, timestep: Tensor, mix: Mix) -> Tensor:
    """Patches of the image [n, c] -> what the network returns for them."""
    heads, axes = network.transformer_blocks[0].attn.heads, network.pe_embedder.axes_dim
    image = linear(network.img_in, tokens)
    texts = [linear(network.txt_in, rms_norm(network.txt_norm, text)) for text in mix.texts]
    condition = network.time_text_embed(timestep, torch.zeros(1)).double()

    def modulation(module):
        return linear(module[1], silu(condition)).chunk(6, dim=-1)

    def qkv(attn, names, norms, x, ids):
        q, k, v = (linear(getattr(attn, name), x) for name in names)
        q, k = (head_norm(getattr(attn, norm), one, heads) for norm, one in zip(norms, (q, k), strict=True))
        return *(rotated(one, heads, ids, axes, 10000) for one in (q, k)), v

    of_text = (("add_q_proj", "add_k_proj", "add_v_proj"), ("norm_added_q", "norm_added_k"))
    of_image = (("to_q", "to_k", "to_v"), ("norm_q", "norm_k"))

    def mlp(module, x):
        return linear(module.net[2], gelu(linear(module.net[0].proj, x), approximate="tanh"))

    for block in network.transformer_blocks:
        shift, scale, gate, shift2, scale2, gate2 = modulation(block.img_mod)
        t_shift, t_scale, t_gate, t_shift2, t_scale2, t_gate2 = modulation(block.txt_mod)
        out_texts, out = mix.attend(
            [
                qkv(block.attn, *of_text, layer_norm(text) * (1 + t_scale) + t_shift, ids)
                for text, ids in zip(texts, text_ids, strict=True)
            ],
            qkv(block.attn, *of_image, layer_norm(image) * (1 + scale) + shift, image_ids),
            heads,
        )
        image = image + gate * linear(block.attn.to_out[0], out)
        image = image + gate2 * mlp(block.img_mlp, layer_norm(image) * (1 + scale2) + shift2)
        texts = [text + t_gate * linear(block.attn.to_add_out, o) for text, o in zip(texts, out_texts, strict=True)]
        texts = [text + t_gate2 * mlp(block.txt_mlp, layer_norm(text) * (1 + t_scale2) + t_shift2) for text in texts]
    scale, shift = linear(network.norm_out.linear, silu(condition)).chunk(2, dim=-1)
    return linear(network.proj_out, layer_norm(image) * (1 + scale) + shift)


# --- Flux 1 and 2, LongCat, Ovis, Chroma ---


def _flux(network, x: Tensor, timestep: Tensor, mix: Mix, conds: dict[str, Any]) -> Tensor:
    """x [c, height, width] -> the same."""
    params, (height, width) = network.params, x.shape[-2:]
    size, axes = params.patch_size, params.axes_dim
    rope = conds["transformer_options"].get("rope_options", {})
    shift = [rope.get(f"shift_{axis}", 0.0) for axis in "tyx"]

    def image_ids(rows, columns, index):
        ids = places(rows // size, columns // size, index + shift[0], *shift[1:])
        return torch.cat([ids, ids.new_zeros(len(ids), len(axes) - 3)], dim=1)

    images, ids = [patches(x, size)], [image_ids(height, width, 0)]
    for number, reference in enumerate(conds.get("ref_latents") or ()):
        images.append(patches(reference[0].double(), size))
        ids.append(image_ids(*reference.shape[-2:], getattr(params, "ref_index_scale", 1.0) * (number + 1)))
    image, ids = linear(network.img_in, torch.cat(images)), torch.cat(ids)
    texts, text_ids = [], []
    for text in mix.texts:
        texts.append(linear(network.txt_in, text if network.txt_norm is None else rms_norm(network.txt_norm, text)))
        text_ids.append(torch.zeros(len(text), len(axes), dtype=torch.float64))
        text_ids[-1][:, params.txt_ids_dims] = torch.arange(len(text), dtype=torch.float64)[:, None]
    vec = network.time_in(timestep_embedding(timestep, 256))
    if params.guidance_embed:
        vec = vec + network.guidance_in(timestep_embedding(conds["guidance"][:1], 256))
    if network.vector_in is not None:
        vec = vec + network.vector_in(conds["y"])
    vec = silu(vec.double())

    def modulation(module):
        return linear(module.lin, vec).chunk(module.multiplier, dim=-1)

    if getattr(params, "global_modulation", False):
        both = [modulation(getattr(network, f"double_stream_modulation_{kind}")) for kind in ("img", "txt")]
        double = [both] * len(network.double_blocks)
        single = [modulation(network.single_stream_modulation)] * len(network.single_blocks)
    else:
        double = [[modulation(block.img_mod), modulation(block.txt_mod)] for block in network.double_blocks]
        single = [modulation(block.modulation) for block in network.single_blocks]
    image = _flux_blocks(network, image, ids, texts, text_ids, mix, double, single)
    shift, scale = linear(network.final_layer.adaLN_modulation[1], vec).chunk(2, dim=-1)
    out = linear(network.final_layer.linear, layer_norm(image) * (1 + scale) + shift)
    return picture(out[: len(images[0])], size, height, width)


def _chroma(network, x: Tensor, timestep: Tensor, mix: Mix, conds: dict[str, Any]) -> Tensor:
    """x [16, height, width] -> the same."""
    height, width = x.shape[-2:]
    image, ids = linear(network.img_in, patches(x, 2)), places(height // 2, width // 2)
    image, mods = _chroma_tokens(network, image, ids, timestep, mix, conds)
    shift, scale = (one[0].double() for one in network.get_modulations(mods, "final"))
    return picture(linear(network.final_layer.linear, layer_norm(image) * (1 + scale) + shift), 2, height, width)


def _chroma_radiance(network, x: Tensor, timestep: Tensor, mix: Mix, conds: dict[str, Any]) -> Tensor:
    """x [3, height, width] -> the same. What turns tokens into pixels is the network's own."""
    size, (height, width) = network.patch_size, x.shape[-2:]
    kernel = network.img_in_patch
    image = patches(x, size) @ kernel.weight.double().flatten(1).T + kernel.bias.double()
    image, _ = _chroma_tokens(network, image, places(height // size, width // size), timestep, mix, conds)
    return network.forward_nerf(x[None].float(), image[None].float(), network.params)[0].double()


def _chroma_tokens(network, image, ids, timestep: Tensor, mix: Mix, conds: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """The image's tokens behind the blocks, and the modulations: the network's own, as they depend on no text."""
    steps = torch.cat([timestep_embedding(value.float(), 16) for value in (timestep, conds["guidance"][:1])], dim=1)
    index = timestep_embedding(torch.arange(344), 32)
    mods = network.distilled_guidance_layer(torch.cat([steps.expand(344, -1), index], dim=1)[None].float())

    def modulation(kind, number=0):
        outs = network.get_modulations(mods, kind, idx=number)
        outs = outs if isinstance(outs, tuple) else (outs,)
        return [one[0].double() for out in outs for one in (out.shift, out.scale, out.gate)]

    double = [[modulation(kind, i) for kind in ("double_img", "double_txt")] for i in range(len(network.double_blocks))]
    single = [modulation("single", i) for i in range(len(network.single_blocks))]
    texts = [linear(network.txt_in, text) for text in mix.texts]
    text_ids = [torch.zeros(len(text), 3) for text in texts]
    if getattr(network.params, "use_sequential_txt_ids", False):
        text_ids = [torch.nn.functional.pad(torch.arange(len(text)).float()[:, None], (0, 2)) for text in texts]
    return _flux_blocks(network, image, ids, texts, text_ids, mix, double, single), mods


def _flux_mlp(module, x: Tensor) -> Tensor:
    if hasattr(module, "gate_proj"):
        return linear(module.down_proj, silu(linear(module.gate_proj, x)) * linear(module.up_proj, x))
    inner = linear(module[0], x)
    return linear(module[2], _flux_act(inner, module[2].in_features))


def _flux_act(inner: Tensor, width: int) -> Tensor:
    """One activation, or a gated one where the inner width is twice what follows."""
    if inner.shape[-1] == width:
        return gelu(inner, approximate="tanh")
    first, second = inner.chunk(2, dim=-1)
    return silu(first) * second


def _flux_blocks(network, image, ids, texts, text_ids, mix: Mix, double, single) -> Tensor:
    """The image's tokens behind all blocks; double, single: shift, scale, gate for each block."""
    heads, axes, theta = network.params.num_heads, network.params.axes_dim, network.params.theta

    def rotated_qkv(norm, qkv, ids):
        q, k, v = qkv.chunk(3, dim=-1)
        q, k = head_norm(norm.query_norm, q, heads), head_norm(norm.key_norm, k, heads)
        return *(rotated(one, heads, ids, axes, theta) for one in (q, k)), v

    for block, (mod, text_mod) in zip(network.double_blocks, double, strict=True):

        def attended(attn, x, ids, mod):
            return rotated_qkv(attn.norm, linear(attn.qkv, layer_norm(x) * (1 + mod[1]) + mod[0]), ids)

        def moved(x, out, attn, mlp, mod):
            x = x + mod[2] * linear(attn.proj, out)
            return x + mod[5] * _flux_mlp(mlp, layer_norm(x) * (1 + mod[4]) + mod[3])

        outs, out = mix.attend(
            [attended(block.txt_attn, text, ids, text_mod) for text, ids in zip(texts, text_ids, strict=True)],
            attended(block.img_attn, image, ids, mod),
            heads,
        )
        image = moved(image, out, block.img_attn, block.img_mlp, mod)
        texts = [moved(t, o, block.txt_attn, block.txt_mlp, text_mod) for t, o in zip(texts, outs, strict=True)]
    for block, (shift, scale, gate) in zip(network.single_blocks, single, strict=True):
        wide = [linear(block.linear1, layer_norm(x) * (1 + scale) + shift) for x in (*texts, image)]
        width = 3 * block.hidden_size
        qkv = [rotated_qkv(block.norm, w[:, :width], i) for w, i in zip(wide, (*text_ids, ids), strict=True)]
        outs, out = mix.attend(qkv[:-1], qkv[-1], heads)
        *texts, image = (
            x + gate * linear(block.linear2, torch.cat([o, _single_mlp(block, w[:, width:])], dim=-1))
            for x, o, w in zip((*texts, image), (*outs, out), wide, strict=True)
        )
    return image


def _single_mlp(block, inner: Tensor) -> Tensor:
    if getattr(block, "yak_mlp", False):  # the gate is the second half
        first, second = inner.chunk(2, dim=-1)
        return silu(second) * first
    return _flux_act(inner, block.mlp_hidden_dim)


# --- Lumina 2, Z-Image ---


def _lumina(network, x: Tensor, timestep: Tensor, mix: Mix, conds: dict[str, Any]) -> Tensor:
    """x [16, height, width] -> the same. Every text ends where the prompt ends, and the image stands behind it."""
    height, width = x.shape[-2:]
    heads, axes, theta = network.n_heads, network.axes_dims, network.rope_embedder.theta
    condition = network.t_embedder((1.0 - timestep) * network.time_scale, dtype=torch.float32).double()
    multiple = network.pad_tokens_multiple or 1

    def padded(tokens, name):
        missing = -len(tokens) % multiple
        return torch.cat([tokens, *[getattr(network, name).double()] * missing]) if missing else tokens

    def along(values):
        return torch.nn.functional.pad(values.double()[:, None], (0, 2))

    texts = [
        padded(linear(network.cap_embedder[1], rms_norm(network.cap_embedder[0], text)), "cap_pad_token")
        for text in mix.texts
    ]
    end = len(texts[0])
    text_ids = [along(end - len(text) + 1 + torch.arange(len(text))) for text in texts]
    image = linear(network.x_embedder, patches(x, 2).unflatten(1, (16, 4)).transpose(1, 2).flatten(1))
    ids = places(height // 2, width // 2, end + 1)
    image, ids = padded(image, "x_pad_token"), torch.cat([ids, ids.new_zeros(-len(ids) % multiple, 3)])

    def qkv(module, x, ids):
        widths = [count * module.head_dim for count in (heads, module.n_kv_heads, module.n_kv_heads)]
        q, k, v = linear(module.qkv, x).split(widths, dim=-1)
        q, k = head_norm(module.q_norm, q, heads), head_norm(module.k_norm, k, module.n_kv_heads)
        q, k = rotated(q, heads, ids, axes, theta), rotated(k, module.n_kv_heads, ids, axes, theta)
        return q, *(each_repeated(one, module.n_kv_heads, heads) for one in (k, v))

    def modulation(block):
        if not block.modulation:
            return (0.0, None, 0.0, None)
        inner = condition if len(block.adaLN_modulation) == 1 else silu(condition)
        return linear(block.adaLN_modulation[-1], inner).chunk(4, dim=-1)

    def moved(block, x, out):
        _, gate, scale, gate2 = modulation(block)
        x = x + gate_of(gate) * rms_norm(block.attention_norm2, linear(block.attention.out, out))
        inner, part = rms_norm(block.ffn_norm1, x) * (1 + scale), block.feed_forward
        hidden = linear(part.w2, silu(linear(part.w1, inner)) * linear(part.w3, inner))
        return x + gate_of(gate2) * rms_norm(block.ffn_norm2, hidden)

    def entered(block, x, ids):
        return qkv(block.attention, rms_norm(block.attention_norm1, x) * (1 + modulation(block)[0]), ids)

    for block in network.context_refiner:
        outs = [joint_parts.attention(*entered(block, t, i), heads) for t, i in zip(texts, text_ids, strict=True)]
        texts = [moved(block, text, out) for text, out in zip(texts, outs, strict=True)]
    for block in network.noise_refiner:
        image = moved(block, image, joint_parts.attention(*entered(block, image, ids), heads))
    for block in network.layers:
        each = [entered(block, text, i) for text, i in zip(texts, text_ids, strict=True)]
        outs, out = mix.attend(each, entered(block, image, ids), heads)
        image = moved(block, image, out)
        texts = [moved(block, text, out) for text, out in zip(texts, outs, strict=True)]
    scale = linear(network.final_layer.adaLN_modulation[1], silu(condition))
    out = linear(network.final_layer.linear, layer_norm(image) * (1 + scale))[: height * width // 4]
    return -picture(out.unflatten(1, (4, 16)).transpose(1, 2).flatten(1), 2, height, width)


# --- Krea 2 ---


def _krea2(network, x: Tensor, timestep: Tensor, mix: Mix, conds: dict[str, Any]) -> Tensor:
    """x [16, 1, height, width] -> the same. The text has one layer, so that nothing is attended to among layers."""
    height, width = x.shape[-2:]
    axes = network.pe_embedder.axes_dim
    images = [x[:, 0], *(reference[0, :, 0].double() for reference in conds.get("ref_latents") or ())]
    ids = torch.cat([places(*(side // 2 for side in one.shape[-2:]), index) for index, one in enumerate(images)])
    image = linear(network.first, torch.cat([patches(one, 2) for one in images]))
    time = network.tmlp(timestep_embedding(timestep, network.tdim)).double()
    steps = linear(network.tproj[1], gelu(time, approximate="tanh"))

    def norm(module, x):
        return x / (x.square().mean(-1, keepdim=True) + module.eps).sqrt() * (1 + module.scale.double())

    def qkv(module, x, ids):
        q, k, v = (linear(part, x) for part in (module.wq, module.wk, module.wv))
        q = norm(module.qknorm.qnorm, q.unflatten(-1, (module.heads, -1))).flatten(1)
        k = norm(module.qknorm.knorm, k.unflatten(-1, (module.kvheads, -1))).flatten(1)
        if ids is not None:
            q, k = (rotated(one, n, ids, axes, network.pe_embedder.theta)
                    for one, n in ((q, module.heads), (k, module.kvheads)))  # fmt: skip
        return q, *(each_repeated(one, module.kvheads, module.heads) for one in (k, v))

    def out_of(module, x, out):
        return linear(module.wo, out * linear(module.gate, x).sigmoid())

    def mlp(module, x):
        return linear(module.down, silu(linear(module.gate, x)) * linear(module.up, x))

    def fused(block, text, attend):
        x = norm(block.prenorm, text)
        text = text + out_of(block.attn, x, attend(block.attn, x))
        return text + mlp(block.mlp, norm(block.postnorm, text))

    texts, fusion = [], network.txtfusion
    for text in mix.texts:
        for block in fusion.layerwise_blocks:  # one key for each query: its value
            text = fused(block, text, lambda attn, x: linear(attn.wv, x))
        text = text * fusion.projector.weight.double()
        for block in fusion.refiner_blocks:
            text = fused(block, text, lambda attn, x: joint_parts.attention(*qkv(attn, x, None), attn.heads))
        inner = gelu(linear(network.txtmlp[1], norm(network.txtmlp[0], text)), approximate="tanh")
        texts.append(linear(network.txtmlp[3], inner))
    text_ids = [torch.zeros(len(text), 3) for text in texts]
    for block in network.blocks:
        scale, shift, gate, scale2, shift2, gate2 = (steps + block.mod.lin.double()).chunk(6, dim=-1)
        inner = [norm(block.prenorm, one) * (1 + scale) + shift for one in (*texts, image)]
        each = [qkv(block.attn, one, i) for one, i in zip(inner, (*text_ids, ids), strict=True)]
        outs, out = mix.attend(each[:-1], each[-1], block.attn.heads)
        moved = []
        for one, entered, attended in zip((*texts, image), inner, (*outs, out), strict=True):
            one = one + gate * out_of(block.attn, entered, attended)
            moved.append(one + gate2 * mlp(block.mlp, norm(block.postnorm, one) * (1 + scale2) + shift2))
        *texts, image = moved
    scale, shift = (time + network.last.modulation.lin.double()).chunk(2)
    out = linear(network.last.linear, norm(network.last.norm, image) * (1 + scale) + shift)
    return picture(out[: height * width // 4], 2, height, width)[:, None]


# --- SD 3.5 ---


def _sd3(network, x: Tensor, timestep: Tensor, mix: Mix, conds: dict[str, Any]) -> Tensor:
    """x [16, height, width] -> the same."""
    height, width = x.shape[-2:]
    places = network.cropped_pos_embed((height, width), device=x.device)[0].double()
    kernel = network.x_embedder.proj
    image = patches(x, 2) @ kernel.weight.double().flatten(1).T + kernel.bias.double() + places
    texts = [linear(network.context_embedder, text) for text in mix.texts]
    condition = (network.t_embedder(timestep, dtype=torch.float32) + network.y_embedder(conds["y"])).double()

    def modulation(block):
        inner = linear(block.adaLN_modulation[1], silu(condition))
        return inner.split(inner.shape[-1] // (inner.shape[-1] // network.hidden_size), dim=-1)

    def qkv(attn, x, mod):
        q, k, v = linear(attn.qkv, layer_norm(x) * (1 + mod[1]) + mod[0]).chunk(3, dim=-1)
        return head_norm(attn.ln_q, q, attn.num_heads), head_norm(attn.ln_k, k, attn.num_heads), v

    def moved(block, x, mod, *outs):
        """outs: of the joint attention, and of the image's own where there is one."""
        gates = (mod[2], mod[8]) if len(outs) == 2 else (mod[2],)
        parts = (block.attn, block.attn2) if len(outs) == 2 else (block.attn,)
        x = x + sum(gate * linear(part.proj, out) for gate, part, out in zip(gates, parts, outs, strict=True))
        inner = linear(block.mlp.fc1, layer_norm(x) * (1 + mod[4]) + mod[3])
        return x + mod[5] * linear(block.mlp.fc2, gelu(inner, approximate="tanh"))

    for joint in network.joint_blocks:
        text_block, block = joint.context_block, joint.x_block
        text_mod, mod, heads = modulation(text_block), modulation(block), block.attn.num_heads
        each = [qkv(text_block.attn, text, text_mod) for text in texts]
        outs, out = mix.attend(each, qkv(block.attn, image, mod), heads)
        own = [joint_parts.attention(*qkv(block.attn2, image, mod[6:8]), heads)] if block.x_block_self_attn else []
        image = moved(block, image, mod, out, *own)
        if not text_block.pre_only:
            texts = [moved(text_block, text, text_mod, out) for text, out in zip(texts, outs, strict=True)]
    shift, scale = linear(network.final_layer.adaLN_modulation[1], silu(condition)).chunk(2, dim=-1)
    out = linear(network.final_layer.linear, layer_norm(image) * (1 + scale) + shift)
    return picture(out.unflatten(1, (4, -1)).transpose(1, 2).flatten(1), 2, height, width)


#: family: (network, x of one row, timestep [1], Mix, keyword arguments of the network) -> the output for the row
FORWARDS: dict[str, Callable] = {
    "qwen": _qwen, "mage_flow": _mage_flow, "flux": _flux, "flux2": _flux, "longcat": _flux, "ovis": _flux,
    "chroma": _chroma, "chroma_radiance": _chroma_radiance, "zimage": _lumina, "lumina": _lumina, "sd35": _sd3,
    "krea2": _krea2, **joint_oracle_more.FORWARDS,
}  # fmt: skip


def _prepared(family: str, text: Tensor) -> Tensor:
    """A text [t, c] as ComfyUI gives it to the network."""
    return torch.cat([text.new_zeros(512 - len(text), text.shape[1]), text]) if family == "flux2" else text


@contextmanager
def applied(
    family: str, model, edits: Sequence[Edit], masks: Sequence[Tensor | None] | None = None,
    norm_limit: float | None = None, mix_pooled: bool = False,
):  # fmt: skip
    """While this lasts, the plain MODEL composes by hand. masks: of the edits on the image's tokens, [n] or [b, n]."""
    network, sampling = model.model.diffusion_model, model.get_model_object("model_sampling")
    method = "_forward" if hasattr(network, "_forward") else "forward"  # inside ComfyUI's wrappers, where it has some
    signature = inspect.signature(getattr(network, method))
    masks = masks or [None] * len(edits)

    def of_row(value: Any, row: int, rows: int) -> Any:
        return value[row : row + 1] if isinstance(value, Tensor) and len(value) == rows else value

    def weight(edit: Edit, mask: Tensor | None, image: int) -> Tensor | float:
        return edit.weight if mask is None else edit.weight * mask[image % len(mask)].double()[:, None]

    def forward(*args, **kwargs):
        given = signature.bind(*args, **kwargs).arguments
        given |= given.pop("kwargs", {})
        x = next(given.pop(name) for name in ("x", "hidden_states") if name in given)
        context, options, outs = given.pop("context"), given["transformer_options"], []
        timestep = next(given.pop(name) for name in ("timestep", "timesteps", "t") if name in given)
        sigma, size = float(options["sigmas"][0]), len(x) // len(options["cond_or_uncond"])
        on = [(e, m) for e, m in zip(edits, masks, strict=True) if _is_on(sampling, sigma, e.window)]
        mask = given.pop("attention_mask", None)
        for row in range(len(x)):
            is_positive = options["cond_or_uncond"][row // size] == 0
            here = on if is_positive else []
            texts = [_prepared(family, e.text[0][0][row % size % len(e.text[0][0])].double()) for e, _ in here]
            own_masks = [e.text[0][1].get("attention_mask") for e, _ in here]
            mix = Mix(
                [context[row].double(), *texts],
                [weight(e, m if m is None or m.ndim == 2 else m[None], row % size) for e, m in here],
                [None if mask is None else mask[row], *(None if m is None else m[0] for m in own_masks)],
                [e for e, _ in here],
                norm_limit,
                row % size,
            )
            conds = {name: of_row(value, row, len(x)) for name, value in given.items()}
            if mix_pooled:
                own = [(e.weight, e.text[0][1]["pooled_output"]) for e, m in here if m is None]
                pooled = conds["y"] + sum(w * p[row % size % len(p)][None] for w, p in own)
                conds["y"] = pooled / (1 + sum(w for w, _ in own))
            outs.append(FORWARDS[family](network, x[row].double(), timestep[row : row + 1], mix, conds))
        return torch.stack(outs).to(x.dtype)

    with _instead(network, method, forward):
        yield


def _is_on(sampling, sigma: float, window: tuple[float, float]) -> bool:
    start, end = (sampling.percent_to_sigma(percent) for percent in window)
    return end < sigma <= start
