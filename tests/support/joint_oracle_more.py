"""Further networks of the hand-made computation (joint_oracle.py): OmniGen 2, Boogu, Ideogram 4, Lens and others."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import gelu, silu

from support import joint_parts
from support.joint_parts import (
    Mix,
    each_repeated,
    head_norm,
    layer_norm,
    linear,
    patches,
    picture,
    places,
    rms_norm,
    rotated,
)


def affine(module, x: Tensor) -> Tensor:
    """LayerNorm with weights."""
    return layer_norm(x, module.eps) * module.weight.double() + module.bias.double()


def gated(module, names: tuple[str, str, str], x: Tensor) -> Tensor:
    """The third of silu(first) * second."""
    first, second, third = (getattr(module, name) for name in names)
    return linear(third, silu(linear(first, x)) * linear(second, x))


def pixels_first(tokens: Tensor, size: int) -> Tensor:
    """[n, (c size size)] -> [n, (size size c)]."""
    return tokens.unflatten(1, (-1, size * size)).transpose(1, 2).flatten(1)


def channels_first(tokens: Tensor, size: int) -> Tensor:
    """[n, (size size c)] -> [n, (c size size)]."""
    return tokens.unflatten(1, (size * size, -1)).transpose(1, 2).flatten(1)


# --- OmniGen 2, Boogu ---


def _omnigen(network, x: Tensor, timestep: Tensor, mix: Mix, conds: dict[str, Any]) -> Tensor:
    """x [16, height, width] -> the same. Every text ends where the prompt ends, and the images stand behind it."""
    height, width = x.shape[-2:]
    axes, theta = network.rope_embedder.axes_dim, network.rope_embedder.theta
    embedder = network.time_caption_embed
    time, _ = embedder(1.0 - timestep, mix.texts[0][None].float(), torch.float32)
    time = time.double()
    norm, projection = embedder.caption_embedder
    texts = [linear(projection, rms_norm(norm, text)) for text in mix.texts]
    end = len(texts[0])
    counts = [torch.arange(len(text))[:, None].expand(-1, 3).double() for text in texts]
    text_ids = [ids + torch.tensor([end - len(ids), 0, 0]) for ids in counts]
    references, ids, shift = [], [], end
    for number, latent in enumerate(conds.get("ref_latents") or ()):
        rows, columns = (side // 2 for side in latent.shape[-2:])
        tokens = linear(network.ref_image_patch_embedder, pixels_first(patches(latent[0].double(), 2), 2))
        references.append(tokens + network.image_index_embedding[number].double())
        ids.append(places(rows, columns, shift))
        shift += max(rows, columns)
    image = linear(network.x_embedder, pixels_first(patches(x, 2), 2))
    image_ids = places(height // 2, width // 2, shift)

    def qkv(module, parts, x, ids):
        q, k, v = (linear(part, x) for part in parts)
        q, k = (
            rotated(head_norm(norm, one, heads), heads, ids, axes, theta)
            for norm, one, heads in ((module.norm_q, q, module.heads), (module.norm_k, k, module.kv_heads))
        )
        return q, *(each_repeated(one, module.kv_heads, module.heads) for one in (k, v))

    def own_qkv(module, x, ids):
        return qkv(module, (module.to_q, module.to_k, module.to_v), x, ids)

    def zero(module, x):
        """LuminaRMSNormZero: x, gate, scale, gate."""
        scale, *others = linear(module.linear, silu(time)[0]).chunk(4)
        return rms_norm(module.norm, x) * (1 + scale), *others

    def mlp(module, x):
        return gated(module, ("linear_1", "linear_3", "linear_2"), x)

    def entered(block, x):
        return zero(block.norm1, x)[0] if block.modulation else rms_norm(block.norm1, x)

    def moved(block, x, out):
        gate, scale, gate2 = 1.0, 0.0, 1.0
        if block.modulation:
            _, gate, scale, gate2 = zero(block.norm1, x)
            gate, gate2 = gate.tanh(), gate2.tanh()
        x = x + gate * rms_norm(block.norm2, linear(block.attn.to_out[0], out))
        inner = mlp(block.feed_forward, rms_norm(block.ffn_norm1, x) * (1 + scale))
        return x + gate2 * rms_norm(block.ffn_norm2, inner)

    def alone(block, x, ids):
        return moved(block, x, joint_parts.attention(*own_qkv(block.attn, entered(block, x), ids), block.attn.heads))

    for block in network.context_refiner:
        texts = [alone(block, text, ids) for text, ids in zip(texts, text_ids, strict=True)]
    for block in network.noise_refiner:
        image = alone(block, image, image_ids)
    if references:
        tokens, reference_ids = torch.cat(references), torch.cat(ids)
        for block in network.ref_image_refiner:
            tokens = alone(block, tokens, reference_ids)
        image, image_ids = torch.cat([tokens, image]), torch.cat([reference_ids, image_ids])
    for block in getattr(network, "double_stream_layers", ()):
        image, texts = _boogu_double(block, image, image_ids, texts, text_ids, mix, zero, qkv, own_qkv, mlp)
    for block in network.single_stream_layers if hasattr(network, "single_stream_layers") else network.layers:
        each = [own_qkv(block.attn, entered(block, text), i) for text, i in zip(texts, text_ids, strict=True)]
        outs, out = mix.attend(each, own_qkv(block.attn, entered(block, image), image_ids), block.attn.heads)
        image = moved(block, image, out)
        texts = [moved(block, text, out) for text, out in zip(texts, outs, strict=True)]
    scale = linear(network.norm_out.linear_1, silu(time)[0])
    out = linear(network.norm_out.linear_2, layer_norm(image[-height * width // 4 :]) * (1 + scale))
    return -picture(channels_first(out, 2), 2, height, width)


def _boogu_double(block, image, ids, texts, text_ids, mix: Mix, zero, qkv, own_qkv, mlp) -> tuple[Tensor, list[Tensor]]:
    attn, part = block.img_instruct_attn, block.img_instruct_attn.processor

    def parts(kind):
        return [getattr(part, f"{kind}_to_{letter}") for letter in "qkv"]

    entered = [zero(block.instruct_norm1, text) for text in texts]
    first, gate, scale, gate2 = zero(block.img_norm1, image)
    each = [qkv(attn, parts("instruct"), one[0], i) for one, i in zip(entered, text_ids, strict=True)]
    outs, out = mix.attend(each, qkv(attn, parts("img"), first, ids), attn.heads)
    second, shift, _, _ = zero(block.img_norm2, image)
    third, own_gate, _, _ = zero(block.img_norm3, image)
    own = joint_parts.attention(*own_qkv(block.img_self_attn, third, ids), attn.heads)
    out = linear(attn.to_out[0], linear(part.img_out, out))
    image = image + gate.tanh() * rms_norm(block.img_attn_norm, out)
    image = image + own_gate.tanh() * rms_norm(
        block.img_self_attn_norm, linear(block.img_self_attn.to_out[0], own)
    )
    inner = mlp(block.img_feed_forward, rms_norm(block.img_ffn_norm1, (1 + scale) * second + shift))
    image = image + gate2.tanh() * rms_norm(block.img_ffn_norm2, inner)
    moved = []
    for text, (_, gate, scale, gate2), out in zip(texts, entered, outs, strict=True):
        second, shift, _, _ = zero(block.instruct_norm2, text)
        out = linear(attn.to_out[0], linear(part.instruct_out, out))
        text = text + gate.tanh() * rms_norm(block.instruct_attn_norm, out)
        inner = mlp(block.instruct_feed_forward, rms_norm(block.instruct_ffn_norm1, (1 + scale) * second + shift))
        moved.append(text + gate2.tanh() * rms_norm(block.instruct_ffn_norm2, inner))
    return image, moved


# --- Ideogram 4 ---


def _ideogram4(network, x: Tensor, timestep: Tensor, mix: Mix, conds: dict[str, Any]) -> Tensor:
    """x [128, height, width] -> the same; its channels are (32 2 2), its tokens' (2 2 32)."""
    height, width = x.shape[-2:]
    kind = network.embed_image_indicator.weight.double()
    image = linear(network.input_proj, pixels_first(patches(x, 1), 2)) + kind[1]
    texts = [linear(network.llm_cond_proj, rms_norm(network.llm_cond_norm, text)) + kind[0] for text in mix.texts]
    is_told_type = "dtype" in inspect.signature(network.t_embedding.forward).parameters  # not before ComfyUI 0.27
    time = network.t_embedding(1.0 - timestep, *[torch.float32] * is_told_type)
    condition = silu(linear(network.adaln_proj, time.double()))[0]
    ids = places(height, width) + 65536
    text_ids = [torch.arange(len(text))[:, None].expand(-1, 3) for text in texts]

    def turned(x, heads, ids):
        """Halves of a head turned by the angles of one of three positions each, which the network has in float32."""
        width = network.head_dim // 2
        axis = torch.zeros(width, dtype=torch.long)
        for number in (1, 2):
            axis[number : network.mrope_section[number] * 3 : 3] = number
        rates = 1.0 / network.rope_theta ** (torch.arange(0, network.head_dim, 2).float() / network.head_dim)
        angles = ids.float()[:, axis] * rates
        cos, sin = (value.double()[:, None] for value in (angles.cos(), angles.sin()))
        first, second = x.unflatten(-1, (heads, 2, width)).unbind(2)
        return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1).flatten(1)

    def entered(block, x, ids, scale):
        attn, heads = block.attention, block.attention.num_heads
        q, k, v = linear(attn.qkv, rms_norm(block.attention_norm1, x) * (1 + scale)).chunk(3, dim=-1)
        q, k = (head_norm(norm, one, heads) for norm, one in ((attn.norm_q, q), (attn.norm_k, k)))
        return turned(q, heads, ids), turned(k, heads, ids), v

    for block in network.layers:
        scale, gate, scale2, gate2 = linear(block.adaln_modulation, condition).chunk(4)

        def moved(x, out, block=block, gate=gate, scale2=scale2, gate2=gate2):
            x = x + gate.tanh() * rms_norm(block.attention_norm2, linear(block.attention.o, out))
            inner = gated(block.feed_forward, ("w1", "w3", "w2"), rms_norm(block.ffn_norm1, x) * (1 + scale2))
            return x + gate2.tanh() * rms_norm(block.ffn_norm2, inner)

        each = [entered(block, text, i, scale) for text, i in zip(texts, text_ids, strict=True)]
        outs, out = mix.attend(each, entered(block, image, ids, scale), block.attention.num_heads)
        image, texts = moved(image, out), [moved(text, out) for text, out in zip(texts, outs, strict=True)]
    scale = linear(network.final_layer.adaln_modulation, silu(condition))
    out = linear(network.final_layer.linear, layer_norm(image) * (1 + scale))
    return -picture(channels_first(out, 2), 1, height, width)


