"""Energies, update sizes and attention maps, read while a run goes on and made into a TraceRecord when it ends.

Nothing leaves the device, and no call waits for it, before the run ends.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import torch
from torch import Tensor

from ..ebca_core import attention_energy, attention_map, norm_energy
from .families import LayerKey
from .prompts import Chunk
from .settings import Settings
from .trace import QUANTITIES, TraceRecord, WordMaps

if TYPE_CHECKING:
    from .layer import Layer
    from .run import Run

Key = TypeVar("Key", bound=Hashable)

#: The longer side of an attention map, in image tokens; finer layers are pooled.
MAP_SIDE = 32
#: Of a layer's [b, h, t, n] matrix at once: 128 MiB in float32.
MATRIX_ENTRIES = 2**25


class Column(NamedTuple):
    """What one column of a call's values is about."""

    layer: str
    role: str


@dataclass
class MapSum:
    """A sum of maps, and of how many."""

    total: Tensor
    count: int = 1

    def plus(self, other: MapSum) -> MapSum:
        return MapSum(self.total + other.total.to(self.total.device), self.count + other.count)


@dataclass(eq=False)
class CallReadings:
    """What one call of the U-Net has read; values [3, columns] of its parts: the two energies and the update size."""

    names: Mapping[LayerKey, str]
    chunks: Sequence[Chunk]
    wants_maps: bool
    columns: list[Column] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    #: Maps [b, t, rows, columns] of a positive prompt, by the size of their grid.
    maps: dict[tuple[Chunk, tuple[int, int]], MapSum] = field(default_factory=dict)

    def begin(self) -> None:
        """Forget what the call read before: its U-Net runs again."""
        self.columns, self.values, self.maps = [], [], {}

    def read_prompts(self, layer: Layer, repeats: Tensor | None, change: Tensor | None, unit: float) -> None:
        """The prompts' own contexts in a layer, and its change of them [b, t, c] in units of `unit`, None for none."""
        energies = _energies(layer.k, layer.q, layer.heads, repeats)
        roles = ["positive" if chunk.prompt.positive else "negative" for chunk in self.chunks for _ in chunk.images]
        self._note(layer, energies, _relative_size(change, unit, layer.context), roles)
        if self.wants_maps:
            for chunk in self.chunks:
                if chunk.prompt.positive and chunk.prompt.area is None:
                    self._read_maps(layer, chunk)

    def read_edit(
        self, layer: Layer, number: int, rows: slice, keys: Tensor, text: Tensor, change: Tensor | None, unit: float
    ) -> None:
        """An edit's context `text` [b, t, c] in a layer, for some of its rows, and its change there."""
        energies = _energies(keys, layer.q[rows], layer.heads, None)
        self._note(layer, energies, _relative_size(change, unit, text), [f"edit{number}"] * keys.shape[0])

    def _note(self, layer: Layer, energies: tuple[Tensor, Tensor], size: Tensor, roles: Sequence[str]) -> None:
        self.values.append(torch.stack([*energies, size]))
        self.columns += [Column(self.names[layer.key], role) for role in roles]

    def _read_maps(self, layer: Layer, chunk: Chunk) -> None:
        maps = _in_parts(attention_map, layer.k[chunk.rows], layer.q[chunk.rows], layer.heads)
        if chunk.prompt.tokens:  # ComfyUI repeats a prompt to the length of a longer one
            maps = maps.unflatten(1, (-1, chunk.prompt.tokens)).sum(dim=1)
        maps = _pooled(maps.unflatten(2, layer.grid))
        _add(self.maps, (chunk, tuple(maps.shape[-2:])), MapSum(maps))


