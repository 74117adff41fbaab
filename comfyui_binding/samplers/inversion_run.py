"""Inversion through ComfyUI's own guider and sampler: previews, progress, interruption and patches work as usual."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import comfy.model_management
import comfy.sample
import comfy.samplers
import latent_preview
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...ebca_core import FLOW, NoiseRegularisation, Noising, ddim_inversion, inversion_sigmas, regularised_noise
from ..architectures.registry import check_text_width
from ..model_patch import settings_of
from .inversion_record import Inversion, marked
from .model_kinds import HIGHEST_FLOW_SIGMA, family_of, is_flow_matching, noising_of


def sampling_sigmas(model: ModelPatcher, scheduler: str, steps: int) -> Tensor:
    """The sigmas [steps + 1] of a whole run, as KSampler makes them."""
    return comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), scheduler, steps).cpu()


def inverts_to_noise(model: ModelPatcher) -> bool:
    """Whether `invert` gives noise, not a latent: a flow-matching model's run from sigma 1 does not read its latent."""
    return noising_of(_sampling_of(model)) is FLOW


def usual_fixed_point_iterations(model: ModelPatcher) -> int:
    """0, as in the paper; 1 for flow-matching models, whose schedules take large steps near the finished image."""
    return int(is_flow_matching(_sampling_of(model)))


def invert(
    model: ModelPatcher,
    caption: list,
    latent: dict,
    sigmas: Tensor,
    regularisation: NoiseRegularisation,
    seed: int,
    fixed_point_iterations: int = 0,
) -> Tensor:
    """The latent from which a deterministic sampler, walking down `sigmas`, makes `latent` under the caption at cfg 1.

    latent LATENT, sigmas [steps + 1] falling -> [b, c, (frames,) height, width], scaled as a LATENT is. Where
    `inverts_to_noise`, the noise with which a run on an empty latent starts there, scaled as a NOISE is.

    Raises ValueError for a model, a caption, a latent or sigmas that cannot be inverted, and where the result is not
    finite.
    """
    noising = _checked_noising(model)
    _check_caption(model, caption)
    samples = _checked_samples(model, latent)
    _check_sigmas(sigmas, noising)
    last_x = []
    sampler = comfy.samplers.KSAMPLER(
        sample_ddim_inversion,
        extra_options={
            "noising": noising,
            "regularisation": regularisation,
            "flow_matching": is_flow_matching(_sampling_of(model)),
            "generator": torch.Generator().manual_seed(seed),
            "fixed_point_iterations": fixed_point_iterations,
            "keep": last_x.append,
        },
    )
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(caption, caption)
    guider.set_cfg(1.0)
    samples = guider.sample(
        torch.zeros_like(samples),
        samples,
        sampler,
        inversion_sigmas(sigmas),
        callback=latent_preview.prepare_callback(model, len(sigmas) - 1),
        seed=seed,
    )
    if noising is FLOW:  # ComfyUI divides what its sampler returns by 1 - sigma, which is 0 at the start of a run
        samples = last_x[0].float() / float(sigmas[0])
    if not torch.isfinite(samples).all():
        raise ValueError(
            "The inversion has no finite numbers. Lower lambda_auto_corr and lambda_kl, or set reg_steps to 0. If that "
            "does not help, the model itself overflows in this precision."
        )
    return samples.to(comfy.model_management.intermediate_device())


class InvertedNoise:
    """A NOISE with which a run on any latent image begins at an inverted latent.

    So the image can be the picture itself, under a noise mask that keeps the rest of it exactly. Holds no model, which
    ComfyUI could not unload then.
    """

    seed = 0

    def __init__(self, inversion: Inversion, model: ModelPatcher):
        self._record = inversion.record
        self._shape = list(inversion.samples.shape)
        self._scaled = model.get_model_object("latent_format").process_in
        self._sampling = model.get_model_object("model_sampling")
        self._sigma = torch.tensor(inversion.record.sigmas[0])
        samples = inversion.samples.float().cpu()
        self._start = self._sigma * samples if inversion.record.holds_noise else self._scaled(samples)

    def generate_noise(self, latent: dict) -> Tensor:
        """The noise that ComfyUI's sampler turns, with the image, into the inverted latent; both of one shape."""
        image = latent["samples"]
        if list(image.shape) != self._shape:
            raise ValueError(
                f"The latent has the shape {list(image.shape)}, but the inverted one has {self._shape}. Connect the "
                "latent of EBCA Invert's input to the sampler too."
            )
        image = image.float().cpu()
        image = self._scaled(image) if image.count_nonzero() else image  # as ComfyUI's guider does
        plain = self._noised(torch.zeros_like(image), image)
        noise = (self._start - plain) / (self._noised(torch.ones_like(image), image) - plain)
        return marked(noise, self._record)

    def _noised(self, noise: Tensor, image: Tensor) -> Tensor:
        """The start that ComfyUI's sampler makes of noise and image."""
        model_wrap = SimpleNamespace(inner_model=SimpleNamespace(model_sampling=self._sampling))
        is_highest = comfy.samplers.Sampler().max_denoise(model_wrap, [self._sigma])
        return self._sampling.noise_scaling(self._sigma, noise, image, is_highest)


