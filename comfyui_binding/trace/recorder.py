"""Records energies, update sizes and attention maps during a run, and builds a TraceRecord when it ends.

Nothing leaves the device, and no call waits for it, before the run ends.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import repeat
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import torch
from comfy.model_management import InterruptProcessingException
from torch import Tensor

from ...ebca_core import EBCA, ContextEnergy, attention_map, energy_values
from ..runtime import notices
from ..runtime.batch_layout import Chunk
from ..runtime.notices import Notices
from ..runtime.settings import Settings
from ..runtime.text_attention import EncodedText, hidden_tokens
from ..shared_on_deepcopy import SharedOnDeepcopy
from .map_pooling import pooled
from .trace_record import TraceRecord, WordMaps, fingerprint

if TYPE_CHECKING:
    from ..runtime.denoiser_call import ContextTrack
    from ..runtime.sampling_run import Run
    from ..runtime.text_attention import TextAttention

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
    """A sum of maps [b, t, rows, columns] or [t, rows, columns], and of how many, [b] or one, on their device."""

    total: Tensor
    count: Tensor

    def plus(self, other: MapSum) -> MapSum:
        device = self.total.device
        return MapSum(self.total + other.total.to(device), self.count + other.count.to(device))

    def times(self, weight: Tensor) -> MapSum:
        """Weighted, by one number or one for each of b."""
        shape = (*weight.shape, *[1] * (self.total.ndim - 1)) if weight.ndim else ()
        return MapSum(self.total * weight.view(shape), self.count * weight)


@dataclass(eq=False)
class CallRecorder:
    """Records one pass of the network: E(K|Q), E(K) and the update size [columns], one column for a layer and row.

    names: of the layers, in the order of the pass; unread: those whose update no other layer reads; context [b, t, c]:
    the prompts as the network got them; repeats [b, 1, 1]: how many copies of a prompt's own tokens they hold, None for
    one.
    """

    names: Sequence[str]
    unread: Collection[str]
    chunks: Sequence[Chunk]
    context: Tensor
    repeats: Tensor | None
    wants_maps: bool
    wants_values: bool = True
    energy: ContextEnergy = EBCA
    #: How many tokens of its own the network puts in front of a prompt's.
    tokens_before_text: int = 0
    columns: list[Column] = field(default_factory=list)
    values: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list)
    #: Maps [b, t, rows, columns] of a positive prompt, by the grid of the layers that they are of.
    maps: dict[tuple[Chunk, tuple[int, int]], MapSum] = field(default_factory=dict)

    def begin(self) -> None:
        """Drop what the pass has recorded: the network starts again."""
        self.columns, self.values, self.maps = [], [], {}

    def record_prompts(self, layer: TextAttention, repeats: Tensor | None, change: Tensor | None, scale: float) -> None:
        """The prompts' contexts in a layer, and its change of them [b, t, c] in units of `scale`, None for none."""
        if not self.wants_values:
            return
        roles = [
            Column(layer.name, "positive" if chunk.entry.positive else "negative", chunk.cond, image)
            for chunk in self.chunks
            for image in chunk.images
        ]
        size = self._relative_size(change, scale, layer.context)
        if layer.name in self.unread:
            size = torch.full_like(size, torch.nan)
        words = layer.words_of(EncodedText(layer.context, words=layer.words))
        self._note(roles, _energies(layer.k, layer.q, layer.heads, repeats, self.energy, words), size)

    def record_edit(self, layer: TextAttention, number: int, track: ContextTrack, change: Tensor | None) -> None:
        """An edit's context in a layer, and the layer's change of it [b, t, c] in units of the track's scale."""
        if not self.wants_values:
            return
        chunk = track.chunk
        columns = [Column(layer.name, f"edit{number}", chunk.cond, image) for image in chunk.images]
        energies = _energies(track.k, layer.q[chunk.rows], layer.heads, None, self.energy, layer.words_of(track.text))
        self._note(columns, energies, self._relative_size(change, track.scale, track.text.context))

    def record_maps(self, layer: TextAttention) -> None:
        """The attention of a layer to the positive prompts of whole images, whose tokens lie on its grid.

        Of a video it is the mean over the frames.
        """
        before = layer.tokens_before_grid or 0
        on_grid = slice(before, before + math.prod(layer.grid))
        for chunk in self.chunks:
            if chunk.entry.positive and chunk.entry.area is None and self.holds_tokens_of(chunk):
                hidden = None if layer.text_mask is None else hidden_tokens(layer.text_mask)[chunk.rows]
                maps = _in_parts(attention_map, layer.k[chunk.rows], layer.q[chunk.rows, on_grid], layer.heads, hidden)
                maps = maps[:, self.tokens_before_text :]
                count = maps.new_ones(len(chunk.images))
                if chunk.entry.tokens:  # ComfyUI repeats a prompt to the length of a longer one
                    maps = maps.unflatten(1, (-1, chunk.entry.tokens))
                    if self.repeats is not None:  # what is no repetition is another node's text
                        count = (self.repeats[chunk.rows].flatten() == maps.shape[1]).to(count)
                    maps = maps.sum(dim=1)
                maps = pooled(maps.unflatten(2, (-1, *layer.grid[-2:])).mean(dim=2), MAP_SIDE)
                _add(self.maps, (chunk, layer.grid[-2:]), MapSum(maps, maps.new_ones(())).times(count))

    def holds_tokens_of(self, chunk: Chunk) -> bool:
        """Whether a prompt's rows can hold its tokens: their number is a multiple of the prompt's own."""
        return not chunk.entry.tokens or self.context.shape[1] % chunk.entry.tokens == 0

    def _note(self, columns: Sequence[Column], energies: tuple[Tensor, Tensor], size: Tensor) -> None:
        self.columns += columns
        self.values.append((*energies, size))

    def _relative_size(self, change: Tensor | None, scale: float, context: Tensor) -> Tensor:
        """scale * ||change|| / ||context|| of each row, [b, t, c] -> [b]; zero without a change."""
        if change is None:
            return context.new_zeros(context.shape[0], dtype=torch.float32)
        return _norm(change) * scale / (self._context_norm if context is self.context else _norm(context))

    @cached_property
    def _context_norm(self) -> Tensor:
        return _norm(self.context)


