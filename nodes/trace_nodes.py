"""EBCA Trace, and the nodes that plot, save and load a trace."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from comfy_api.latest import io, ui
from torch import Tensor

from ..comfyui_binding.model_patch import with_trace
from ..comfyui_binding.trace import trace_file
from ..comfyui_binding.trace.recorder import errors_are_logged
from ..comfyui_binding.trace.trace_record import Trace, TraceRecord, WordMaps
from ..comfyui_binding.trace.word_positions import is_prompt_of, maps_of_prompt, positions_of_words
from ..plots.canvas import message_sheet
from ..plots.energy_plot import energy_plot
from ..plots.word_map_sheet import mean_map, word_map_sheet
from .file_inputs import (
    HIDDEN,
    check_file,
    filename_errors,
    graph_metadata,
    next_file,
    path_of,
    prefix_input,
    saved_files,
)
from .input_validation import first_error
from .shared_inputs import LOOK, MODEL_TOOLTIP, TraceType, prompt_inputs

log = logging.getLogger("ebca")

#: Subfolder of the output folder.
FOLDER = "traces"
EXTENSION = ".safetensors"
NOT_DRAWN = "EBCA: a plot could not be drawn; the image is not affected. Please report this."


class EBCATrace(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EBCATrace",
            display_name="EBCA Trace",
            category=LOOK,
            description="Records the energies of the prompt and the size of its update in every step and layer of a "
            "run and, optionally, the attention map of every token. The image stays unchanged.",
            search_aliases=["energy", "attention map", "heat map", "DAAM", "record"],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip=f"{MODEL_TOOLTIP} It can have EBCA nodes or none, for comparison. Use one EBCA Trace per "
                    "sampler: a trace holds the last run only.",
                ),
                io.Boolean.Input(
                    "attention_maps",
                    default=False,
                    tooltip="Also record the attention map of every token, for EBCA Attention Maps. Slightly slower in "
                    "every layer.",
                ),
            ],
            outputs=[
                io.Model.Output(tooltip="Connect to the sampler."),
                TraceType.Output(display_name="trace", tooltip="Connect to the nodes that plot or save it."),
            ],
        )

    @classmethod
    def execute(cls, model, attention_maps) -> io.NodeOutput:
        trace = Trace(attention_maps)
        return io.NodeOutput(with_trace(model, trace), trace)


class EBCAEnergyPlot(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EBCAEnergyPlot",
            display_name="EBCA Energy Plot",
            category=LOOK,
            description="Plots the energies of the prompt and the size of its update, as recorded by EBCA Trace, over "
            "the steps and over the layers. A second trace is drawn into the same plot for comparison.",
            search_aliases=["energy", "plot", "chart", "curve"],
            inputs=[
                TraceType.Input("trace", tooltip="From EBCA Trace or EBCA Load Trace; drawn as solid lines."),
                _latent_input("latent", "trace"),
                TraceType.Input("trace_b", optional=True, tooltip="A second trace, drawn as dashed lines."),
                _latent_input("latent_b", "trace_b"),
            ],
            outputs=[io.Image.Output(tooltip="The plot.")],
            hidden=HIDDEN,
            is_output_node=True,
        )

    @classmethod
    def execute(cls, trace, latent=None, trace_b=None, latent_b=None) -> io.NodeOutput:
        if trace_b is trace:
            raise ValueError(
                "trace and trace_b are the same trace, which holds the last run only. Use one EBCA Trace per sampler."
            )
        records = [_recorded(trace, latent, "latent")]
        if trace_b is not None:
            records.append(_recorded(trace_b, latent_b, "latent_b"))
        image = drawn(energy_plot, records)
        return io.NodeOutput(image, ui=ui.PreviewImage(image, cls=cls))


class EBCAAttentionMaps(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EBCAAttentionMaps",
            display_name="EBCA Attention Maps",
            category=LOOK,
            description="Shows the image region that attends to each word of the prompt, one tile per word, from cold "
            "to hot: the mean of the attention maps over layers, heads and steps.",
            search_aliases=["energy", "attention map", "heat map", "DAAM", "words"],
            inputs=[
                TraceType.Input("trace", tooltip="From an EBCA Trace with attention_maps enabled."),
                io.Image.Input("image", tooltip="The decoded image of the traced run."),
                *prompt_inputs(),
                io.String.Input(
                    "words",
                    multiline=True,
                    default="",
                    placeholder="lion, crown",
                    tooltip="Words and phrases of the prompt, separated by commas or line breaks. Empty: all words.",
                ),
                io.Latent.Input(
                    "latent",
                    optional=True,
                    tooltip="The output of the sampler that ran with trace. If connected, the node checks that the "
                    "trace belongs to this image.",
                ),
            ],
            outputs=[io.Image.Output(tooltip="One sheet of tiles per image.")],
            hidden=HIDDEN,
            is_output_node=True,
        )

    @classmethod
    def execute(cls, trace, image, clip, text, words, latent=None) -> io.NodeOutput:
        positions, prompt = positions_of_words(clip, text, words)
        record = trace.recorded() if latent is None else trace.recorded_with(latent["samples"])
        maps = maps_of_prompt(record, prompt, image.shape[0])
        warn_of_other_text("EBCA Attention Maps", record, clip, text)
        sheet = drawn(_sheets, image, maps, positions)
        return io.NodeOutput(sheet, ui=ui.PreviewImage(sheet, cls=cls))


def _sheets(images: Tensor, maps: WordMaps, positions: Mapping[str, Sequence[int]]) -> Tensor:
    """One sheet for each image, a tile for each word. positions: of a word's tokens."""
    sheets = [
        word_map_sheet(
            picture,
            {
                word: mean_map([grid[number] for grid in maps.by_grid], maps.weights, places)
                for word, places in positions.items()
            },
        )
        for number, picture in enumerate(images)
    ]
    return torch.cat(sheets)


