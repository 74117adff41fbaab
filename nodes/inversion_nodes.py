"""EBCA Invert, and saving and loading what it made."""

from __future__ import annotations

import logging
from dataclasses import asdict

import comfy.samplers
from comfy.cli_args import args
from comfy_api.latest import io

from ..comfyui_binding.samplers import inversion_record
from ..comfyui_binding.samplers.inversion_record import Inversion, InversionRecord
from ..comfyui_binding.samplers.inversion_run import (
    InvertedNoise,
    invert,
    inverts_to_noise,
    sampling_sigmas,
    usual_fixed_point_iterations,
)
from ..comfyui_binding.samplers.model_kinds import family_of
from ..ebca_core import NoiseRegularisation
from .file_inputs import (
    HIDDEN,
    graph_metadata,
    next_file,
    path_of,
    prefix_input,
    refusing_bad_names,
    saved_files,
)
from .shared_inputs import CATEGORY

log = logging.getLogger("ebca")

#: Of the output folder.
FOLDER = "inversions"
EXTENSION = ".latent"


def latent_and_noise() -> list:
    return [
        io.Latent.Output(
            display_name="latent",
            tooltip="Where sampling starts. For KSampler (Advanced) with add_noise off, or SamplerCustomAdvanced with "
            "DisableNoise; sampler euler, and the same steps, scheduler and caption.",
        ),
        io.Noise.Output(
            display_name="noise",
            tooltip="The same start for SamplerCustomAdvanced when its latent_image is the picture itself: under a "
            "noise mask on that latent, what is outside it stays exactly as it was.",
        ),
    ]


class EBCAInvert(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EBCAInvert",
            display_name="EBCA Invert",
            category=CATEGORY,
            description="Finds the noise from which a picture comes: sampling from it under the same caption gives the "
            "picture back, and EBCA Compose edits it on the way. It takes a call of the model a step; keep the result "
            "with EBCA Save Inversion.",
            search_aliases=["DDIM inversion", "real image editing", "unsample", "noise regularisation", "energy"],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="SD 1.x, SD 2.x, SDXL or another model that predicts noise or velocity. From before EBCA "
                    "Compose: the edits act on the way back alone.",
                ),
                io.Conditioning.Input(
                    "caption",
                    tooltip="What the picture shows, in plain words. The sampler gets it as positive and as negative "
                    "prompt.",
                ),
                io.Latent.Input("latent", tooltip="The picture, from VAE Encode."),
                io.Int.Input(
                    "steps",
                    default=50,
                    min=1,
                    max=10000,
                    tooltip="As many as the sampler's. More follow the picture more closely. Typical: 50.",
                ),
                io.Combo.Input(
                    "scheduler",
                    options=comfy.samplers.SCHEDULER_NAMES,
                    default="normal",
                    tooltip="The sampler's scheduler.",
                ),
                io.Float.Input(
                    "lambda_auto_corr",
                    default=20.0,
                    min=0.0,
                    max=1000.0,
                    step=0.1,
                    tooltip="Pulls the noise away from shapes of the picture, so that it can be edited. The authors' "
                    "value is 20. 0 switches it off: the picture then comes back more exactly, and is harder to edit.",
                ),
                io.Float.Input(
                    "lambda_kl",
                    default=20.0,
                    min=0.0,
                    max=1000.0,
                    step=0.1,
                    tooltip="Pulls the noise towards mean 0 and variance 1. The authors' value is 20. 0: off.",
                ),
                io.Int.Input(
                    "reg_steps",
                    default=5,
                    min=0,
                    max=100,
                    advanced=True,
                    tooltip="How often a step's noise is pulled. The authors' value is 5. 0 switches both off.",
                ),
                io.Int.Input(
                    "rolls",
                    default=5,
                    min=0,
                    max=100,
                    advanced=True,
                    tooltip="Shifted copies that the noise is compared with, each time. The authors' value is 5.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=io.ControlAfterGenerate.fixed,
                    advanced=True,
                    tooltip="For the shifts that lambda_auto_corr compares with. Nothing else is random.",
                ),
                io.Sigmas.Input(
                    "sigmas",
                    optional=True,
                    tooltip="The sampler's sigmas, falling. Wired, they replace steps and scheduler.",
                ),
                io.Int.Input(
                    "fixed_point_iterations",
                    default=-1,
                    min=-1,
                    max=20,
                    optional=True,
                    advanced=True,
                    tooltip="Refines every step so that the sampler's step down leads back to it. 0: plain DDIM "
                    "inversion, as in the paper. 1 costs a single call of the model more and brings the picture back "
                    "more exactly; each further one costs a call a step.",
                ),
            ],
            outputs=latent_and_noise(),
            hidden=HIDDEN,
        )

    @classmethod
    def execute(
        cls,
        model,
        caption,
        latent,
        steps,
        scheduler,
        lambda_auto_corr,
        lambda_kl,
        reg_steps,
        rolls,
        seed,
        sigmas=None,
        fixed_point_iterations=-1,
    ) -> io.NodeOutput:
        regularisation = NoiseRegularisation(lambda_auto_corr, lambda_kl, reg_steps, rolls)
        if fixed_point_iterations < 0:
            fixed_point_iterations = usual_fixed_point_iterations(model)
        prompt, node_id = _graph(cls)
        if sigmas is None:
            sigmas = sampling_sigmas(model, scheduler, steps)
        else:
            steps, scheduler = inversion_record.scheduled_by(prompt, node_id)
        record = InversionRecord(
            family=family_of(model.model),
            loaded=inversion_record.loaded_by(prompt, node_id),
            caption=inversion_record.text_of(prompt, node_id, "caption"),
            steps=steps,
            scheduler=scheduler,
            sigmas=sigmas.tolist(),
            regularisation=asdict(regularisation),
            fixed_point_iterations=fixed_point_iterations,
            seed=seed,
            holds_noise=inverts_to_noise(model),
        )
        _say(inversion_record.mismatches(record, prompt, node_id))  # before the long walk
        samples = invert(model, caption, latent, sigmas, regularisation, seed, fixed_point_iterations)
        return io.NodeOutput(*_outputs(Inversion(samples, record), model))


