"""The attention maps of the objects of a prompt, as the score of `ebca_core.one_place` takes them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .map_pooling import pooled
from .trace_record import WordMaps

#: The longer side of the maps, in image tokens; finer ones are pooled.
OBJECT_SIDE = 16


def object_maps(maps: WordMaps, objects: Sequence[Sequence[int]]) -> Tensor:
    """The attention to each object's tokens, summed, on the grid that most layers have: [b, i, rows, columns].

    objects: the places of each object's tokens in the prompt's conditioning. Of grids that equally many layers have it
    is the coarsest.
    """
    most = max(range(len(maps.weights)), key=maps.weights.__getitem__)
    grid = maps.by_grid[most]
    return pooled(torch.stack([grid[:, list(tokens)].sum(dim=1) for tokens in objects], dim=1), OBJECT_SIDE)
