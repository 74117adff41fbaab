"""Time, memory, launches and host synchronisations of a function."""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

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


def peak_bytes(function: Function) -> int:
    """The most memory that one call holds at any time, beyond what was held before it."""
    if torch.cuda.is_available():
        _wait()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        function()
        _wait()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


class _Counter(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


def launches(function: Function) -> int:
    """CUDA: kernels that one call launches. Elsewhere: operators that it dispatches, views left out."""
    if not torch.cuda.is_available():
        with _Counter() as counter:
            function()
        return counter.count
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        function()
        _wait()
    moves = ("Memcpy", "Memset")
    events = [event for event in profiler.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    return sum(not event.name.startswith(moves) for event in events)


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
