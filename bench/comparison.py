"""One setting: every case against the plain model. Needs a booted host."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import torch
from comfy.patcher_extension import WrappersMP

import random_models
from denoiser_calls import CASES, PLAIN, Case, DenoiserCall, patched
from measures import Counts, Ratio, Seconds, Synchronisations, counts, ratio, seconds
from settings import Setting


@dataclass(frozen=True)
class Row:
    """One case against the plain model.

    fastest: ratio of the fastest calls' CPU times. counted: ratio of the floating-point operations. memory: ratio of
    the peaks, weights included; activations: of what a call holds beyond the weights, at its peak. launches: CUDA
    kernels, or operators on the CPU; synchronisations: of the host with a CUDA device, in a run's first call of the
    U-Net and in a later one.
    """

    case: str
    wall: Ratio
    cpu: Ratio
    fastest: float
    counted: float
    memory: float
    activations: float
    launches: int
    plain_launches: int
    synchronisations: tuple[int, int] | None
    time_limit: float | None
    memory_limit: float | None

    @property
    def held(self) -> bool:
        """Whether everything that is promised for the case was found."""
        time_held = self.time_limit is None or self.wall.median <= self.time_limit
        memory_held = self.memory_limit is None or self.memory <= self.memory_limit
        return time_held and memory_held and not any(self.synchronisations or ())

    def __str__(self) -> str:
        waits = "-" if self.synchronisations is None else "{}, {}".format(*self.synchronisations)
        verdict = "" if self.time_limit is None else f"{'within' if self.held else 'OVER'} {self.time_limit:.2f}"
        added = self.launches - self.plain_launches
        return (
            f"{self.case:<18} {self.wall!s:<22} {self.cpu!s:<22} {self.fastest:<8.3f} {self.counted:<8.3f} "
            f"{self.memory:<7.3f} {self.activations:<7.3f} {self.launches:>5} ({added:+5d})  "
            f"{waits:<6} {verdict}"
        )


HEADER = (
    f"{'case':<18} {'time':<22} {'CPU time':<22} {'fastest':<8} {'counted':<8} {'memory':<7} "
    f"{'beyond':<7} {'launches':<14} {'waits':<6} "
    "\n(ratios to the plain model: median and quartiles of pairs, and of the fastest CPU times; counted: "
    "floating-point operations; memory at its peak, with and without the weights)"
)


@dataclass(eq=False)
class _Subject:
    """One case's call and what was measured of it. The counter outlives the call, which holds it as a wrapper."""

    case: Case
    call: DenoiserCall
    synchronisations: Synchronisations

    def __enter__(self) -> DenoiserCall:
        self.call.begin()
        return self.call

    def __exit__(self, *_: object) -> None:
        self.call.end()


def compare(setting: Setting, nodes: dict[str, type], rounds: int, case_text: str = "") -> list[Row]:
    """Measure every case whose name holds case_text, printing a row for each."""
    geometry = getattr(random_models, setting.geometry)
    model = geometry.model(setting.dtype)
    weights = model.model_size()
    cases = [case for case in CASES if case_text in case.name and case.name in (setting.cases or {case.name})]
    plain, *subjects = (_subject(case, model, geometry, nodes, setting.shape) for case in (PLAIN, *cases))
    found = {subject: _counts(subject) for subject in (plain, *subjects)}
    times = _take_turns(plain, subjects, rounds, setting.repeats)
    fastest = min(base.wall for _, base in times[subjects[0]])
    print(f"plain: {fastest:.3f} s, {found[plain][0].peak / 2**20:.0f} MiB beyond the weights")
    print(HEADER)
    rows = [_row(setting, subject, times[subject], found[subject], found[plain][0], weights) for subject in subjects]
    for row in rows:
        print(row, flush=True)
    del plain, subjects
    comfy.model_management.unload_all_models()
    return rows


def _subject(
    case: Case, model: Any, geometry: random_models.Geometry, nodes: dict[str, type], shape: Sequence[int]
) -> _Subject:
    model, counter = model.clone(), Synchronisations()
    if torch.cuda.is_available():
        model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "bench", counter)  # outermost, being the first
    return _Subject(case, DenoiserCall(patched(case, model, geometry, nodes), geometry, shape), counter)


def _counts(subject: _Subject) -> tuple[Counts, tuple[int, int] | None]:
    """Launches and peak; synchronisations of the first and of a later call. Warms up, too."""
    with subject as call:
        out = call()
        first = subject.synchronisations.count
        call()
        waits = (first, subject.synchronisations.count - first) if torch.cuda.is_available() else None
        call.options["transformer_options"].get("wrappers", {}).get(WrappersMP.DIFFUSION_MODEL, {}).pop("bench", None)
        found = counts(call)
    if not torch.isfinite(out).all():
        raise RuntimeError(f"Expected finite images, but the case '{subject.case.name}' gave others.")
    return found, waits


def _take_turns(
    plain: _Subject, subjects: Sequence[_Subject], rounds: int, repeats: int
) -> dict[_Subject, list[tuple[Seconds, Seconds]]]:
    """Each case next to the plain model, before it in every other round: (EBCA, plain) pairs."""
    times: dict[_Subject, list[tuple[Seconds, Seconds]]] = {subject: [] for subject in subjects}
    for turn in range(rounds):
        for subject in subjects:
            order = (subject, plain) if turn % 2 else (plain, subject)
            found = {}
            for one in order:
                with one as call:
                    found[one] = seconds(call, repeats)
            times[subject].append((found[subject], found[plain]))
    return times


def _row(setting: Setting, subject: _Subject, times: list, found: tuple, plain: Counts, weights: int) -> Row:
    counted, waits = found
    case = subject.case
    return Row(
        case=case.name,
        wall=ratio([ebca.wall for ebca, _ in times], [base.wall for _, base in times]),
        cpu=ratio([ebca.cpu for ebca, _ in times], [base.cpu for _, base in times]),
        fastest=min(ebca.cpu for ebca, _ in times) / min(base.cpu for _, base in times),
        counted=counted.operations / plain.operations,
        memory=(weights + counted.peak) / (weights + plain.peak),
        activations=counted.peak / plain.peak,
        launches=counted.launches,
        plain_launches=plain.launches,
        synchronisations=waits,
        time_limit=_time_limit(setting, case),
        memory_limit=setting.memory_limit,
    )


def _time_limit(setting: Setting, case: Case) -> float | None:
    if setting.cases is not None:
        return setting.cases[case.name]
    return None if case.limit is None else setting.time_limit or case.limit