@torch.no_grad()
def sample_ddim_inversion(
    model: Callable[..., Tensor],
    x: Tensor,
    sigmas: Tensor,
    extra_args: dict[str, Any],
    callback: Callable[[dict], None],
    disable: bool,
    *,
    noising: Noising,
    regularisation: NoiseRegularisation,
    flow_matching: bool,
    generator: torch.Generator,
    fixed_point_iterations: int,
    keep: Callable[[Tensor], None],
) -> Tensor:
    """A sampler for KSAMPLER: DDIM inversion of x, which `keep` gets too. It has no bar on the console to disable."""
    denoised = x

    def derivative(x: Tensor, sigma: Tensor) -> Tensor:
        nonlocal denoised
        denoised = model(x, sigma * x.new_ones(x.shape[0]), **extra_args)
        return (x - denoised) / sigma

    def regularise(noise: Tensor) -> Tensor:
        return noise if regularisation.is_off else regularised_noise(noise, regularisation, generator, flow_matching)

    def after_step(step: int, x: Tensor) -> None:
        sigma = sigmas[step + 1]
        callback({"x": x, "i": step, "sigma": sigma, "sigma_hat": sigma, "denoised": denoised})

    x = ddim_inversion(x, sigmas, derivative, fixed_point_iterations, after_step, noising, regularise)
    keep(x)
    return x


def _sampling_of(model: ModelPatcher) -> Any:
    return model.get_model_object("model_sampling")


def _checked_noising(model: ModelPatcher) -> Noising:
    noising = noising_of(_sampling_of(model))
    if noising is None:
        raise ValueError(
            f"EBCA Invert does not apply to {family_of(model.model)}, which predicts neither noise (eps) nor a "
            "velocity (v, flow matching). Use a model such as SD 1.x, SDXL, Wan or Cosmos."
        )
    if settings_of(model).edits:
        raise ValueError(
            "The model has edits from EBCA Compose. Inverted with them, the image would be reconstructed without a "
            "change. Connect the model from before EBCA Compose to EBCA Invert, and the one after it to the sampler."
        )
    return noising


def _check_caption(model: ModelPatcher, caption: list) -> None:
    texts = [text for text, _ in caption]
    if not texts or not all(isinstance(text, Tensor) and text.ndim == 3 and text.numel() > 0 for text in texts):
        came = [list(text.shape) if isinstance(text, Tensor) else type(text).__name__ for text in texts]
        raise ValueError(
            f"caption is {', '.join(map(str, came)) or 'empty'} instead of an encoded prompt [batch, tokens, width]. "
            "Connect a CLIP Text Encode."
        )
    for text in texts:
        check_text_width(model, text, "The caption")


def _checked_samples(model: ModelPatcher, latent: dict) -> Tensor:
    samples = latent["samples"]
    shape = ["batch", "channels", "height", "width"]
    if model.get_model_object("latent_format").latent_dimensions == 3:
        shape.insert(2, "frames")
    if isinstance(samples, Tensor) and samples.ndim in (4, len(shape)) and samples.numel() > 0:
        samples = comfy.sample.fix_empty_latent_channels(model, samples).float()
    if not isinstance(samples, Tensor) or samples.ndim != len(shape) or samples.numel() == 0:
        came = list(samples.shape) if isinstance(samples, Tensor) else type(samples).__name__
        raise ValueError(
            f"latent is {came} instead of [{', '.join(shape)}]. Connect a VAE Encode, and a model for images or videos."
        )
    channels = model.get_model_object("latent_format").latent_channels
    if samples.shape[1] != channels:
        raise ValueError(
            f"The latent has {samples.shape[1]} channels, but {family_of(model.model)} has {channels}. Encode the "
            "image with the VAE of the checkpoint that the model comes from."
        )
    if not torch.isfinite(samples).all():
        raise ValueError(
            "The latent has numbers that are not finite. Check the image that is encoded."
        )
    return samples


def _check_sigmas(sigmas: Tensor, noising: Noising) -> None:
    listed = f"{len(sigmas)} of them" if sigmas.ndim == 1 else f"shape {list(sigmas.shape)}"
    if sigmas.ndim != 1 or len(sigmas) < 2 or not bool((sigmas.diff() < 0).all()) or not 0 <= sigmas[-1] < torch.inf:
        raise ValueError(
            f"sigmas must be at least two decreasing numbers, but are {listed}: "
            f"{', '.join(f'{sigma:.4g}' for sigma in sigmas.flatten()[:8].tolist())}. Connect the sampler's sigmas, "
            "without FlipSigmas: EBCA Invert reverses them itself."
        )
    if noising is FLOW and sigmas[0] > HIGHEST_FLOW_SIGMA:
        raise ValueError(
            f"The sigmas start at {float(sigmas[0]):.4g}, but those of a flow-matching model start at 1 at most. Use "
            "the sigmas of a scheduler for this model."
        )
