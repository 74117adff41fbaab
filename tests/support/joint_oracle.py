"""Composition in joint attention, made by hand in float64: row by row, with a text stream of its own for each context.

Needs a booted host. Nothing of the pack and no forward pass of ComfyUI's networks takes part: for the length of a `with
at_work(...)` the forward pass of the network is replaced by one that is written here, with its weights.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import gelu, silu

from support.oracle import Edit, _instead, attention


@dataclass(eq=False)
class Mix:
    """What one row reads: its prompt and then the texts of its edits, [t, c] each, with the weights of these.

    weights: a number or [n, 1] each, on the image's tokens.
    """

    texts: list[Tensor]
    weights: list[Tensor | float]
    masks: list[Tensor | None] = field(default_factory=list)

    def attend(self, texts: list[tuple], image: tuple, heads: int) -> tuple[list[Tensor], Tensor]:
        """(q, k, v) [t, (h d)] of each text and of the image -> the output of each text, and of the image."""
        outs = []
        for number, text in enumerate(texts):
            q, k, v = (torch.cat(pair) for pair in zip(text, image, strict=True))
            mask = self.masks[number] if self.masks else None
            if mask is not None:
                seen = torch.cat([mask.bool(), torch.ones(len(image[0]), dtype=torch.bool)])
                k, v = k[seen], v[seen]
            outs.append(attention(q, k, v, heads).split([len(text[0]), len(image[0])]))
        main, *edits = (out for _, out in outs)
        mixed = main + sum(weight * edit for weight, edit in zip(self.weights, edits, strict=True))
        return [out for out, _ in outs], mixed / (1 + sum(self.weights))


# --- parts of networks, in float64 ---


def linear(module, x: Tensor) -> Tensor:
    out = x @ module.weight.double().T
    return out if module.bias is None else out + module.bias.double()


def layer_norm(x: Tensor, eps: float = 1e-6) -> Tensor:
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + eps).sqrt()


def rms_norm(module, x: Tensor) -> Tensor:
    eps = torch.finfo(torch.float32).eps if module.eps is None else module.eps
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * module.weight.double()


def head_norm(module, x: Tensor, heads: int) -> Tensor:
    return rms_norm(module, x.unflatten(-1, (heads, -1))).flatten(-2)


def rotated(x: Tensor, heads: int, positions: Tensor, axes: Sequence[int], theta: float) -> Tensor:
    """x [t, (h d)] turned by positions [t, axes]: the pair p of an axis of width a by position / theta ** (2 p / a)."""
    angles = torch.cat([
        positions[:, i : i + 1].double() * theta ** -(torch.arange(0, width, 2).double() / width)
        for i, width in enumerate(axes)
    ], dim=-1)[:, None]
    first, second = x.unflatten(-1, (heads, -1, 2)).unbind(-1)
    turned = [first * angles.cos() - second * angles.sin(), first * angles.sin() + second * angles.cos()]
    return torch.stack(turned, dim=-1).flatten(1)


def patches(image: Tensor, size: int) -> Tensor:
    """[c, height, width] -> [n, (c size size)]."""
    channels, height, width = image.shape
    cut = image.reshape(channels, height // size, size, width // size, size)
    return cut.permute(1, 3, 0, 2, 4).flatten(2).flatten(0, 1)


def picture(tokens: Tensor, size: int, height: int, width: int) -> Tensor:
    """[n, (c size size)] -> [c, height, width]."""
    cut = tokens.reshape(height // size, width // size, -1, size, size)
    return cut.permute(2, 0, 3, 1, 4).reshape(-1, height, width)


def places(height: int, width: int, first: float = 0.0, top: float = 0.0, left: float = 0.0) -> Tensor:
    """Positions [n, 3] of a grid's tokens."""
    rows, columns = torch.arange(height) + top, torch.arange(width) + left
    rows, columns = torch.meshgrid(rows.double(), columns.double(), indexing="ij")
    return torch.stack([torch.full_like(rows, first), rows, columns], dim=-1).flatten(0, 1)


# --- Qwen-Image ---


