"""What EBCA Trace records: the one thing that outlives a sampling run, so that it can be plotted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import comfy.utils
import torch
from torch import Tensor

from ..shared_on_deepcopy import SharedOnDeepcopy

#: The quantities of a record, in the order of its values.
QUANTITIES = ("E(K|Q)", "E(K)", "E(K|Q) + E(K)", "update size")
#: Values in a fingerprint.
SAMPLES = 256


def fingerprint(tensor: Tensor) -> Tensor:
    """Some values of a tensor, evenly spread over it, in float32: enough to know it again."""
    flat = tensor.detach().flatten()
    return flat[:: max(1, flat.numel() // SAMPLES)][:SAMPLES].to(torch.float32, copy=True)


def matches_fingerprint(samples: Tensor, tensor: Tensor) -> bool:
    """Whether a tensor is the one that samples were taken of, up to what half precision rounds away."""
    others = fingerprint(tensor).cpu()
    if samples.shape != others.shape or not torch.equal(samples.isfinite(), others.isfinite()):
        return False
    samples, others = samples.nan_to_num(0, 0, 0), others.nan_to_num(0, 0, 0)  # an image that broke up can be traced
    return bool((samples - others).norm() <= 0.01 * samples.norm())


@dataclass(frozen=True, eq=False)
class WordMaps:
    """Where a positive prompt's tokens were read: [b, t, rows, columns] for each grid that layers have, coarsest first,
    means over these layers, their heads and the steps. Maps of fine grids are pooled. weights: how many maps, one a
    layer and step, each of them stands for."""

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

    Energies are sums over heads and tokens, means over images and over all prompts of a role; the update size is the
    norm of a layer's change of a context by the norm of that context as it was encoded. NaN where there is nothing: in
    steps that did not run, in the last layer, whose update of the prompts nothing would read, for a prompt of norm 0.

    settings: what the EBCA nodes asked for, as JSON knows it. sigmas: of the steps. maps: of each positive prompt.
    """

    values: Tensor
    layers: Sequence[str]
    roles: Sequence[str]
    sigmas: Sequence[float]
    settings: Mapping[str, Any]
    is_complete: bool
    maps: Sequence[WordMaps] = ()
    #: Samples of the latent that came out, and of the positive prompts: by them a record is known again.
    result: Tensor | None = None
    prompts: Sequence[Tensor] = ()


def joined(records: Sequence[TraceRecord]) -> TraceRecord:
    """The record of a batch whose images were sampled one after another, with the same settings."""
    first, maps = records[0], []
    for of_prompt in zip(*(record.maps for record in records), strict=True):
        grids = zip(*(one.by_grid for one in of_prompt), strict=True)
        maps.append(WordMaps([torch.cat(grid) for grid in grids], of_prompt[0].weights))
    return replace(
        first,
        values=torch.stack([record.values for record in records]).nanmean(dim=0),
        is_complete=all(record.is_complete for record in records),
        maps=tuple(maps),
    )


@dataclass(eq=False)
class Trace(SharedOnDeepcopy):
    """An EBCA_TRACE: the record of the last run with the model of one EBCA Trace, or the one that was in a file."""

    wants_maps: bool = False
    record: TraceRecord | None = field(default=None, repr=False)
    is_from_file: bool = False

    def set_result(self, latent: Tensor) -> None:
        """Remember the latent [b, c, height, width] of the run just recorded."""
        if self.record is not None:
            self.record = replace(self.record, result=fingerprint(latent).cpu())

    def recorded(self) -> TraceRecord:
        """The record. Raises ValueError if there is none."""
        if self.record is None:
            raise ValueError(
                "The trace is empty: no sampler has run with the model of EBCA Trace, or ComfyUI reused an earlier "
                "result of the sampler, or the log says why there is no record. Connect the model of EBCA Trace to "
                "the sampler, and the sampler's latent to this node. If they are connected, change the seed."
            )
        if not self.record.roles:
            raise ValueError(
                "The trace has no steps: the run was interrupted before the first, or another node bypasses EBCA in "
                "the model's cross-attention (the log says which). Run it again, or remove that node."
            )
        return self.record

    def recorded_with(self, latent: Tensor) -> TraceRecord:
        """The record of the run that this latent came from. Raises ValueError if it is another's, or there is none.

        latent: one of several kinds of data, as video with sound, is packed as in the run.
        """
        record = self.recorded()
        if latent.is_nested:
            latent, _ = comfy.utils.pack_latents(latent.unbind())
        if record.result is not None and not matches_fingerprint(record.result, latent):
            raise ValueError(
                "The latent is from another run than the trace. The trace holds the last run with the model of its "
                "EBCA Trace; this latent is from another sampler, from an earlier run that ComfyUI reused, or a "
                "denoised_output. Use one EBCA Trace for each sampler; for an earlier image, change the seed and run "
                "it again."
            )
        return record
