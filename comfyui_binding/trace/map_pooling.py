"""Means over parts of a grid, as adaptive pooling computes them, which MPS has in part."""

from __future__ import annotations

import torch
from torch import Tensor


def pooled(maps: Tensor, longest: int) -> Tensor:
    """Maps [b, t, rows, columns] on a grid of at most `longest` tokens a side."""
    scale = min(1.0, longest / max(maps.shape[-2:]))
    grid = [max(1, round(side * scale)) for side in maps.shape[-2:]]
    if grid == list(maps.shape[-2:]):
        return maps
    rows, columns = (_averages(*sizes, maps) for sizes in zip(maps.shape[-2:], grid, strict=True))
    return rows @ maps @ columns.T


def _averages(size: int, parts: int, like: Tensor) -> Tensor:
    """The matrix [parts, size] that averages over parts of a side."""
    part = torch.arange(parts, dtype=torch.float32, device=like.device).unsqueeze(1)
    place = torch.arange(size, dtype=torch.float32, device=like.device)
    is_inside = ((part * size / parts).floor() <= place) & (place < ((part + 1) * size / parts).ceil())
    return (is_inside / is_inside.sum(dim=1, keepdim=True)).to(like.dtype)