class EBCASaveInversion(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EBCASaveInversion",
            display_name="EBCA Save Inversion",
            category=CATEGORY,
            description="Saves what EBCA Invert made, with model, caption and settings, in the output folder. EBCA "
            "Load Inversion takes its place next time.",
            search_aliases=["save latent", "save inverted latent"],
            inputs=[
                io.Latent.Input("latent", tooltip="From EBCA Invert."),
                prefix_input("inversion", FOLDER),
            ],
            outputs=[],
            hidden=HIDDEN,
            is_output_node=True,
        )

    @classmethod
    def execute(cls, latent, filename_prefix) -> io.NodeOutput:
        inversion = inversion_record.inversion_of(latent)
        with refusing_bad_names(filename_prefix):
            path, saved = next_file(FOLDER, filename_prefix, EXTENSION)
            if args.disable_metadata:
                inversion = Inversion(inversion.samples, inversion_record.without_names(inversion.record))
            inversion_record.save(path, inversion, graph_metadata(cls.hidden))
        return io.NodeOutput(ui={"latents": [saved]})


class EBCALoadInversion(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EBCALoadInversion",
            display_name="EBCA Load Inversion",
            category=CATEGORY,
            description="Takes the place of EBCA Invert with a file of EBCA Save Inversion, and says where model, "
            "caption, steps, scheduler or sampler of this graph are not those of the inversion.",
            search_aliases=["load latent", "load inverted latent"],
            inputs=[
                io.Combo.Input(
                    "file",
                    options=saved_files(FOLDER, EXTENSION),
                    tooltip="A file of EBCA Save Inversion, or one that was put into the input folder. Press R to see "
                    "a new one.",
                ),
                io.Model.Input("model", tooltip="The model of the inversion, from before EBCA Compose."),
            ],
            outputs=[
                *latent_and_noise(),
                io.String.Output(
                    display_name="description",
                    tooltip="How the picture was inverted, and what does not fit here; for Preview as Text.",
                ),
            ],
            hidden=HIDDEN,
        )

    @classmethod
    def execute(cls, file, model) -> io.NodeOutput:
        inversion = inversion_record.load(path_of(file))
        record, (prompt, node_id) = inversion.record, _graph(cls)
        family, loaded = family_of(model.model), inversion_record.loaded_by(prompt, node_id)
        problems = [
            *inversion_record.model_mismatches(record, family, loaded),
            *inversion_record.mismatches(record, prompt, node_id),
        ]
        _say(problems)
        description = "\n".join([record.described(), *(f"WARNING: {problem}" for problem in problems)])
        return io.NodeOutput(*_outputs(inversion, model), description)

    @classmethod
    def fingerprint_inputs(cls, file, **kwargs) -> float:
        return path_of(file).stat().st_mtime


def _graph(cls: type) -> tuple[dict, str | None]:
    """The prompt that runs and the node's id in it; without either, as when a node is called directly, nothing."""
    hidden = cls.hidden
    return (hidden.prompt or {}, hidden.unique_id) if hidden else ({}, None)


def _outputs(inversion: Inversion, model) -> tuple[dict, InvertedNoise]:
    return inversion.as_latent(), InvertedNoise(inversion, model)


def _say(problems: list[str]) -> None:
    for problem in problems:
        log.warning(problem)


NODES = [EBCAInvert, EBCASaveInversion, EBCALoadInversion]
