"""EBCA RePaint Sampler: inpainting with a model that is not an inpainting model."""

from __future__ import annotations

from comfy_api.latest import io

from ..comfyui_binding.samplers.repaint_sampler import RePaintSampler
from .shared_inputs import PHOTO


class EBCARePaintSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EBCARePaintSampler",
            display_name="EBCA RePaint Sampler",
            category=PHOTO,
            description="Inpaints with a model that is not an inpainting model (RePaint): the latent is repeatedly "
            "re-noised and denoised, so the filled region blends with its surroundings. For SamplerCustomAdvanced, "
            "with a noise mask on the latent.",
            search_aliases=["repaint", "inpainting sampler", "resample", "time travel"],
            inputs=[
                io.Int.Input(
                    "jump_length",
                    default=3,
                    min=1,
                    max=1000,
                    tooltip="Number of steps that a jump re-noises; must be less than the steps of the run. Typical: a "
                    "fifth of them.",
                ),
                io.Int.Input(
                    "jump_n_sample",
                    default=3,
                    min=1,
                    max=100,
                    tooltip="Number of times that each segment is sampled. 50 steps with 10 and 10 take 410 model "
                    "calls. 1 is plain inpainting, with new noise for the known region at every step.",
                ),
                io.Float.Input(
                    "eta",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Noise added in each denoising step: 0 is none (DDIM), 1 as much as in ancestral sampling "
                    "(DDPM).",
                ),
            ],
            outputs=[io.Sampler.Output(tooltip="Connect to SamplerCustom or SamplerCustomAdvanced.")],
        )

    @classmethod
    def execute(cls, jump_length, jump_n_sample, eta) -> io.NodeOutput:
        return io.NodeOutput(RePaintSampler(jump_length, jump_n_sample, eta))


NODES = [EBCARePaintSampler]
