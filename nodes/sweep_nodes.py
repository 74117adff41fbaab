"""EBCA Sweep and EBCA Sweep Grid: one run for each pair of settings, in one labelled grid.

ComfyUI repeats the nodes between the two: it runs a node once for each value of a list.
"""

from __future__ import annotations

import math
import re
from dataclasses import asdict
from types import SimpleNamespace

from comfy_api.latest import io, ui

from ..plots.sweep_grid import Sweep, sweep_grid
from .file_inputs import HIDDEN, filename_errors, prefix_input
from .input_validation import first_error
from .shared_inputs import LOOK

SweepType = io.Custom("EBCA_SWEEP")
#: Subfolder of the output folder.
FOLDER = "sweeps"


class EBCASweep(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EBCASweep",
            display_name="EBCA Sweep",
            category=LOOK,
            description="Runs every pair of values of two settings. Connect x and y to two inputs, for example "
            "gamma_attn and gamma_norm of EBCA Context Update or alpha of EBCA Edit Context, and the decoded images to "
            "EBCA Sweep Grid. ComfyUI runs the nodes in between once for each pair.",
            search_aliases=["energy", "xy plot", "grid", "parameter search", "compare settings"],
            inputs=[
                _name_input("x_name", "gamma_attn", "columns"),
                _values_input("x_values", "0, 0.005, 0.01, 0.02", "x"),
                _name_input("y_name", "gamma_norm", "rows"),
                _values_input("y_values", "0, 0.01, 0.02, 0.04", "y", " Empty: a single row; leave y unconnected."),
            ],
            outputs=[
                io.Float.Output(display_name="x", is_output_list=True, tooltip="One value for each run."),
                io.Float.Output(display_name="y", is_output_list=True, tooltip="One value for each run."),
                SweepType.Output(display_name="sweep", tooltip="Connect to EBCA Sweep Grid."),
            ],
        )

    @classmethod
    def validate_inputs(cls, x_values=None, y_values=None):
        return first_error(cls, dict(x_values=x_values, y_values=y_values), (_sweep, "x_values", "y_values"))

    @classmethod
    def execute(cls, x_name, x_values, y_name, y_values) -> io.NodeOutput:
        sweep = _sweep(x_values, y_values, x_name, y_name)
        return io.NodeOutput(*(list(values) for values in zip(*sweep.pairs)), sweep)


class EBCASweepGrid(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EBCASweepGrid",
            display_name="EBCA Sweep Grid",
            category=LOOK,
            description="Arranges the images of an EBCA Sweep in one labelled grid and saves it as a PNG with the "
            "workflow and, under ebca_sweep, the settings.",
            search_aliases=["xy plot", "grid", "contact sheet", "image grid"],
            inputs=[
                io.Image.Input("images", tooltip="The decoded images, one for each pair of the sweep."),
                SweepType.Input("sweep", tooltip="From EBCA Sweep."),
                prefix_input("sweep", FOLDER),
            ],
            outputs=[io.Image.Output(tooltip="The grid; for a batch of images, one grid for each.")],
            hidden=HIDDEN,
            is_input_list=True,
            is_output_node=True,
        )

    @classmethod
    def execute(cls, images, sweep, filename_prefix) -> io.NodeOutput:
        (sweep,), (prefix,) = sweep, filename_prefix
        if len(images) != len(sweep.pairs):
            raise ValueError(
                f"The sweep has {len(sweep.pairs)} pairs, but {len(images)} images arrived. Connect x and y of EBCA "
                "Sweep to settings that the sampler's model depends on, and VAE Decode to images."
            )
        if len({image.shape for image in images}) > 1:
            raise ValueError(
                f"The images have different shapes: {sorted({tuple(image.shape) for image in images})}. Sweep settings "
                "that do not change the size of the image."
            )
        grid = sweep_grid(images, sweep)
        with filename_errors(prefix):
            saved = ui.ImageSaveHelper.get_save_images_ui(grid, f"{FOLDER}/{prefix}", cls=_with_settings(cls, sweep))
        return io.NodeOutput(grid, ui=saved)


def _with_settings(cls: type, sweep: Sweep) -> SimpleNamespace:
    """A stand-in for the node, whose hidden inputs ComfyUI's helper saves as metadata, with the sweep added."""
    hidden = cls.hidden
    extra = {**((hidden and hidden.extra_pnginfo) or {}), "ebca_sweep": asdict(sweep)}
    return SimpleNamespace(hidden=SimpleNamespace(prompt=hidden and hidden.prompt, extra_pnginfo=extra))


def _sweep(x_values: str, y_values: str, x_name: str = "", y_name: str = "") -> Sweep:
    """The sweep of two lists of numbers. Raises ValueError for a list that cannot be read, and for too many pairs."""
    sweep = Sweep(x_name, _numbers("x_values", x_values), y_name, _numbers("y_values", y_values))
    if not sweep.x_values:
        raise ValueError("x_values is empty. Enter at least one number, for example 0, 0.01, 0.02.")
    return sweep


def _numbers(name: str, text: str) -> list[float]:
    parts = [part for part in re.split(r"[,;\s]+", text) if part]
    try:
        numbers = [float(part) for part in parts]
    except ValueError:
        numbers = [math.nan]
    if not all(math.isfinite(number) for number in numbers):
        raise ValueError(f"{name} is not a list of numbers: {text!r}. Separate them by commas: 0, 0.01, 0.02.")
    return numbers


def _name_input(name: str, default: str, labelled: str) -> io.String.Input:
    return io.String.Input(name, default=default, tooltip=f"Label of the {labelled} of the grid.")


def _values_input(name: str, default: str, output: str, advice: str = "") -> io.String.Input:
    return io.String.Input(name, default=default, tooltip=f"Comma-separated numbers for the output {output}.{advice}")


NODES = [EBCASweep, EBCASweepGrid]
