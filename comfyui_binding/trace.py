"""What EBCA Trace records: the one thing that outlives a sampling run, so that it can be plotted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

#: The quantities of a record, in the order of its values.
QUANTITIES = ("E(K|Q)", "E(K)", "E(K|Q) + E(K)", "update size")


@dataclass(frozen=True, eq=False)
class WordMaps:
    """What a positive prompt's tokens were read by: [b, t, rows, columns] for each size of grid, means over the layers
    of that size, their heads and the steps. weights: how many layers each of them stands for."""

    by_grid: Sequence[Tensor]
    weights: Sequence[int]

    @property
    def images(self) -> int:
        return self.by_grid[0].shape[0]

    @property
    def tokens(self) -> int:
        return self.by_grid[0].shape[1]


@dataclass(frozen=True, eq=False)
class TraceRecord:
    """One sampling run. values [q, s, l, r], float32, on the CPU: quantity of QUANTITIES, step, layer, role.

    Energies are sums over heads and tokens, means over images; the update size is the norm of a layer's change of the
    context by the norm of the prompt's context. NaN where nothing was recorded: a step of an interrupted run, a role
    or layer that did not run.

    settings: what the EBCA nodes asked for, as JSON knows it. sigmas: of the steps. maps: of each positive prompt.
    """

    values: Tensor
    layers: Sequence[str]
    roles: Sequence[str]
    sigmas: Sequence[float]
    settings: Mapping[str, Any]
    is_complete: bool
    maps: Sequence[WordMaps] = ()


@dataclass(eq=False)
class Trace:
    """An EBCA_TRACE: the record of the last run with the model of one EBCA Trace, or the one that was in a file."""

    wants_maps: bool = False
    record: TraceRecord | None = field(default=None, repr=False)
    is_from_file: bool = False

    def recorded(self) -> TraceRecord:
        """The record. Raises ValueError if there is none."""
        if self.record is None:
            raise ValueError(
                "Expected the trace of a sampling run, but the trace is empty: no sampler has run with the model of "
                "EBCA Trace, or ComfyUI took the sampler's earlier result and did not run it again. Wire the model of "
                "EBCA Trace to the sampler and the sampler's latent to this node; if they are, change the seed."
            )
        if not self.record.roles:
            raise ValueError(
                "Expected the trace of a sampling run, but none of its steps could be read: it was interrupted before "
                "the first, or another node keeps EBCA from the model's cross-attention (the log says which)."
            )
        return self.record