# --- Lens ---


def _lens(network, x: Tensor, timestep: Tensor, mix: Mix, conds: dict[str, Any]) -> Tensor:
    """x [128, height, width] -> the same."""
    height, width = x.shape[-2:]
    axes = network.pos_embed.axes_dim
    image = linear(network.img_in, patches(x, 1))
    texts = [linear(network.txt_in, rms_norm(network.txt_norm, text)) for text in mix.texts]
    condition = silu(network.time_text_embed(timestep, image.float()).double())[0]
    ids = places(height, width, 0, -(height - height // 2), -(width - width // 2))
    start = max(height // 2, width // 2)
    text_ids = [torch.arange(start, start + len(text))[:, None].expand(-1, 3) for text in texts]

    def qkv(qkv, norms, x, ids, heads):
        q, k, v = linear(qkv, x).chunk(3, dim=-1)
        return *(rotated(head_norm(n, one, heads), heads, ids, axes, 10000) for n, one in zip(norms, (q, k))), v

    for block in network.transformer_blocks:
        attn, heads = block.attn, block.attn.heads
        of_image, of_text = (linear(mod[1], condition).chunk(6) for mod in (block.img_mod, block.txt_mod))

        def entered(norm, x, mod):
            return rms_norm(norm, x) * (1 + mod[1]) + mod[0]

        def moved(x, out, projection, norm, mlp, mod):
            x = x + mod[2] * linear(projection, out)
            return x + mod[5] * gated(mlp, ("w1", "w3", "w2"), rms_norm(norm, x) * (1 + mod[4]) + mod[3])

        each = [
            qkv(attn.txt_qkv, (attn.norm_added_q, attn.norm_added_k), entered(block.txt_norm1, text, of_text), i, heads)
            for text, i in zip(texts, text_ids, strict=True)
        ]
        own = qkv(attn.img_qkv, (attn.norm_q, attn.norm_k), entered(block.img_norm1, image, of_image), ids, heads)
        outs, out = mix.attend(each, own, heads)
        image = moved(image, out, attn.to_out[0], block.img_norm2, block.img_mlp, of_image)
        texts = [
            moved(text, out, attn.to_add_out, block.txt_norm2, block.txt_mlp, of_text)
            for text, out in zip(texts, outs, strict=True)
        ]
    scale, shift = linear(network.norm_out.linear, condition).chunk(2)
    return picture(linear(network.proj_out, layer_norm(image) * (1 + scale) + shift), 1, height, width)


# --- JoyImage ---


def _joyimage(network, x: Tensor, timestep: Tensor, mix: Mix, conds: dict[str, Any]) -> Tensor:
    """x [16, 1, height, width] -> the same. Texts have no positions."""
    height, width = x.shape[-2:]
    images = [x[:, 0], *(latent[0, :, 0].double() for latent in conds.get("ref_latents") or ())]
    ids = torch.cat([places(*(side // 2 for side in one.shape[-2:]), number) for number, one in enumerate(images)])
    kernel = network.img_in
    image = torch.cat([patches(one, 2) for one in images]) @ kernel.weight.double().flatten(1).T + kernel.bias.double()
    _, steps, _ = network.condition_embedder(timestep, mix.texts[0][None].float())
    steps, part = steps.double().unflatten(1, (6, -1))[0], network.condition_embedder.text_embedder
    texts = [linear(part.linear_2, gelu(linear(part.linear_1, text), approximate="tanh")) for text in mix.texts]

    def qkv(attn, kind, x):
        heads = attn.num_attention_heads
        q, k, v = linear(getattr(attn, f"{kind}_attn_qkv"), x).chunk(3, dim=-1)
        q, k = (
            head_norm(getattr(attn, f"{kind}_attn_{name}_norm"), one, heads) for name, one in (("q", q), ("k", k))
        )
        if kind == "img":
            q, k = (rotated(one, heads, ids, network.rope_dim_list, network.theta) for one in (q, k))
        return q, k, v

    for block in network.double_blocks:
        mods = {kind: getattr(block, f"{kind}_mod").modulate_table.double()[0] + steps for kind in ("img", "txt")}

        def entered(kind, x, block=block, mods=mods):
            return qkv(block.attn, kind, layer_norm(x) * (1 + mods[kind][1]) + mods[kind][0])

        def moved(kind, x, out, block=block, mods=mods):
            mod, mlp = mods[kind], getattr(block, f"{kind}_mlp")
            x = x + mod[2] * linear(getattr(block.attn, f"{kind}_attn_proj"), out)
            inner = gelu(linear(mlp.net[0].proj, layer_norm(x) * (1 + mod[4]) + mod[3]), approximate="tanh")
            return x + mod[5] * linear(mlp.net[2], inner)

        heads = block.attn.num_attention_heads
        outs, out = mix.attend([entered("txt", text) for text in texts], entered("img", image), heads)
        image, texts = moved("img", image, out), [moved("txt", t, o) for t, o in zip(texts, outs, strict=True)]
    out = linear(network.proj_out, layer_norm(image[: height * width // 4]))
    return picture(channels_first(out, 2), 2, height, width)[:, None]


# --- HiDream I1 ---


def _hidream(network, x: Tensor, timestep: Tensor, mix: Mix, conds: dict[str, Any]) -> Tensor:
    """x [16, height, width] -> the same. Llama's layers are read in turn, one in each block."""
    height, width = x.shape[-2:]
    axes, heads = network.pe_embedder.axes_dim, network.num_attention_heads
    picture_beside = conds.get("image_cond")
    x = x if picture_beside is None else torch.cat([x, picture_beside[0].double()], dim=-1)
    rows, columns = (side // 2 for side in x.shape[-2:])
    image, ids = linear(network.x_embedder.proj, pixels_first(patches(x, 2), 2)), places(rows, columns)
    condition = network.t_embedder(timestep, torch.float32) + network.p_embedder(conds["y"])
    condition = silu(condition.double())[0]
    llama = [conds["encoder_hidden_states_llama3"][0]]
    for edit in mix.edits:
        own = edit.text[0][1]["conditioning_llama3"]
        llama.append(own[mix.image % len(own)])
    *projections, of_t5 = network.caption_projection
    layers = [
        [linear(projection.linear, one[layer].double()) for layer, projection in zip(network.llama_layers, projections)]
        for one in llama
    ]
    texts = [torch.cat([linear(of_t5.linear, t), own[-1]]) for t, own in zip(mix.texts, layers, strict=True)]

    def qkv(attn, suffix, x, ids=None):
        q, k, v = (linear(getattr(attn, f"to_{letter}{suffix}"), x) for letter in "qkv")
        q, k = (rms_norm(getattr(attn, f"{n}_rms_norm{suffix}"), one) for n, one in (("q", q), ("k", k)))
        if ids is not None:
            q, k = (rotated(one, heads, ids, axes, 10000) for one in (q, k))
        return q, k, v

    def mlp(module, x):
        if not hasattr(module, "experts"):
            return gated(module, ("w1", "w3", "w2"), x)
        shares, chosen = (x @ module.gate.weight.double().T).softmax(-1).topk(module.num_activated_experts, dim=-1)
        each = torch.stack([gated(expert, ("w1", "w3", "w2"), x) for expert in module.experts], dim=1)
        picked = each.gather(1, chosen[..., None].expand(-1, -1, x.shape[-1]))
        return (shares[..., None] * picked).sum(1) + gated(module.shared_experts, ("w1", "w3", "w2"), x)

    def moved(x, out, projection, feed_forward, mod):
        x = x + mod[2] * linear(projection, out)
        return x + mod[5] * mlp(feed_forward, layer_norm(x) * (1 + mod[4]) + mod[3])

    def entered(x, mod):
        return layer_norm(x) * (1 + mod[1]) + mod[0]

    for number, outer in enumerate((*network.double_stream_blocks, *network.single_stream_blocks)):
        block, attn = outer.block, outer.block.attn1
        mods = linear(block.adaLN_modulation[1], condition).chunk(6 if attn.single else 12)
        mod, text_mod, suffix = mods[:6], mods[-6:], "" if attn.single else "_t"
        full = [torch.cat([text, own[number]]) for text, own in zip(texts, layers, strict=True)]
        each = [qkv(attn, suffix, entered(text, text_mod)) for text in full]
        outs, out = mix.attend(each, qkv(attn, "", entered(image, mod), ids), heads)
        image = moved(image, out, attn.to_out, block.ff_i, mod)
        projection, feed_forward = (attn.to_out, block.ff_i) if attn.single else (attn.to_out_t, block.ff_t)
        full = [moved(text, out, projection, feed_forward, text_mod) for text, out in zip(full, outs, strict=True)]
        texts = [text[: len(before)] for text, before in zip(full, texts, strict=True)]
    shift, scale = linear(network.final_layer.adaLN_modulation[1], condition).chunk(2)
    out = linear(network.final_layer.linear, layer_norm(image) * (1 + scale) + shift)
    return -picture(channels_first(out, 2), 2, 2 * rows, 2 * columns)[..., :height, :width]


# --- CogVideoX 1.5 ---


def _cogvideox(network, x: Tensor, timestep: Tensor, mix: Mix, conds: dict[str, Any]) -> Tensor:
    """x [16, frames, height, width] -> the same, in patches of two frames. Texts have no positions."""
    channels, frames, height, width = x.shape
    sides = (frames // 2, height // 2, width // 2)
    cut = x.reshape(channels, sides[0], 2, sides[1], 2, sides[2], 2).permute(1, 3, 5, 0, 2, 4, 6)
    image = linear(network.patch_embed.proj, cut.flatten(3).flatten(0, 2))
    texts = [linear(network.patch_embed.text_proj, text) for text in mix.texts]
    heads, size = network.num_attention_heads, network.attention_head_dim
    half = network.dim // 2
    angles = timestep.float() * torch.exp(-math.log(10000) * torch.arange(half).float() / half)  # as the network has it
    time = linear(network.time_embedding_linear_1, torch.cat([angles.cos(), angles.sin()]).double())
    condition = silu(linear(network.time_embedding_linear_2, silu(time)))
    ids = torch.cat([places(*sides[1:], frame) for frame in range(sides[0])])
    axes = (size // 4, size // 8 * 3, size // 8 * 3)

    def zero(module, x, is_image):
        parts = linear(module.linear, condition).chunk(6)
        shift, scale, gate = parts[:3] if is_image else parts[3:]
        return affine(module.norm, x) * (1 + scale) + shift, gate

    for block in network.blocks:

        def qkv(x, is_image, block=block):
            x, _ = zero(block.norm1, x, is_image)
            q, k, v = (linear(part, x) for part in (block.q, block.k, block.v))
            q, k = (
                affine(norm, one.unflatten(-1, (heads, -1))).flatten(-2)
                for norm, one in ((block.norm_q, q), (block.norm_k, k))
            )
            if is_image:
                q, k = (rotated(one, heads, ids, axes, 10000) for one in (q, k))
            return q, k, v

        def moved(x, out, is_image, block=block):
            x = x + zero(block.norm1, x, is_image)[1] * linear(block.attn_out, out)
            inner, gate = zero(block.norm2, x, is_image)
            return x + gate * linear(block.ff_out, gelu(linear(block.ff_proj, inner), approximate="tanh"))

        outs, out = mix.attend([qkv(text, False) for text in texts], qkv(image, True), heads)
        image, texts = moved(image, out, True), [moved(t, o, False) for t, o in zip(texts, outs, strict=True)]
    shift, scale = linear(network.norm_out.linear, condition).chunk(2)
    out = affine(network.norm_out.norm, affine(network.norm_final, image)) * (1 + scale) + shift
    out = linear(network.proj_out, out).reshape(*sides, channels, 2, 2, 2)
    return out.permute(3, 0, 4, 1, 5, 2, 6).reshape(x.shape)


#: As joint_oracle.FORWARDS.
FORWARDS: dict[str, Callable] = {
    "omnigen2": _omnigen, "boogu": _omnigen, "ideogram4": _ideogram4, "lens": _lens, "joyimage": _joyimage,
    "hidream": _hidream, "cogvideox": _cogvideox,
}  # fmt: skip
