"""Energies and update sizes of a trace, or of two to be compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from PIL import ImageDraw
from torch import Tensor

from ..comfyui_binding.trace import QUANTITIES, TraceRecord
from .canvas import COLOURS, INK, Colour, as_tensor, fitting_font, font, paper
from .lines import Curve, Panel, line

WIDTH, HEIGHT, HEAD = 440, 250, 40
TEXT = 22


def energy_plot(records: Sequence[TraceRecord]) -> Tensor:
    """IMAGE [1, height, width, 3]: a row for each quantity, over the steps and over the layers.

    One trace, or two: the second is dashed, and where both have the same steps and layers there are columns for what
    the first has more than the second. Over the steps are means of the layers, over the layers means of the steps.
    """
    roles = list(dict.fromkeys(role for record in records for role in record.roles))
    colours = {role: COLOURS[number % len(COLOURS)] for number, role in enumerate(roles)}
    rows = [_panels(quantity, records, colours) for quantity in range(len(QUANTITIES))]
    head = HEAD * (len(records) + 1) + 8
    sheet, pen = paper(len(rows[0]) * WIDTH, head + len(rows) * HEIGHT)
    _draw_legend(pen, records, colours, sheet.width)
    for row, panels in enumerate(rows):
        for column, panel in enumerate(panels):
            panel.draw(pen, column * WIDTH, head + row * HEIGHT, WIDTH, HEIGHT)
    return as_tensor(sheet)


def described(record: TraceRecord) -> str:
    """What was asked for in a run, in a line."""
    parts = [f"{_gammas(update)}{_curve(update['schedule'])}" for update in record.settings["updates"]]
    parts += [
        f"edit{number}: {edit['direction']} alpha {edit['alpha']:g}{_curve(edit['alpha_schedule'])}, {_gammas(edit)}"
        f"{_curve(edit['gamma_schedule'])}"
        for number, edit in enumerate(record.settings["edits"])
    ]
    return ("; ".join(parts) or "no update, no edits") + ("" if record.is_complete else " (interrupted)")


def _gammas(strengths: Mapping[str, Any]) -> str:
    return f"gamma_attn {strengths['gamma_attn']:g}, gamma_norm {strengths['gamma_norm']:g}"


def _curve(schedule: Mapping[str, Any] | None) -> str:
    return f" ({schedule['shape']} {schedule['start_factor']:g} to {schedule['end_factor']:g})" if schedule else ""


def _panels(quantity: int, records: Sequence[TraceRecord], colours: Mapping[str, Colour]) -> list[Panel]:
    name, first = QUANTITIES[quantity], records[0]
    steps = [str(step + 1) for step in range(max(len(record.sigmas) for record in records))]
    layers = max((record.layers for record in records), key=len)
    values = [record.values[quantity] for record in records]  # [s, l, r]
    panels = [
        Panel(f"{name} over {axis}s", axis, places, _curves(records, values, mean_over, colours))
        for axis, places, mean_over in (("step", steps, 1), ("layer", layers, 0))
    ]
    if len(records) == 1 or any(len(r.sigmas) != len(steps) or r.layers != layers for r in records):
        return panels
    shared = [role for role in first.roles if role in records[1].roles]
    parts = [
        value[..., [record.roles.index(role) for role in shared]] for record, value in zip(records, values, strict=True)
    ]
    difference = replace(first, roles=shared)
    return panels + [
        Panel(f"{name}: difference", axis, places, _curves([difference], [parts[0] - parts[1]], mean_over, colours))
        for axis, places, mean_over in (("step", steps, 1), ("layer", layers, 0))
    ]


def _curves(
    records: Sequence[TraceRecord], values: Sequence[Tensor], mean_over: int, colours: Mapping[str, Colour]
) -> list[Curve]:
    """A curve for each role of each record; values [s, l, r], of which one dimension is averaged."""
    return [
        Curve(value[..., record.roles.index(role)].nanmean(dim=mean_over).tolist(), colours[role], dashed=number > 0)
        for number, (record, value) in enumerate(zip(records, values, strict=True))
        for role in record.roles
    ]


def _draw_legend(
    pen: ImageDraw.ImageDraw, records: Sequence[TraceRecord], colours: Mapping[str, Colour], width: int
) -> None:
    left = 20
    for role, colour in colours.items():
        pen.line([(left, HEAD // 2), (left + 30, HEAD // 2)], colour, 4)
        pen.text((left + 38, HEAD // 2), role, INK, font(TEXT), anchor="lm")
        left += 70 + int(font(TEXT).getlength(role))
    for number, record in enumerate(records):
        y = HEAD * (number + 1) + HEAD // 2
        line(pen, (20, y), (50, y), Curve([], INK, dashed=number > 0))
        text = described(record)
        pen.text((58, y), text, INK, fitting_font(text, width - 80, TEXT), anchor="lm")