class EBCASaveTrace(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EBCASaveTrace",
            display_name="EBCA Save Trace",
            category=LOOK,
            description="Saves a trace with the settings of its run as a safetensors file, which EBCA Load Trace or "
            "any other program can read.",
            search_aliases=["save energies", "export trace"],
            inputs=[
                TraceType.Input("trace", tooltip="From EBCA Trace."),
                _latent_input("latent", "trace"),
                prefix_input("trace", FOLDER),
            ],
            outputs=[],
            hidden=HIDDEN,
            is_output_node=True,
        )

    @classmethod
    def execute(cls, trace, filename_prefix, latent=None) -> io.NodeOutput:
        record = _recorded(trace, latent, "latent")
        with filename_errors(filename_prefix):
            path, saved = next_file(FOLDER, filename_prefix, EXTENSION)
        with errors_are_logged("EBCA Save Trace: the trace was not saved; the image is not affected."):
            trace_file.save(path, record, graph_metadata(cls.hidden))
            return io.NodeOutput(ui={"files": [saved]})
        return io.NodeOutput(ui={"files": []})


class EBCALoadTrace(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EBCALoadTrace",
            display_name="EBCA Load Trace",
            category=LOOK,
            description="Loads a file of EBCA Save Trace, to plot it again or together with another trace.",
            search_aliases=["load energies", "import trace"],
            inputs=[
                io.Combo.Input(
                    "file",
                    options=saved_files(FOLDER, EXTENSION),
                    tooltip="A file of EBCA Save Trace, or one in the input folder. Press R to refresh the list.",
                )
            ],
            outputs=[TraceType.Output(display_name="trace", tooltip="Connect to the nodes that plot it.")],
        )

    @classmethod
    def validate_inputs(cls, file=None):
        return first_error(cls, {"file": file}, (partial(check_file, folder=FOLDER, extension=EXTENSION), "file"))

    @classmethod
    def execute(cls, file) -> io.NodeOutput:
        record = trace_file.load(path_of(file))
        return io.NodeOutput(Trace(bool(record.maps), record, is_from_file=True))

    @classmethod
    def fingerprint_inputs(cls, file, **kwargs) -> float:
        return path_of(file).stat().st_mtime


def _latent_input(name: str, trace: str) -> io.Latent.Input:
    return io.Latent.Input(
        name,
        optional=True,
        tooltip=f"The output of the sampler that runs with {trace}. Connect it so that this node runs after sampling; "
        "not needed for a trace from a file.",
    )


def _recorded(trace: Trace, latent, name: str):
    """The record of a trace. Raises ValueError for an empty one, and if this node may have run before the sampler."""
    if latent is None and not trace.is_from_file:
        raise ValueError(
            f"{name} is not connected, so this node does not wait for the sampler that runs with the trace. Connect "
            f"the output of that sampler to {name}."
        )
    return trace.recorded() if trace.is_from_file else trace.recorded_with(latent["samples"])


def warn_of_other_text(node: str, record: TraceRecord, clip, text: str) -> None:
    """Log that the text is not the prompt of the recorded run, where it is not."""
    with errors_are_logged():
        if not is_prompt_of(record, clip, text):
            log.warning(
                "%s: the positive prompt of the sampler is not the encoded text of this node, so the maps can belong "
                "to other words. Connect one text to both, unless nodes in between change the prompt.",
                node,
            )


def drawn(draw: Callable[..., Tensor], *arguments: Any) -> Tensor:
    """A drawing, or a sheet that says that there is none: an error here must not stop the nodes that save the image."""
    with errors_are_logged(NOT_DRAWN):
        return draw(*arguments)
    return message_sheet("This could not be drawn. The log has the reason.")


NODES = [EBCATrace, EBCAEnergyPlot, EBCAAttentionMaps, EBCASaveTrace, EBCALoadTrace]
