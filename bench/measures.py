"""Time, memory, launches and host synchronisations of a function."""

from __future__ import annotations

import statistics
import time
import warnings
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

Function = Callable[[], Any]


@dataclass(frozen=True)
class Seconds:
    """wall: what a clock on the wall says; cpu: what this process computed, which other programs do not prolong."""

    wall: float
    cpu: float


def seconds(function: Function, repeats: int) -> Seconds:
    """Of one call, mean over `repeats` calls in a row."""
    _wait()
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(repeats):
        function()
    _wait()
    return Seconds((time.perf_counter() - wall) / repeats, (time.process_time() - cpu) / repeats)


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


@dataclass(frozen=True)
class Ratio:
    """Median of paired ratios, and the quartiles they lie between."""

    median: float
    low: float
    high: float
    pairs: int

    def __str__(self) -> str:
        return f"{self.median:.3f} ({self.low:.3f}-{self.high:.3f})"


def ratio(ebca: Sequence[float], plain: Sequence[float]) -> Ratio:
    """ebca[i] and plain[i] were measured one right after the other."""
    ratios = [a / b for a, b in zip(ebca, plain, strict=True)]
    low, median, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    return Ratio(median, low, high, len(ratios))


@dataclass(frozen=True)
class Counts:
    """Of one call. launches: CUDA kernels, or on the CPU operators without views; peak: bytes held at a time at most,
    beyond what was held before (on the CPU in tensors; what an operator takes and gives back inside is left out);
    operations: of matrix products, convolutions and attention, in floating point."""

    launches: int
    peak: int
    operations: int


def counts(function: Function) -> Counts:
    """CUDA's own counters where there is a device; on the CPU every operator is looked at as it is dispatched."""
    with FlopCounterMode(display=False, custom_mapping={_CPU_ATTENTION: _operations_of_attention}) as counter:
        function()
    operations = counter.get_total_flops()
    if torch.cuda.is_available():
        return Counts(_kernels(function), _cuda_peak(function), operations)
    with _Dispatched() as dispatched:
        function()
    return Counts(dispatched.operators, dispatched.peak, operations)


#: Torch's own counter does not know it.
_CPU_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


def _operations_of_attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """Of shapes [b, h, n, d]."""
    return sdpa_flop_count(query, key, value)


class _Dispatched(TorchDispatchMode):
    """Counts operators, and the bytes of the tensors that they make and that are alive together."""

    def __init__(self):
        super().__init__()
        self.operators = self.peak = self._held = 0
        self._alive: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if not func.is_view:
            self.operators += 1
            for leaf in tree_leaves(out):
                if isinstance(leaf, torch.Tensor):
                    self._hold(leaf.untyped_storage())
        return out

    def _hold(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata not in self._alive:
            self._alive.add(storage._cdata)
            self._held += storage.nbytes()
            self.peak = max(self.peak, self._held)
            weakref.finalize(storage, self._release, storage._cdata, storage.nbytes())

    def _release(self, storage: int, size: int) -> None:
        self._alive.discard(storage)
        self._held -= size


def _kernels(function: Function) -> int:
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        function()
        _wait()
    moves = ("Memcpy", "Memset")
    events = [event for event in profiler.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    return sum(not event.name.startswith(moves) for event in events)


def _cuda_peak(function: Function) -> int:
    _wait()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    function()
    _wait()
    return torch.cuda.max_memory_allocated() - before


class Synchronisations:
    """A wrapper of the U-Net's call that counts how often it makes the host wait for the CUDA device."""

    def __init__(self):
        self.count = 0

    def __call__(self, executor, *args, **kwargs):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                return executor(*args, **kwargs)
            finally:
                torch.cuda.set_sync_debug_mode("default")
                self.count += sum("synchroniz" in str(warning.message) for warning in caught)
