"""EBCA Trace, and what can be seen in it."""

from __future__ import annotations

import logging

import torch
from comfy_api.latest import io, ui

from ..comfyui_binding.model_patch import with_trace
from ..comfyui_binding.trace import trace_file
from ..comfyui_binding.trace.trace_record import Trace
from ..comfyui_binding.trace.word_positions import is_prompt_of, maps_of_prompt, positions_of_words
from ..plots.energy_plot import energy_plot
from ..plots.word_map_sheet import mean_map, word_map_sheet
from .file_inputs import (
    HIDDEN,
    graph_metadata,
    next_file,
    path_of,
    prefix_input,
    refusing_bad_names,
    saved_files,
)
from .shared_inputs import CATEGORY, TraceType, prompt_inputs

log = logging.getLogger("ebca")

#: Of the output folder.
FOLDER = "traces"
EXTENSION = ".safetensors"


class EBCATrace(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EBCATrace",
            display_name="EBCA Trace",
            category=CATEGORY,
            description="Records the energies of the prompt and the size of its update in every step and layer of the "
            "run, and on request where the image reads each word. The picture stays the same.",
            search_aliases=["energy", "attention map", "heat map", "DAAM", "record"],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="With EBCA's nodes or without them, to compare. Use one EBCA Trace for each sampler: a "
                    "trace holds the last run alone.",
                ),
                io.Boolean.Input(
                    "attention_maps",
                    default=False,
                    tooltip="Also record where the image reads each token, for EBCA Attention Maps. It takes a little "
                    "more time in every layer.",
                ),
            ],
            outputs=[
                io.Model.Output(tooltip="The model, for the sampler."),
                TraceType.Output(display_name="trace", tooltip="For the nodes that plot and save it."),
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
            category=CATEGORY,
            description="Draws what EBCA Trace recorded: the energies of the prompt and the size of its update, over "
            "the steps and over the layers. Two traces are drawn over each other, to compare settings.",
            search_aliases=["energy", "plot", "chart", "curve"],
            inputs=[
                TraceType.Input("trace", tooltip="From EBCA Trace or EBCA Load Trace; drawn with full lines."),
                _latent_input("latent", "trace"),
                TraceType.Input("trace_b", optional=True, tooltip="A second trace, drawn with dashes."),
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
                "Expected two traces, but got one twice: it holds the last run alone. Use one EBCA Trace for each "
                "sampler."
            )
        records = [_recorded(trace, latent, "latent")]
        if trace_b is not None:
            records.append(_recorded(trace_b, latent_b, "latent_b"))
        image = energy_plot(records)
        return io.NodeOutput(image, ui=ui.PreviewImage(image, cls=cls))


class EBCAAttentionMaps(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EBCAAttentionMaps",
            display_name="EBCA Attention Maps",
            category=CATEGORY,
            description="Shows where in the image each word of the prompt was read: one tile a word, from cold to hot. "
            "The mean over the layers, their heads and the steps.",
            search_aliases=["energy", "attention map", "heat map", "DAAM", "words"],
            inputs=[
                TraceType.Input("trace", tooltip="From an EBCA Trace with attention_maps on."),
                io.Image.Input("image", tooltip="The decoded result of the run that was traced."),
                *prompt_inputs(),
                io.String.Input(
                    "words",
                    multiline=True,
                    default="",
                    placeholder="lion, crown",
                    tooltip="Words and phrases of the prompt, between commas or one a line. Empty: all of its words.",
                ),
                io.Latent.Input(
                    "latent",
                    optional=True,
                    tooltip="From the sampler that ran with trace: with it the node can tell whether the trace is of "
                    "the picture's run.",
                ),
            ],
            outputs=[io.Image.Output(tooltip="A sheet of tiles for each image.")],
            hidden=HIDDEN,
            is_output_node=True,
        )

    @classmethod
    def execute(cls, trace, image, clip, text, words, latent=None) -> io.NodeOutput:
        positions, tokens = positions_of_words(clip, text, words)
        record = trace.recorded() if latent is None else trace.recorded_with(latent["samples"])
        maps = maps_of_prompt(record, tokens, image.shape[0])
        if not is_prompt_of(record, clip, text):
            log.warning(
                "EBCA Attention Maps: the sampler's positive prompt is not what clip makes of text, so the maps may be "
                "of other words. Wire one text to both, unless nodes in between change the prompt."
            )
        sheets = [
            word_map_sheet(
                picture,
                {
                    word: mean_map([grid[number] for grid in maps.by_grid], maps.weights, places)
                    for word, places in positions.items()
                },
            )
            for number, picture in enumerate(image)
        ]
        sheet = torch.cat(sheets)
        return io.NodeOutput(sheet, ui=ui.PreviewImage(sheet, cls=cls))


class EBCASaveTrace(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EBCASaveTrace",
            display_name="EBCA Save Trace",
            category=CATEGORY,
            description="Saves a trace with the settings of its run as a safetensors file, to be plotted later with "
            "EBCA Load Trace or elsewhere.",
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
        with refusing_bad_names(filename_prefix):
            path, saved = next_file(FOLDER, filename_prefix, EXTENSION)
            trace_file.save(path, record, graph_metadata(cls.hidden))
        return io.NodeOutput(ui={"files": [saved]})


class EBCALoadTrace(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EBCALoadTrace",
            display_name="EBCA Load Trace",
            category=CATEGORY,
            description="Loads what EBCA Save Trace wrote, to plot it again or beside another trace.",
            search_aliases=["load energies", "import trace"],
            inputs=[
                io.Combo.Input(
                    "file",
                    options=saved_files(FOLDER, EXTENSION),
                    tooltip="A file of EBCA Save Trace, or one that was put into the input folder. Press R to see a "
                    "new one.",
                )
            ],
            outputs=[TraceType.Output(display_name="trace", tooltip="For the nodes that plot it.")],
        )

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
        tooltip=f"From the sampler that runs with {trace}, so that this node waits for it. Not needed for a trace from "
        "a file.",
    )


def _recorded(trace: Trace, latent, name: str):
    """A trace's record. Raises ValueError for an empty one, and where this node may have come before the sampler."""
    if latent is None and not trace.is_from_file:
        raise ValueError(
            f"Expected the latent of the sampler that runs with the trace, but {name} is not wired: this node would "
            f"not wait for the run. Wire the sampler's latent to {name}."
        )
    return trace.recorded() if trace.is_from_file else trace.recorded_with(latent["samples"])


NODES = [EBCATrace, EBCAEnergyPlot, EBCAAttentionMaps, EBCASaveTrace, EBCALoadTrace]
