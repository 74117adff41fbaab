"""Energies, update sizes and attention maps, read while a run goes on and made into a TraceRecord when it ends.

Nothing leaves the device, and no call waits for it, before the run ends.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import torch
from torch import Tensor

from ...ebca_core import attention_energy, attention_map, norm_energy
from ..architectures.unet import LayerKey, place_of
from ..runtime.batch_layout import Chunk
from ..runtime.settings import Settings
from .trace_record import TraceRecord, WordMaps, sampled

if TYPE_CHECKING:
    from ..runtime.layer import Layer
    from ..runtime.sampling_run import Run

log = logging.getLogger("ebca")

Key = TypeVar("Key", bound=Hashable)

#: The longer side of an attention map, in image tokens; finer layers are pooled.
MAP_SIDE = 32
#: Of a layer's [b, h, t, n] matrix at once: 128 MiB in float32. One row of one head may be more.
MATRIX_ENTRIES = 2**25


class Column(NamedTuple):
    """What one column of a call's values is about."""

    layer: str
    role: str
    cond: Hashable
    image: int


@dataclass
class MapSum:
    """A sum of maps, and of how many, on their device."""

    total: Tensor
    count: Tensor

    def plus(self, other: MapSum) -> MapSum:
        device = self.total.device
        return MapSum(self.total + other.total.to(device), self.count + other.count.to(device))

    def times(self, weight: Tensor) -> MapSum:
        return MapSum(self.total * weight, self.count * weight)


@dataclass(eq=False)
class CallReadings:
    """What one call of the U-Net reads: E(K|Q), E(K) and the update size [columns], one column for a layer and row.

    context [b, t, c]: the prompts as the U-Net got them.
    """

    names: Mapping[LayerKey, str]
    chunks: Sequence[Chunk]
    context: Tensor
    wants_maps: bool
    columns: list[Column] = field(default_factory=list)
    values: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list)
    #: Maps [b, t, rows, columns] of a positive prompt, by the size of their grid.
    maps: dict[tuple[Chunk, tuple[int, int]], MapSum] = field(default_factory=dict)

    def begin(self) -> None:
        """Forget what the call read before: its U-Net runs again."""
        self.columns, self.values, self.maps = [], [], {}

    def read_prompts(self, layer: Layer, repeats: Tensor | None, change: Tensor | None, unit: float) -> None:
        """The prompts' own contexts in a layer, and its change of them [b, t, c] in units of `unit`, None for none."""
        roles = [
            Column(self.names[layer.key], "positive" if chunk.prompt.positive else "negative", chunk.cond, image)
            for chunk in self.chunks
            for image in chunk.images
        ]
        size = self._relative_size(change, unit, layer.context)
        if layer.key == next(reversed(self.names)):  # no layer would read the update of the last one
            size = torch.full_like(size, torch.nan)
        self._note(roles, _energies(layer.k, layer.q, layer.heads, repeats), size)

    def read_edit(
        self, layer: Layer, number: int, chunk: Chunk, keys: Tensor, change: Tensor | None, unit: float, text: Tensor
    ) -> None:
        """An edit's context in a layer, for a chunk's rows, and its change there; text [b, t, c]: as it was encoded."""
        columns = [Column(self.names[layer.key], f"edit{number}", chunk.cond, image) for image in chunk.images]
        energies = _energies(keys, layer.q[chunk.rows], layer.heads, None)
        self._note(columns, energies, self._relative_size(change, unit, text))

    def read_maps(self, layer: Layer) -> None:
        """The attention of a layer to the positive prompts of whole images, whose tokens lie on its grid."""
        for chunk in self.chunks:
            if chunk.prompt.positive and chunk.prompt.area is None:
                maps = _in_parts(attention_map, layer.k[chunk.rows], layer.q[chunk.rows], layer.heads)
                if chunk.prompt.tokens:  # ComfyUI repeats a prompt to the length of a longer one
                    maps = maps.unflatten(1, (-1, chunk.prompt.tokens)).sum(dim=1)
                maps = _pooled(maps.unflatten(2, layer.grid))
                _add(self.maps, (chunk, tuple(maps.shape[-2:])), MapSum(maps, maps.new_ones(())))

    def _note(self, columns: Sequence[Column], energies: tuple[Tensor, Tensor], size: Tensor) -> None:
        self.columns += columns
        self.values.append((*energies, size))

    def _relative_size(self, change: Tensor | None, unit: float, text: Tensor) -> Tensor:
        """unit * ||change|| / ||text|| of each row, [b, t, c] -> [b]; zero without a change."""
        if change is None:
            return text.new_zeros(text.shape[0], dtype=torch.float32)
        return _norm(change) * unit / (self._context_norm if text is self.context else _norm(text))

    @cached_property
    def _context_norm(self) -> Tensor:
        return _norm(self.context)