class MapWatch(SharedOnDeepcopy):
    """The attention maps of the last noise level at which the model was called while the watch was open.

    It is read during the run, and belongs to a run of one image.
    """

    def __init__(self):
        self.is_open = False
        #: What was logged in any of the runs that share it.
        self.warned: set[str] = set()
        self._sigma: float | None = None
        self._maps: dict[tuple[Hashable, tuple[int, int]], MapSum] = {}

    def restart(self, is_open: bool) -> None:
        """Forget what was seen: another run begins."""
        self.is_open, self._sigma, self._maps = is_open, None, {}

    def add(self, call: CallRecorder, sigma: Tensor) -> None:
        """Keep the maps of a pass at `sigma`; of passes in a row at one sigma the first counts, as in a record."""
        if not call.maps:
            return
        if float(sigma) != self._sigma:
            self._sigma, self._maps = float(sigma), {}
        for (chunk, grid), maps in call.maps.items():
            self._maps.setdefault((chunk.cond, grid), maps)

    def maps(self) -> WordMaps | None:
        """The maps of the one positive prompt; None where there are none, or another node's text took its place."""
        maps = [self._maps[key] for key in sorted(self._maps, key=lambda key: key[1])]
        if not maps or len({cond for cond, _ in self._maps}) > 1 or not all(bool(one.count[0]) for one in maps):
            return None
        return WordMaps([one.total[:1] / one.count[0] for one in maps], [int(one.count[0]) for one in maps])