class RunReadings:
    """All that one run has read."""

    def __init__(self, wants_maps: bool):
        self.wants_maps = wants_maps
        self._names: Mapping[LayerKey, str] = {}
        self._calls: list[tuple[Tensor, list[Column], Tensor]] = []
        #: Maps [t, rows, columns] of one prompt and image, by the size of their grid.
        self._maps: dict[tuple[Hashable, tuple[int, int], int], MapSum] = {}
        self._lock = threading.Lock()

    def add(self, call: CallReadings, sigma: Tensor) -> None:
        """Keep what a call at `sigma`, a tensor of one value, has read."""
        if not call.values:
            return
        values = torch.cat(call.values, dim=1)
        with self._lock:
            self._names = call.names
            self._calls.append((sigma, call.columns, values))
            for (chunk, grid), maps in call.maps.items():
                for image, total in zip(chunk.images, maps.total, strict=True):
                    _add(self._maps, (chunk.cond, grid, image), MapSum(total, maps.count))

    def record(self, sigmas: Sequence[float], settings: Settings, is_complete: bool) -> TraceRecord:
        """The record of a run that walks along `sigmas`."""
        layers = list(self._names.values())
        sigmas = sigmas[:-1]  # where a step begins
        present = {column.role for _, columns, _ in self._calls for column in columns}
        roles = sorted(present, key=lambda role: ({"positive": 0, "negative": 1}.get(role, 2), role))
        total = torch.zeros(3, len(sigmas), len(layers), len(roles), dtype=torch.float64)
        count = torch.zeros(total.shape[1:], dtype=torch.float64)
        for sigma, columns, values in self._calls:
            step = min(range(len(sigmas)), key=lambda i: abs(sigmas[i] - float(sigma)))
            at = (
                torch.full((len(columns),), step),
                torch.tensor([layers.index(column.layer) for column in columns]),
                torch.tensor([roles.index(column.role) for column in columns]),
            )
            count.index_put_(at, torch.ones(len(columns), dtype=torch.float64), accumulate=True)
            for quantity, row in zip(total, values.cpu().double(), strict=True):
                quantity.index_put_(at, row, accumulate=True)
        attention, norm, size = (total / count).unbind()  # 0 / 0: NaN where nothing was read
        values = torch.stack([attention, norm, attention + norm, size]).float()
        assert len(values) == len(QUANTITIES)
        asked = settings.described(self._names)
        return TraceRecord(values, tuple(layers), tuple(roles), tuple(sigmas), asked, is_complete, self._word_maps())

    def _word_maps(self) -> list[WordMaps]:
        return [self._maps_of(cond) for cond in dict.fromkeys(cond for cond, _, _ in self._maps)]

    def _maps_of(self, cond: Hashable) -> WordMaps:
        grids = sorted({grid for prompt, grid, _ in self._maps if prompt == cond})
        images = sorted({image for prompt, _, image in self._maps if prompt == cond})
        sums = [[self._maps[cond, grid, image] for image in images] for grid in grids]
        means = [torch.stack([one.total.cpu() / one.count for one in by_image]) for by_image in sums]
        return WordMaps(means, [by_image[0].count for by_image in sums])


@contextmanager
def recording(run: Run, sigmas: Sequence[float]):
    """Record a run along `sigmas` in its settings' traces, from empty ones on, however it ends."""
    traces = run.settings.traces
    for trace in traces:
        trace.record = None
    run.readings = RunReadings(wants_maps=any(trace.wants_maps for trace in traces))
    is_complete = False
    try:
        yield
        is_complete = True
    finally:
        record = run.readings.record(sigmas, run.settings, is_complete)
        for trace in traces:
            trace.record = record if trace.wants_maps else replace(record, maps=())


def _energies(keys: Tensor, queries: Tensor, heads: int, repeats: Tensor | None) -> tuple[Tensor, Tensor]:
    """E(K|Q), summed over the tokens, and E(K) of each row [b], as if repeated tokens were there once."""
    attention, norm = _in_parts(attention_energy, keys, queries, heads).sum(dim=1), norm_energy(keys)
    if repeats is None:
        return attention, norm
    repeats = repeats.flatten()
    return attention / repeats, norm - 0.5 * repeats.log()


def _in_parts(read: Callable[[Tensor, Tensor, int], Tensor], keys: Tensor, queries: Tensor, heads: int) -> Tensor:
    """read(keys, queries, heads), some rows at a time where a matrix of all of them would be large."""
    rows = max(1, MATRIX_ENTRIES // (heads * keys.shape[1] * queries.shape[1]))
    return torch.cat([read(k, q, heads) for k, q in zip(keys.split(rows), queries.split(rows), strict=True)])


def _relative_size(change: Tensor | None, unit: float, text: Tensor) -> Tensor:
    """unit * ||change|| / ||text|| of each row, [b, t, c] -> [b]; zero without a change."""
    if change is None:
        return text.new_zeros(text.shape[0], dtype=torch.float32)
    length, whole = (torch.linalg.vector_norm(part, dim=(1, 2), dtype=torch.float32) for part in (change, text))
    return length * unit / whole


def _pooled(maps: Tensor) -> Tensor:
    """Maps [b, t, rows, columns] on a grid of at most MAP_SIDE tokens a side."""
    scale = min(1.0, MAP_SIDE / max(maps.shape[-2:]))
    grid = [max(1, round(side * scale)) for side in maps.shape[-2:]]
    return torch.nn.functional.adaptive_avg_pool2d(maps, grid)


def _add(sums: dict[Key, MapSum], key: Key, one: MapSum) -> None:
    sums[key] = sums[key].plus(one) if key in sums else one
