"""EBCA Trace, and what can be seen in it."""

from __future__ import annotations

from comfy_api.latest import io

from ..comfyui_binding.attach import with_trace
from ..comfyui_binding.trace import Trace
from .inputs import CATEGORY, TraceType


class EBCATrace(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EBCATrace",
            display_name="EBCA Trace",
            category=CATEGORY,
            description="Records the energies of the prompt and the size of its update in every step and layer of the "
            "next run with this model, and on request what each word of the prompt was read by. The picture stays the "
            "same.",
            search_aliases=["energy", "attention map", "heat map", "DAAM", "record", "log"],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="With EBCA's nodes or without them, to compare. One EBCA Trace for each sampler: a trace "
                    "holds the last run alone.",
                ),
                io.Boolean.Input(
                    "attention_maps",
                    default=False,
                    tooltip="Also record where the image reads each token, for EBCA Attention Maps. It takes a little "
                    "time in every layer.",
                ),
            ],
            outputs=[
                io.Model.Output(tooltip="The model, for the sampler."),
                TraceType.Output(display_name="trace", tooltip="For the nodes that plot or save it."),
            ],
        )

    @classmethod
    def execute(cls, model, attention_maps) -> io.NodeOutput:
        trace = Trace(attention_maps)
        return io.NodeOutput(with_trace(model, trace), trace)


NODES = [EBCATrace]
