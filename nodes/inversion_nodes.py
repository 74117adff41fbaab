"""EBCA Invert, and saving and loading its result."""

from __future__ import annotations

import logging
from dataclasses import asdict
from functools import partial

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
    check_file,
    filename_errors,
    graph_metadata,
    next_file,
    path_of,
    prefix_input,
    saved_files,
)
from .input_validation import first_error
from .shared_inputs import PHOTO

log = logging.getLogger("ebca")

#: Subfolder of the output folder.
FOLDER = "inversions"
EXTENSION = ".latent"


def latent_and_noise() -> list:
    return [
        io.Latent.Output(
            display_name="latent",
            tooltip="The inverted noise, from which sampling starts. Connect to KSampler (Advanced) with add_noise "
            "disabled, or to SamplerCustomAdvanced with DisableNoise; use the sampler euler and the same steps, "
            "scheduler and caption.",
        ),
        io.Noise.Output(
            display_name="noise",
            tooltip="The same noise for a SamplerCustomAdvanced whose latent_image is the image itself: with a noise "
            "mask on that latent, the region outside the mask stays unchanged.",
        ),
    ]


class EBCAInvert(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EBCAInvert",
            display_name="EBCA Invert",
            category=PHOTO,
            description="Finds the noise that an image can be sampled from (DDIM inversion): sampling from it with the "
            "same caption reconstructs the image, and EBCA Compose edits it during that sampling. The inversion takes "
            "one model call per step; keep its result with EBCA Save Inversion.",
            search_aliases=["DDIM inversion", "real image editing", "unsample", "noise regularisation", "energy"],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="A model that predicts noise or velocity, or a flow-matching model. Take it from before "
                    "EBCA Compose: edits act during sampling, not during the inversion.",
                ),
                io.Conditioning.Input(
                    "caption",
                    tooltip="A plain description of the image. Connect it to the sampler as the positive and as the "
                    "negative prompt.",
                ),
                io.Latent.Input("latent", tooltip="The image, from VAE Encode."),
                io.Int.Input(
                    "steps",
                    default=50,
                    min=1,
                    max=10000,
                    tooltip="Number of steps, the same as the sampler's. More steps reconstruct the image more "
                    "accurately. Typical: 50.",
                ),
                io.Combo.Input(
                    "scheduler",
                    options=comfy.samplers.SCHEDULER_NAMES,
                    default="normal",
                    tooltip="The scheduler, the same as the sampler's.",
                ),
                io.Float.Input(
                    "lambda_auto_corr",
                    default=20.0,
                    min=0.0,
                    max=1000.0,
                    step=0.1,
                    tooltip="Strength of the autocorrelation regularisation, which removes structure of the image from "
                    "the noise so that it can be edited. The authors use 20. 0 disables it: the reconstruction is more "
                    "accurate, and harder to edit.",
                ),
                io.Float.Input(
                    "lambda_kl",
                    default=20.0,
                    min=0.0,
                    max=1000.0,
                    step=0.1,
                    tooltip="Strength of the KL regularisation, which brings the noise to mean 0 and variance 1. The "
                    "authors use 20. 0 disables it.",
                ),
                io.Int.Input(
                    "reg_steps",
                    default=5,
                    min=0,
                    max=100,
                    advanced=True,
                    tooltip="Regularisation iterations per step. The authors use 5. 0 disables both terms.",
                ),
                io.Int.Input(
                    "rolls",
                    default=5,
                    min=0,
                    max=100,
                    advanced=True,
                    tooltip="Number of shifted copies in the autocorrelation, per iteration. The authors use 5.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=io.ControlAfterGenerate.fixed,
                    advanced=True,
                    tooltip="Seed of the shifts for lambda_auto_corr. Nothing else is random.",
                ),
                io.Sigmas.Input(
                    "sigmas",
                    optional=True,
                    tooltip="The sampler's sigmas, in descending order. If connected, they replace steps and "
                    "scheduler.",
                ),
                io.Int.Input(
                    "fixed_point_iterations",
                    default=-1,
                    min=-1,
                    max=20,
                    optional=True,
                    advanced=True,
                    tooltip="Refines each step so that the sampler's step leads back to it. 0 is plain DDIM "
                    "inversion, as in the paper. 1 adds one model call in total and reconstructs the image more "
                    "accurately; each further iteration adds one call per step. -1: 1 for flow-matching models, 0 for "
                    "others.",
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
        _log_warnings(inversion_record.mismatches(record, prompt, node_id))  # before the inversion, which takes long
        samples = invert(model, caption, latent, sigmas, regularisation, seed, fixed_point_iterations)
        return io.NodeOutput(*_outputs(Inversion(samples, record), model))


class EBCASaveInversion(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EBCASaveInversion",
            display_name="EBCA Save Inversion",
            category=PHOTO,
            description="Saves the result of EBCA Invert in the output folder, with its model, caption and settings. "
            "EBCA Load Inversion loads it in place of EBCA Invert.",
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
        with filename_errors(filename_prefix):
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
            category=PHOTO,
            description="Loads a file of EBCA Save Inversion in place of EBCA Invert, and reports where the model, "
            "caption, steps, scheduler or sampler of this graph differ from those of the inversion.",
            search_aliases=["load latent", "load inverted latent"],
            inputs=[
                io.Combo.Input(
                    "file",
                    options=saved_files(FOLDER, EXTENSION),
                    tooltip="A file of EBCA Save Inversion, or one in the input folder. Press R to refresh the list.",
                ),
                io.Model.Input("model", tooltip="The model of the inversion. Take it from before EBCA Compose."),
            ],
            outputs=[
                *latent_and_noise(),
                io.String.Output(
                    display_name="description",
                    tooltip="The settings of the inversion and their differences from this graph; connect it to "
                    "Preview as Text.",
                ),
            ],
            hidden=HIDDEN,
        )

    @classmethod
    def validate_inputs(cls, file=None):
        return first_error(cls, {"file": file}, (partial(check_file, folder=FOLDER, extension=EXTENSION), "file"))

    @classmethod
    def execute(cls, file, model) -> io.NodeOutput:
        inversion = inversion_record.load(path_of(file))
        record, (prompt, node_id) = inversion.record, _graph(cls)
        family, loaded = family_of(model.model), inversion_record.loaded_by(prompt, node_id)
        problems = [
            *inversion_record.model_mismatches(record, family, loaded),
            *inversion_record.mismatches(record, prompt, node_id),
        ]
        _log_warnings(problems)
        description = "\n".join([record.summary(), *(f"WARNING: {problem}" for problem in problems)])
        return io.NodeOutput(*_outputs(inversion, model), description)

    @classmethod
    def fingerprint_inputs(cls, file, **kwargs) -> float:
        return path_of(file).stat().st_mtime


def _graph(cls: type) -> tuple[dict, str | None]:
    """The workflow's API prompt and the node's id in it; ({}, None) if the node is called directly."""
    hidden = cls.hidden
    return (hidden.prompt or {}, hidden.unique_id) if hidden else ({}, None)


def _outputs(inversion: Inversion, model) -> tuple[dict, InvertedNoise]:
    return inversion.as_latent(), InvertedNoise(inversion, model)


def _log_warnings(problems: list[str]) -> None:
    for problem in problems:
        log.warning(problem)


NODES = [EBCAInvert, EBCASaveInversion, EBCALoadInversion]