class RunRecorder:
    """All that one run has recorded, for traces, for a watch, or for both."""

    def __init__(
        self,
        wants_values: bool,
        wants_maps: bool,
        notices_of_run: Notices,
        energy: ContextEnergy = EBCA,
        expects_one_text: bool = True,
        tokens_before_text: int = 0,
        encoded_texts: Mapping[Hashable, Tensor] = MappingProxyType({}),
        watch: MapWatch | None = None,
    ):
        """wants_values, wants_maps: of the traces. expects_one_text: whether a prompt's text is the same in all calls,
        unless another node changes it.

        tokens_before_text: how many tokens of its own the network puts in front of a prompt's. encoded_texts: by uuid,
        the positive prompts as they were encoded, where the layers read another text.
        """
        self._wants_values = wants_values
        self._wants_maps = wants_maps
        self._watch = watch
        self._tokens_before_text = tokens_before_text
        self._encoded_texts = encoded_texts
        self._expects_one_text = expects_one_text
        self._energy = energy
        self._names: list[str] = []
        self._calls: list[tuple[Tensor, list[Column], Tensor, Tensor]] = []
        #: Maps [t, rows, columns] of one prompt and image, by the grid of the layers that they are of.
        self._maps: dict[tuple[Hashable, tuple[int, int], int], MapSum] = {}
        #: Of the last call for a prompt and image.
        self._sigmas: dict[tuple[Hashable, int], Tensor] = {}
        self._prompts: dict[Hashable, Tensor] = {}
        #: The first text [t, c] of a prompt and image, where maps of its words are recorded.
        self._texts: dict[tuple[Hashable, int], Tensor] = {}
        self._notices = notices_of_run
        self.has_failed = False
        self._lock = threading.Lock()

    @property
    def reader(self) -> str:
        """The node for which layers are read, as messages name it."""
        return notices.TRACE if self._wants_values else notices.REROLL

    @property
    def is_recording(self) -> bool:
        """Whether the next pass is recorded."""
        return not self.has_failed and (self._wants_values or self._is_watched)

    @property
    def _is_watched(self) -> bool:
        return self._watch is not None and self._watch.is_open

    def call_recorder(
        self,
        names: Sequence[str],
        unread: Collection[str],
        chunks: Sequence[Chunk],
        context: Tensor,
        repeats: Tensor | None,
    ) -> CallRecorder | None:
        """The recorder of one pass; None where nothing is recorded."""
        if not self.is_recording:
            return None
        wants_maps = self._wants_maps or self._is_watched
        return CallRecorder(
            names, unread, chunks, context, repeats, wants_maps, self._wants_values, self._energy,
            self._tokens_before_text,
        )  # fmt: skip

    def stop(self) -> None:
        """Record no more: an instrument that fails must not cost the image."""
        if not self.has_failed:
            log.exception(notices.recorder_failed(self.reader))
        self.has_failed = True

    def add(self, call: CallRecorder, sigma: Tensor) -> None:
        """Keep what a pass at `sigma`, a tensor of one value, has recorded.

        Of calls in a row for one prompt and image at one sigma (heun, PAG, SAG, context windows that overlap) the first
        counts, as for what edits carry.
        """
        with self._lock:
            if self._is_watched:
                self._watch.add(call, sigma)
        if not call.values:
            return
        values = torch.stack([torch.cat(row) for row in zip(*call.values)])
        with self._lock:
            is_new = self._are_new([(chunk.cond, image) for chunk in call.chunks for image in chunk.images], sigma)
            weights = torch.stack([is_new[column.cond, column.image] for column in call.columns])
            self._names = merged(self._names, call.names)  # a guider may have a second network
            self._calls.append((sigma, call.columns, values, weights))
            for chunk in call.chunks:
                if chunk.entry.positive and chunk.cond not in self._prompts:
                    read = call.context[chunk.rows][0][: chunk.entry.tokens]
                    encoded = self._encoded_texts.get(chunk.cond[0])
                    self._prompts[chunk.cond] = fingerprint(read if encoded is None else encoded[0])
            for chunk in {chunk for chunk, _ in call.maps} if self._wants_maps else ():
                self._compare_text(chunk, call.context)
            for (chunk, grid), maps in call.maps.items() if self._wants_maps else ():
                for image, total, count in zip(chunk.images, maps.total, maps.count, strict=True):
                    one = MapSum(total, count).times(is_new[chunk.cond, image])
                    _add(self._maps, (chunk.cond, grid, image), one)

    def _compare_text(self, chunk: Chunk, context: Tensor) -> None:
        """A warning at the end of the run if a prompt has not had one text throughout."""
        if not self._expects_one_text:
            return
        for row, image in zip(context[chunk.rows], chunk.images, strict=True):
            text = row[: chunk.entry.tokens]
            first = self._texts.setdefault((chunk.cond, image), text)
            if first.shape == text.shape and first.device == text.device and first is not text:
                self._notices.warn_if((first != text).any(), notices.MAPS_TEXT_CHANGED)

    def _are_new(self, calls: Sequence[tuple[Hashable, int]], sigma: Tensor) -> dict[tuple[Hashable, int], Tensor]:
        """1 for a prompt and image whose last call was at another sigma, else 0, as tensors: the host does not wait."""
        before = {call: self._sigmas.get(call) for call in calls}
        self._sigmas |= dict.fromkeys(calls, sigma)
        compared = {id(last): _differs(sigma, last) for last in before.values()}
        return {call: compared[id(last)] for call, last in before.items()}

    def record(self, sigmas: Sequence[float], settings: Settings, is_complete: bool) -> TraceRecord:
        """The record of a run along `sigmas`."""
        read = [column for _, columns, *_ in self._calls for column in columns]
        layers = self._names
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
            settings=settings.to_dict(layers),
            is_complete=is_complete and not self.has_failed,
            maps=tuple(maps for maps in map(self._maps_of, dict.fromkeys(cond for cond, _, _ in self._maps)) if maps),
            prompts=tuple(prompt.cpu() for prompt in self._prompts.values()),
        )

    def _maps_of(self, cond: Hashable) -> WordMaps | None:
        """The maps of a prompt; None if another node's texts took its place throughout."""
        grids = sorted({grid for prompt, grid, _ in self._maps if prompt == cond})
        images = sorted({image for prompt, _, image in self._maps if prompt == cond})
        sums = [[self._maps[cond, grid, image] for image in images] for grid in grids]
        if not all(bool(one.count) for by_image in sums for one in by_image):
            self._notices.warn_once(notices.MAPS_LENGTHS)
            return None
        means = [torch.stack([(one.total / one.count).cpu() for one in by_image]) for by_image in sums]
        return WordMaps(means, [int(by_image[0].count) for by_image in sums])


