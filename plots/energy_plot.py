"""Energies and update sizes of one trace, or of two for comparison."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from PIL import ImageDraw
from torch import Tensor

from ..comfyui_binding.trace.trace_record import QUANTITIES, TraceRecord
from ..ebca_core import Schedule, Window
from .canvas import COLOURS, INK, Colour, as_tensor, fitting_font, font, paper
from .line_chart import Curve, Panel, line

WIDTH, HEIGHT, HEAD = 440, 250, 40
TEXT = 22
UPDATE_SIZE = QUANTITIES.index("update size")


def energy_plot(records: Sequence[TraceRecord]) -> Tensor:
    """IMAGE [1, height, width, 3]: a row for each quantity, over the steps and over the layers.

    A second trace is drawn dashed; if both have the same steps and layers, two columns show the first minus the second.
    Curves over the steps are means over the layers, and curves over the layers means over the steps.
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


def legend(record: TraceRecord) -> str:
    """The settings of a run in one line: strengths, and everything that differs from the defaults."""
    parts = [_update_label(update) for update in record.settings["updates"]]
    parts += [f"edit{number}: {_edit_label(edit)}" for number, edit in enumerate(record.settings["edits"])]
    return ("; ".join(parts) or "no update, no edits") + ("" if record.is_complete else " (interrupted)")


def _update_label(update: Mapping[str, Any]) -> str:
    extras = [
        "positive only" if update["apply_to"] == "positive" else "",
        f"layers {' '.join(update['layers'])}" if update["layers"] else "",
        "mask" if update["has_mask"] else "",
        "token weights" if update["token_weights"] else "",
    ]
    gammas = _strength(update, "gammas", "window", "schedule")
    return ", ".join([gammas, *(extra for extra in extras if extra)])


def _edit_label(edit: Mapping[str, Any]) -> str:
    alpha = _strength(edit, "alpha", "window", "alpha_schedule")
    gammas = _strength(edit, "gammas", "gamma_window", "gamma_schedule")
    return f"{edit['direction']} {alpha}, {gammas}" + (", mask" if edit["has_mask"] else "")


def _strength(settings: Mapping[str, Any], name: str, window: str, schedule: str) -> str:
    """ "alpha 0.7 from 0.3 to 1, linear 1 to 0.1"."""
    values = (
        f"gamma_attn {settings['gamma_attn']:g} gamma_norm {settings['gamma_norm']:g}"
        if name == "gammas"
        else f"{name} {settings[name]:g}"
    )
    start, end = settings[window]["start_percent"], settings[window]["end_percent"]
    part = "" if (start, end) == (0, 1) else f" from {start:g} to {end:g}"
    curve = settings[schedule]
    return values + part + (f" ({Schedule(**{**curve, 'window': Window(**curve['window'])})})" if curve else "")


def _panels(quantity: int, records: Sequence[TraceRecord], colours: Mapping[str, Colour]) -> list[Panel]:
    name, first = QUANTITIES[quantity], records[0]
    steps = [str(step + 1) for step in range(max(len(record.sigmas) for record in records))]
    layers = list(dict.fromkeys(layer for record in records for layer in record.layers))
    axes = {"step": steps, "layer": layers}

    def panels(title: str, shown: Sequence[tuple[TraceRecord, Tensor]]) -> list[Panel]:
        return [
            Panel(
                title.format(axis=axis),
                axis,
                places,
                [
                    Curve(
                        role, _means(values[..., record.roles.index(role)], record, axis, places), colours[role], n > 0
                    )
                    for n, (record, values) in enumerate(shown)
                    for role in record.roles
                ],
                from_zero=quantity == UPDATE_SIZE,
            )
            for axis, places in axes.items()
        ]

    found = panels(f"{name} over {{axis}}s", [(record, record.values[quantity]) for record in records])
    if len(records) == 2 and first.layers == records[1].layers and len(first.sigmas) == len(records[1].sigmas):
        shared = [role for role in first.roles if role in records[1].roles]
        both = [record.values[quantity][..., [record.roles.index(role) for role in shared]] for record in records]
        found += panels(f"{name}: difference", [(replace(first, roles=shared), both[0] - both[1])])
    return found


def _means(values: Tensor, record: TraceRecord, axis: str, places: Sequence[str]) -> list[float]:
    """values [s, l] -> over the steps, means over the layers that ran in all steps; over the layers, over the steps."""
    if axis == "layer":
        means = dict(zip(record.layers, values.nanmean(dim=0).tolist(), strict=True))
        return [means.get(place, math.nan) for place in places]
    ran = ~values.isnan()
    always = ran[ran.any(dim=1)].all(dim=0)  # or the mean would depend on which layers ran
    return values[:, always if always.any() else slice(None)].nanmean(dim=1).tolist()


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
        line(pen, [(20, y), (55, y)], INK, dashed=number > 0)
        text = legend(record)
        pen.text((62, y), text, INK, fitting_font(text, width - 82, TEXT), anchor="lm")
