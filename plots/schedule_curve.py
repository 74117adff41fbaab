"""The curve of a schedule."""

from __future__ import annotations

from torch import Tensor

from ..ebca_core import Schedule
from .canvas import COLOURS, as_tensor, paper
from .line_chart import Curve, Panel

WIDTH, HEIGHT, PLACES = 560, 320, 101


def schedule_curve(schedule: Schedule) -> Tensor:
    """IMAGE [1, height, width, 3]: the factor over the noise schedule."""
    percents = [place / (PLACES - 1) for place in range(PLACES)]
    values = [schedule.factor(percent) for percent in percents]
    panel = Panel(
        str(schedule),
        "share of the noise schedule: 0 pure noise, 1 the image",
        [f"{percent:g}" for percent in percents],
        [Curve("factor", values, COLOURS[0])],
        from_zero=True,
    )
    sheet, pen = paper(WIDTH, HEIGHT)
    panel.draw(pen, 0, 0, WIDTH, HEIGHT)
    return as_tensor(sheet)
