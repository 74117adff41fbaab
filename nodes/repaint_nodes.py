"""EBCA RePaint Sampler: inpainting with a model that was not made for it."""

from __future__ import annotations

from comfy_api.latest import io

from ..comfyui_binding.samplers.repaint_sampler import RePaintSampler
from .shared_inputs import CATEGORY


class EBCARePaintSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EBCARePaintSampler",
            display_name="EBCA RePaint Sampler",
            category=CATEGORY,
            description="Inpaints with a model that is no inpainting model: the run goes back up its noise again and "
            "again, so that what is painted and what was there grow together. For SamplerCustomAdvanced, with a noise "
            "mask on the latent.",
            search_aliases=["repaint", "inpainting sampler", "resample", "time travel"],
            inputs=[
                io.Int.Input(
                    "jump_length",
                    default=10,
                    min=1,
                    max=1000,
                    tooltip="How many steps a jump goes back; less than the run has. Typical: a fifth of them.",
                ),
                io.Int.Input(
                    "jump_n_sample",
                    default=10,
                    min=1,
                    max=100,
                    tooltip="How often each stretch is sampled. 50 steps with 10 and 10 call the model 410 times. 1 is "
                    "plain inpainting, with fresh noise for the known region at every step.",
                ),
                io.Float.Input(
                    "eta",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Noise of each step down: 0 none (DDIM), 1 as much as in ancestral sampling (DDPM).",
                ),
            ],
            outputs=[io.Sampler.Output(tooltip="For SamplerCustom and SamplerCustomAdvanced.")],
        )

    @classmethod
    def execute(cls, jump_length, jump_n_sample, eta) -> io.NodeOutput:
        return io.NodeOutput(RePaintSampler(jump_length, jump_n_sample, eta))


NODES = [EBCARePaintSampler]