@contextmanager
def errors_are_logged(message: str = notices.TRACE_FAILED):
    """An error in a recording, a plot or a score is logged, and the run goes on."""
    try:
        yield
    except InterruptProcessingException:
        raise
    except Exception:
        log.exception(message)


@contextmanager
def recording(run: Run, sigmas: Sequence[float]):
    """Record a run along `sigmas` in its settings' traces, from empty ones on, however it ends; and for a watch."""
    traces, watch = run.settings.traces, run.settings.watch
    if not traces and watch is None:
        yield
        return
    for trace in traces:
        trace.record = None
    wants_maps = any(trace.wants_maps for trace in traces)
    architecture = run.settings.architecture
    run.recorder = RunRecorder(
        bool(traces),
        wants_maps,
        run.notices,
        run.settings.energy,
        not architecture.text_depends_on_sigma,
        architecture.tokens_before_text,
        {} if architecture.repeats_prompts else run.layout.encoded_texts,
        watch,
    )

    def write(is_complete: bool) -> None:
        if not traces:
            return
        record = run.recorder.record(sigmas, run.settings, is_complete)
        for trace in traces:
            trace.record = record if trace.wants_maps else replace(record, maps=())

    try:
        yield
    except BaseException:
        with suppress(Exception):  # what stopped the run is what its user must see
            write(is_complete=False)
        raise
    with errors_are_logged():
        write(is_complete=True)


def merged(names: Sequence[str], others: Sequence[str]) -> list[str]:
    """All names, those of each list in its order."""
    names, place = list(names), 0
    for name in others:
        if name in names:
            place = names.index(name)
        else:
            names.insert(place, name)
        place += 1
    return names


def _differs(sigma: Tensor, last: Tensor | None) -> Tensor:
    """1 if a sigma [1] is another than the last one, or the first, else 0."""
    return torch.ones_like(sigma[0]) if last is None else (sigma != last.to(sigma.device))[0].to(sigma.dtype)


def _step_at(sigma: float, starts: Sequence[float]) -> int:
    """The step in which a sampler is at a sigma: the last one that it has begun. starts fall, or in inversions rise."""
    falls = starts[0] >= starts[-1]
    begun = [step for step, start in enumerate(starts) if (start >= sigma if falls else start <= sigma)]
    return max(begun, default=0)


def _energies(
    keys: Tensor,
    queries: Tensor,
    heads: int,
    repeats: Tensor | None,
    energy: ContextEnergy,
    words: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """E(K|Q), summed over the words, and E(K) of each row [b], as if repeated tokens were there once."""
    rows = _rows_at_once(keys, queries, heads)
    optional = [repeat(None) if tensor is None else tensor.split(rows) for tensor in (repeats, words)]
    parts = zip(keys.split(rows), queries.split(rows), *optional)
    values = [energy_values(k, q, heads, r, energy, w) for k, q, r, w in parts]
    attention, norm = zip(*values, strict=True)
    return torch.cat(attention), torch.cat(norm)


def _rows_at_once(keys: Tensor, queries: Tensor, heads: int) -> int:
    """How many rows' [h, t, n] matrices fit into MATRIX_ENTRIES."""
    return max(1, MATRIX_ENTRIES // (heads * keys.shape[1] * queries.shape[1]))


def _in_parts(
    read: Callable[..., Tensor], keys: Tensor, queries: Tensor, heads: int, hidden: Tensor | None
) -> Tensor:
    """read(keys, queries, heads, hidden), some rows at a time where a matrix of all of them would be large."""
    rows = _rows_at_once(keys, queries, heads)
    if rows >= keys.shape[0]:
        return read(keys, queries, heads, hidden)
    parts = zip(keys.split(rows), queries.split(rows), repeat(None) if hidden is None else hidden.split(rows))
    return torch.cat([read(k, q, heads, h) for k, q, h in parts])


def _norm(context: Tensor) -> Tensor:
    """[b, t, c] -> [b]."""
    return torch.linalg.vector_norm(context, dim=(1, 2), dtype=torch.float32)


def _add(sums: dict[Key, MapSum], key: Key, one: MapSum) -> None:
    sums[key] = sums[key].plus(one) if key in sums else one
