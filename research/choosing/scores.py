"""What recorded maps are worth: scores [b, call], high where the picture should come out right."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

import comfy_host  # noqa: F401 - it makes ebca_core importable
from choosing.settings import CHOSEN, FINE, LOSS
from ebca_core import claims, one_place_score
from ebca_core.one_place import REACH, near_share, second_peak

if TYPE_CHECKING:
    from choosing.recording import Recorded

COARSE = 4  # side of the other grid of the shapes model's U-Net; its transformer has FINE alone
#: How many layers of the U-Net have a grid.
LAYERS = {FINE: 3, COARSE: 4}


def one_place(maps: np.ndarray) -> np.ndarray:
    """The pack's score of maps [b, call, object, n]."""
    return _of_each_call(maps, one_place_score)


def gaps(places: Tensor) -> Tensor:
    """F_rest - F_peak of each object: the log of the mass within REACH of the peak over the mass outside.

    places [b, i, rows, columns], a distribution over the pixels -> [b, i].
    """
    rows, columns = places.shape[-2:]
    row, column = (grid.flatten() for grid in torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij"))
    values = places.flatten(2)
    peak = values.argmax(2, keepdim=True)
    distance = ((row - row[peak]) ** 2 + (column - column[peak]) ** 2).sqrt() / (rows * columns) ** 0.5
    inside = (values * (distance <= REACH)).sum(2)
    return (inside / (values.sum(2) - inside)).log()


def on_fine_grid(by_side: dict[int, np.ndarray]) -> np.ndarray:
    """The mean over all layers, [b, call, object, n] of each grid -> that of the finer one."""
    coarse, factor = by_side[COARSE], FINE // COARSE
    grid = coarse.reshape(*coarse.shape[:-1], COARSE, COARSE).repeat(factor, -1).repeat(factor, -2)
    total = LAYERS[FINE] * by_side[FINE] + LAYERS[COARSE] * grid.reshape(by_side[FINE].shape)
    return total / sum(LAYERS.values())


def _of_each_call(maps: np.ndarray, score: Callable[[Tensor], Tensor]) -> np.ndarray:
    """A score of maps [b, i, rows, columns], for [b, call, i, n]."""
    side = round(maps.shape[-1] ** 0.5)
    grids = torch.from_numpy(maps).float().unflatten(-1, (side, side))
    return score(grids.flatten(0, 1)).view(maps.shape[:2]).numpy()


#: [b, call] of what was recorded of a batch.
Score = Callable[["Recorded"], np.ndarray]
SCORES: dict[str, Score] = {
    CHOSEN: lambda found: one_place(found.attention[FINE]),
    LOSS: lambda found: -found.loss,
}
#: What was compared with it on the tuning captions.
ALTERNATIVES: dict[str, Score] = {
    "its share near a peak alone": lambda found: _of_each_call(
        found.attention[FINE], lambda maps: near_share(claims(maps))
    ),
    "its second peak alone": lambda found: _of_each_call(
        found.attention[FINE], lambda maps: -second_peak(claims(maps))
    ),
    "one place each, layers on 4 x 4": lambda found: one_place(found.attention[COARSE]),
    "one place each, all layers": lambda found: one_place(on_fine_grid(found.attention)),
    "one place each, softmax over pixels": lambda found: one_place(found.places[FINE]),
    "gap, claimed attention, worst object": lambda found: _of_each_call(
        found.attention[FINE], lambda maps: gaps(claims(maps)).amin(1)
    ),
    "gap, softmax over pixels, worst object": lambda found: _of_each_call(
        found.places[FINE], lambda maps: gaps(maps).amin(1)
    ),
    "gap, softmax over pixels, mean of the objects": lambda found: _of_each_call(
        found.places[FINE], lambda maps: gaps(maps).mean(1)
    ),
}
#: Those that read the coarser grid.
OF_COARSE = ("one place each, layers on 4 x 4", "one place each, all layers")


def scores_of(found: Recorded, is_tuning: bool) -> dict[str, np.ndarray]:
    """{name: [b, call]} of all scores that are kept."""
    wanted = SCORES | (ALTERNATIVES if is_tuning else {})
    return {name: of(found) for name, of in wanted.items() if COARSE in found.attention or name not in OF_COARSE}
