"""EBCA Sweep and EBCA Sweep Grid: one run for each pair of settings, side by side in one picture.

ComfyUI itself repeats the nodes between the two: it runs a node once for each value of a list.
"""

from __future__ import annotations

import math
import re
from dataclasses import asdict
from types import SimpleNamespace

from comfy_api.latest import io, ui

from ..plots.sweep_grid import Sweep, sweep_grid
from .file_inputs import HIDDEN, prefix_input, refusing_bad_names
from .shared_inputs import CATEGORY

SweepType = io.Custom("EBCA_SWEEP")
#: Of the output folder.
FOLDER = "sweeps"


class EBCASweep(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EBCASweep",
            display_name="EBCA Sweep",
            category=CATEGORY,
            description="Tries every pair of two settings: wire x and y to two inputs, say gamma_attn and gamma_norm "
            "of EBCA Context Update or alpha of EBCA Edit Context, and the decoded images to EBCA Sweep Grid. ComfyUI "
            "runs the nodes between them once for each pair.",
            search_aliases=["energy", "xy plot", "grid", "parameter search", "compare settings"],
            inputs=[
                _name_input("x_name", "gamma_attn", "left to right"),
                _values_input("x_values", "0, 0.005, 0.01, 0.02", "x"),
                _name_input("y_name", "gamma_norm", "top to bottom"),
                _values_input("y_values", "0, 0.01, 0.02, 0.04", "y; empty for a single row, with y not wired"),
            ],
            outputs=[
                io.Float.Output(display_name="x", is_output_list=True, tooltip="One value for each run."),
                io.Float.Output(display_name="y", is_output_list=True, tooltip="One value for each run."),
                SweepType.Output(display_name="sweep", tooltip="For EBCA Sweep Grid."),
            ],
        )

    @classmethod
    def execute(cls, x_name, x_values, y_name, y_values) -> io.NodeOutput:
        sweep = Sweep(x_name, _numbers("x_values", x_values), y_name, _numbers("y_values", y_values))
        if not sweep.x_values:
            raise ValueError("Expected at least one number in x_values, but it is empty. Write numbers like 0, 0.01.")
        return io.NodeOutput(*(list(values) for values in zip(*sweep.pairs)), sweep)


class EBCASweepGrid(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EBCASweepGrid",
            display_name="EBCA Sweep Grid",
            category=CATEGORY,
            description="Puts the images of an EBCA Sweep into one labelled grid and saves it as a PNG that carries "
            "the settings, under ebca_sweep, beside the workflow.",
            search_aliases=["xy plot", "grid", "contact sheet", "image grid"],
            inputs=[
                io.Image.Input("images", tooltip="The decoded images, one for each pair of the sweep."),
                SweepType.Input("sweep", tooltip="From EBCA Sweep."),
                prefix_input("sweep", FOLDER),
            ],
            outputs=[io.Image.Output(tooltip="The grid; of a batch of images, one grid for each.")],
            hidden=HIDDEN,
            is_input_list=True,
            is_output_node=True,
        )

    @classmethod
    def execute(cls, images, sweep, filename_prefix) -> io.NodeOutput:
        (sweep,), (prefix,) = sweep, filename_prefix
        if len(images) != len(sweep.pairs):
            raise ValueError(
                f"Expected {len(sweep.pairs)} images, one for each pair of the sweep, but got {len(images)}. Wire x "
                "and y of EBCA Sweep to the settings that the sampler's model depends on, and the VAE Decode to images."
            )
        if len({image.shape for image in images}) > 1:
            raise ValueError(
                f"Expected images of one size, but got {sorted({tuple(image.shape) for image in images})}. Sweep over "
                "settings that leave the size as it is."
            )
        grid = sweep_grid(images, sweep)
        with refusing_bad_names(prefix):
            saved = ui.ImageSaveHelper.get_save_images_ui(grid, f"{FOLDER}/{prefix}", cls=_with_settings(cls, sweep))
        return io.NodeOutput(grid, ui=saved)


def _with_settings(cls: type, sweep: Sweep) -> SimpleNamespace:
    """What ComfyUI's helper looks at for a file's metadata, with the sweep beside the workflow."""
    hidden = cls.hidden
    extra = {**((hidden and hidden.extra_pnginfo) or {}), "ebca_sweep": asdict(sweep)}
    return SimpleNamespace(hidden=SimpleNamespace(prompt=hidden and hidden.prompt, extra_pnginfo=extra))


def _numbers(name: str, text: str) -> list[float]:
    parts = [part for part in re.split(r"[,;\s]+", text) if part]
    try:
        numbers = [float(part) for part in parts]
    except ValueError:
        numbers = [math.nan]
    if not all(math.isfinite(number) for number in numbers):
        raise ValueError(f"Expected {name} to be numbers between commas, like 0, 0.01, 0.02, but got {text!r}.")
    return numbers


def _name_input(name: str, default: str, direction: str) -> io.String.Input:
    return io.String.Input(name, default=default, tooltip=f"What the values from {direction} are called in the grid.")


def _values_input(name: str, default: str, output: str) -> io.String.Input:
    return io.String.Input(name, default=default, tooltip=f"Numbers between commas, for the output {output}.")


NODES = [EBCASweep, EBCASweepGrid]
