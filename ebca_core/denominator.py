"""The denominator of the composition, 1 + sum_i w_i, over a whole run: checked before the run starts.

The composition itself is `energy.mix_contexts`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from .schedule import Schedule, Window

#: Between 0 and 1, where a sum of curves may have its least value.
PERCENTS = 100


def smallest_denominator(
    weights: Sequence[float],
    windows: Sequence[Window],
    masks: Sequence[Tensor | None],
    schedules: Sequence[Schedule | None],
) -> float:
    """The least value that 1 + sum_i w_i m_i can take over the run and the image, for a check before it starts.

    weights: signed; windows: when each is on; masks [b, height, width] in [0, 1], None for everywhere; schedules:
    factors of the weights, None for 1, looked at in PERCENTS places. Exact for masks of one shape; of masks that differ
    in shape the worst overlap is assumed.
    """
    percents = {percent for window in windows for percent in (window.start_percent, window.end_percent)}
    if any(schedules):
        percents |= {place / PERCENTS for place in range(PERCENTS + 1)}
    moments = {_weights_at(percent, weights, windows, schedules) for percent in percents}
    least = math.inf
    for moment in sorted(moments, key=_least_without_masks):
        if _least_without_masks(moment) >= least:  # as do all that follow
            break
        least = min(least, _least_at(moment, masks))
    return least


def _weights_at(
    percent: float, weights: Sequence[float], windows: Sequence[Window], schedules: Sequence[Schedule | None]
) -> tuple[float, ...]:
    """The weights in force at a share of the noise schedule; 0 for those that are off."""
    return tuple(
        weight * (schedule.factor(percent) if schedule else 1.0) * window.covers(percent)
        for weight, window, schedule in zip(weights, windows, schedules, strict=True)
    )


def _least_without_masks(weights: Sequence[float]) -> float:
    """A bound: no mask can take more away than all that remove, with nothing that adds."""
    return 1 + sum(min(weight, 0.0) for weight in weights)


def _least_at(weights: Sequence[float], masks: Sequence[Tensor | None]) -> float:
    """The least value of the denominator over the image."""
    on = [(weight, mask) for weight, mask in zip(weights, masks, strict=True) if weight != 0]
    whole = 1 + sum(weight for weight, mask in on if mask is None)
    masked = [(weight, mask) for weight, mask in on if mask is not None]
    if len({mask.shape for _, mask in masked}) == 1:
        return whole + float(sum(weight * mask for weight, mask in masked).min())
    return whole + sum(min(weight, 0.0) for weight, _ in masked)
