"""Parts of networks with joint attention in float64, for the computations made by hand (joint_oracle.py)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from support.oracle import Edit, attention, within


@dataclass(eq=False)
class Mix:
    """What one row reads: its prompt and then the texts of its edits, [t, c] each, with the weights of these.

    weights: a number or [n, 1] each, on the image's tokens, in the blocks that the edits are mixed in.
    """

    texts: list[Tensor]
    weights: list[Tensor | float]
    masks: list[Tensor | None] = field(default_factory=list)
    edits: Sequence[Edit] = ()
    norm_limit: float | None = None
    #: Of the batch.
    image: int = 0
    #: How many blocks have read it.
    blocks: int = 0

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
        on = [edit.is_mixed_in(self.blocks) for edit in self.edits]
        weights = [weight * is_on for weight, is_on in zip(self.weights, on, strict=True)]
        self.blocks += 1
        mixed = main + sum(weight * edit for weight, edit in zip(weights, edits, strict=True))
        return [out for out, _ in outs], within(mixed / (1 + sum(weights)), main, self.norm_limit)


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


def each_repeated(tensor: Tensor, heads: int, times: int) -> Tensor:
    """Keys or values [t, (h d)] of few heads, for as many as there are queries."""
    return tensor.unflatten(-1, (heads, -1)).repeat_interleave(times // heads, dim=1).flatten(1)


def gate_of(gate: Tensor | None) -> Tensor | float:
    return 1.0 if gate is None else gate.tanh()