class RunReadings:
    """All that one run has read."""

    def __init__(self, wants_maps: bool):
        self.wants_maps = wants_maps
        self._names: Mapping[LayerKey, str] = {}
        self._calls: list[tuple[Tensor, list[Column], Tensor, Tensor]] = []
        #: Maps [t, rows, columns] of one prompt and image, by the size of their grid.
        self._maps: dict[tuple[Hashable, tuple[int, int], int], MapSum] = {}
        #: Of the last call for a prompt and image.
        self._sigmas: dict[tuple[Hashable, int], Tensor] = {}
        self._prompts: dict[Hashable, Tensor] = {}
        self._lock = threading.Lock()

    def add(self, call: CallReadings, sigma: Tensor) -> None:
        """Keep what a call at `sigma`, a tensor of one value, has read.

        Of calls in a row for one prompt and image at one sigma (heun, PAG, SAG, context windows that overlap) the first
        counts, as for what edits carry.
        """
        if not call.values:
            return
        values = torch.stack([torch.cat(row) for row in zip(*call.values)])
        with self._lock:
            is_new = self._are_new([(chunk.cond, image) for chunk in call.chunks for image in chunk.images], sigma)
            weights = torch.stack([is_new[column.cond, column.image] for column in call.columns])
            self._names = {**self._names, **call.names}  # a guider may have a second U-Net
            self._calls.append((sigma, call.columns, values, weights))
            for chunk in call.chunks:
                if chunk.prompt.positive and chunk.cond not in self._prompts:
                    self._prompts[chunk.cond] = sampled(call.context[chunk.rows][0][: chunk.prompt.tokens])
            for (chunk, grid), maps in call.maps.items():
                for image, total in zip(chunk.images, maps.total, strict=True):
                    one = MapSum(total, maps.count).times(is_new[chunk.cond, image])
                    _add(self._maps, (chunk.cond, grid, image), one)

    def _are_new(self, calls: Sequence[tuple[Hashable, int]], sigma: Tensor) -> dict[tuple[Hashable, int], Tensor]:
        """1 for a prompt and image whose last call was at another sigma, else 0: tensors, as nobody waits for sigma."""
        before = {call: self._sigmas.get(call) for call in calls}
        self._sigmas |= dict.fromkeys(calls, sigma)
        compared = {id(last): _differs(sigma, last) for last in before.values()}
        return {call: compared[id(last)] for call, last in before.items()}

    def record(self, sigmas: Sequence[float], settings: Settings, is_complete: bool) -> TraceRecord:
        """The record of a run that walks along `sigmas`."""
        read = [column for _, columns, *_ in self._calls for column in columns]
        layers = sorted({*self._names.values(), *(column.layer for column in read)}, key=place_of)
        starts = sigmas[:-1] or sigmas  # of the steps
        present = {column.role for column in read}
        roles = sorted(present, key=lambda role: ({"positive": 0, "negative": 1}.get(role, 2), role))
        total = torch.zeros(3, len(starts), len(layers), len(roles), dtype=torch.float64)
        count = torch.zeros(total.shape[1:], dtype=torch.float64)
        for sigma, columns, values, weights in self._calls:
            weights, values = weights.cpu().double(), values.cpu().double()
            at = (
                torch.full((len(columns),), _step_at(float(sigma), starts)),
                torch.tensor([layers.index(column.layer) for column in columns]),
                torch.tensor([roles.index(column.role) for column in columns]),
            )
            count.index_put_(at, weights, accumulate=True)
            for quantity, row in zip(total, values, strict=True):
                quantity.index_put_(at, row.where(weights != 0, 0.0), accumulate=True)
        attention, norm, size = (total / count).unbind()  # 0 / 0: NaN where nothing was read
        size = size.where(size.isfinite(), torch.nan)
        return TraceRecord(
            values=torch.stack([attention, norm, attention + norm, size]).float(),
            layers=tuple(layers),
            roles=tuple(roles),
            sigmas=tuple(starts),
            settings=settings.described(self._names),
            is_complete=is_complete,
            maps=tuple(self._maps_of(cond) for cond in dict.fromkeys(cond for cond, _, _ in self._maps)),
            prompts=tuple(prompt.cpu() for prompt in self._prompts.values()),
        )

    def _maps_of(self, cond: Hashable) -> WordMaps:
        grids = sorted({grid for prompt, grid, _ in self._maps if prompt == cond})
        images = sorted({image for prompt, _, image in self._maps if prompt == cond})
        sums = [[self._maps[cond, grid, image] for image in images] for grid in grids]
        means = [torch.stack([(one.total / one.count).cpu() for one in by_image]) for by_image in sums]
        return WordMaps(means, [int(by_image[0].count) for by_image in sums])