def _qwen(network, x: Tensor, timestep: Tensor, mix: Mix, conds: dict[str, Any]) -> Tensor:
    """x [16, 1, height, width] -> the same."""
    height, width = x.shape[-2:]
    heads, axes = network.transformer_blocks[0].attn.heads, network.pe_embedder.axes_dim
    images, ids = [patches(x[:, 0], 2)], [places(height // 2, width // 2, 0, -(height // 4), -(width // 4))]
    for index, reference in enumerate(conds.get("ref_latents") or ()):
        rows, columns = (side // 2 for side in reference.shape[-2:])
        images.append(patches(reference[0, :, 0].double(), 2))
        ids.append(places(rows, columns, index + 1, -(rows // 2), -(columns // 2)))
    start = max(height, width) // 4
    text_ids = [torch.arange(start, start + len(text))[:, None].expand(-1, 3) for text in mix.texts]
    image, image_ids = linear(network.img_in, torch.cat(images)), torch.cat(ids)
    texts = [linear(network.txt_in, rms_norm(network.txt_norm, text)) for text in mix.texts]
    condition = network.time_text_embed(timestep, torch.zeros(1)).double()

    def modulation(module):
        return linear(module[1], silu(condition)).chunk(6, dim=-1)

    def qkv(attn, prefix, x, ids):
        names, norms = (("add_q_proj", "add_k_proj", "add_v_proj"), ("norm_added_q", "norm_added_k")) if prefix else (
            ("to_q", "to_k", "to_v"), ("norm_q", "norm_k")
        )
        q, k, v = (linear(getattr(attn, name), x) for name in names)
        q, k = (head_norm(getattr(attn, norm), one, heads) for norm, one in zip(norms, (q, k), strict=True))
        return *(rotated(one, heads, ids, axes, 10000) for one in (q, k)), v

    def mlp(module, x):
        return linear(module.net[2], gelu(linear(module.net[0].proj, x), approximate="tanh"))

    for block in network.transformer_blocks:
        shift, scale, gate, shift2, scale2, gate2 = modulation(block.img_mod)
        t_shift, t_scale, t_gate, t_shift2, t_scale2, t_gate2 = modulation(block.txt_mod)
        out_texts, out = mix.attend(
            [
                qkv(block.attn, "added", layer_norm(text) * (1 + t_scale) + t_shift, ids)
                for text, ids in zip(texts, text_ids, strict=True)
            ],
            qkv(block.attn, "", layer_norm(image) * (1 + scale) + shift, image_ids),
            heads,
        )
        image = image + gate * linear(block.attn.to_out[0], out)
        image = image + gate2 * mlp(block.img_mlp, layer_norm(image) * (1 + scale2) + shift2)
        texts = [text + t_gate * linear(block.attn.to_add_out, o) for text, o in zip(texts, out_texts, strict=True)]
        texts = [text + t_gate2 * mlp(block.txt_mlp, layer_norm(text) * (1 + t_scale2) + t_shift2) for text in texts]
    scale, shift = linear(network.norm_out.linear, silu(condition)).chunk(2, dim=-1)
    out = linear(network.proj_out, layer_norm(image) * (1 + scale) + shift)
    return picture(out[: len(images[0])], 2, height, width)[:, None]


#: family: (network, x of one row, timestep [1], Mix, keyword arguments of the network) -> the output for the row
FORWARDS: dict[str, Callable] = {"qwen": _qwen}


@contextmanager
def at_work(family: str, model, edits: Sequence[Edit], masks: Sequence[Tensor | None] | None = None):
    """While this lasts, the plain MODEL composes by hand. masks: of the edits on the image's tokens, [n] or [b, n]."""
    network, sampling = model.model.diffusion_model, model.get_model_object("model_sampling")
    method = "_forward" if hasattr(network, "_forward") else "forward"  # inside ComfyUI's wrappers, where it has some
    signature = inspect.signature(getattr(network, method))
    masks = masks or [None] * len(edits)

    def weight(edit: Edit, mask: Tensor | None, image: int) -> Tensor | float:
        return edit.weight if mask is None else edit.weight * mask[image % len(mask)].double()[:, None]

    def forward(*args, **kwargs):
        given = signature.bind(*args, **kwargs).arguments
        given |= given.pop("kwargs", {})
        x, context, options, outs = given.pop("x"), given.pop("context"), given.pop("transformer_options"), []
        timestep = next(given.pop(name) for name in ("timestep", "timesteps", "t") if name in given)
        sigma, size = float(options["sigmas"][0]), len(x) // len(options["cond_or_uncond"])
        on = [(e, m) for e, m in zip(edits, masks, strict=True) if _is_on(sampling, sigma, e.window)]
        mask = given.pop("attention_mask", None)
        for row in range(len(x)):
            is_positive = options["cond_or_uncond"][row // size] == 0
            here = on if is_positive else []
            texts = [e.text[0][0][row % size % len(e.text[0][0])].double() for e, _ in here]
            own_masks = [e.text[0][1].get("attention_mask") for e, _ in here]
            mix = Mix(
                [context[row].double(), *texts],
                [weight(e, m if m is None or m.ndim == 2 else m[None], row % size) for e, m in here],
                [None if mask is None else mask[row], *(None if m is None else m[0] for m in own_masks)],
            )
            outs.append(FORWARDS[family](network, x[row].double(), timestep[row : row + 1], mix, given))
        return torch.stack(outs).to(x.dtype)

    with _instead(network, method, forward):
        yield


def _is_on(sampling, sigma: float, window: tuple[float, float]) -> bool:
    start, end = (sampling.percent_to_sigma(percent) for percent in window)
    return end < sigma <= start
