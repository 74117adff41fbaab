"""The attention maps of the objects of a prompt, as the score of `ebca_core.one_place` takes them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .map_pooling import pooled
from .trace_record import WordMaps

#: The longer side of the maps, in image tokens; finer ones are pooled.
OBJECT_SIDE = 16
#: The side of the coarsest grid on which places can be distinguished: the reach of the score is two of its tokens.
LEAST_SIDE = 8


def object_maps(maps: WordMaps, objects: Sequence[Sequence[int]]) -> Tensor:
    """The attention to each object's tokens, summed, on the grid of objects: [b, i, rows, columns].

    objects: the places of each object's tokens in the prompt's conditioning.
    """
    grid = grid_of_objects(maps)
    return pooled(torch.stack([grid[:, list(tokens)].sum(dim=1) for tokens in objects], dim=1), OBJECT_SIDE)


def grid_of_objects(maps: WordMaps) -> Tensor:
    """The maps [b, t, rows, columns] of the coarsest grid of LEAST_SIDE and more, or else of the finest.

    Grids that less than half as many layers have as another are left out: the middle of SD 1.5 is one layer.
    """
    grids = [grid for grid, weight in zip(maps.by_grid, maps.weights, strict=True) if 2 * weight >= max(maps.weights)]
    fine = [grid for grid in grids if math.prod(grid.shape[-2:]) >= LEAST_SIDE**2]
    return fine[0] if fine else grids[-1]