@contextmanager
def recording(run: Run, sigmas: Sequence[float]):
    """Record a run along `sigmas` in its settings' traces, from empty ones on, however it ends."""
    traces = run.settings.traces
    for trace in traces:
        trace.record = None
    run.readings = RunReadings(wants_maps=any(trace.wants_maps for trace in traces))

    def write(is_complete: bool) -> None:
        record = run.readings.record(sigmas, run.settings, is_complete)
        for trace in traces:
            trace.record = record if trace.wants_maps else replace(record, maps=())

    try:
        yield
    except BaseException:
        with suppress(Exception):  # what stopped the run is what its user must see
            write(is_complete=False)
        raise
    try:
        write(is_complete=True)
    except Exception:  # the picture is there, and must not be lost with its trace
        log.exception("EBCA Trace could not put its record together; the picture is as it should be. Please report it.")


def _differs(sigma: Tensor, last: Tensor | None) -> Tensor:
    """1 if a sigma [1] is another than the last one, or the first, else 0."""
    return torch.ones_like(sigma[0]) if last is None else (sigma != last.to(sigma.device))[0].to(sigma.dtype)


def _step_at(sigma: float, starts: Sequence[float]) -> int:
    """The step in which a sampler is at a sigma: the last one that it has begun. starts fall, or in inversions rise."""
    falls = starts[0] >= starts[-1]
    begun = [step for step, start in enumerate(starts) if (start >= sigma if falls else start <= sigma)]
    return max(begun, default=0)


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
    if rows >= keys.shape[0]:
        return read(keys, queries, heads)
    return torch.cat([read(k, q, heads) for k, q in zip(keys.split(rows), queries.split(rows), strict=True)])


def _norm(text: Tensor) -> Tensor:
    """[b, t, c] -> [b]."""
    return torch.linalg.vector_norm(text, dim=(1, 2), dtype=torch.float32)


def _pooled(maps: Tensor) -> Tensor:
    """Maps [b, t, rows, columns] on a grid of at most MAP_SIDE tokens a side."""
    scale = min(1.0, MAP_SIDE / max(maps.shape[-2:]))
    grid = [max(1, round(side * scale)) for side in maps.shape[-2:]]
    return torch.nn.functional.adaptive_avg_pool2d(maps, grid)


def _add(sums: dict[Key, MapSum], key: Key, one: MapSum) -> None:
    sums[key] = sums[key].plus(one) if key in sums else one
