"""RePaint as a SAMPLER of ComfyUI: schedules, previews, progress, interruption and masks as with its own samplers."""

from __future__ import annotations

import logging
from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import comfy.samplers
import torch
from comfy.k_diffusion.sampling import default_noise_sampler
from torch import Tensor

from ...ebca_core import FLOW, Noising, count_model_calls, ddim_step, renoise, repaint_levels
from .model_kinds import HIGHEST_FLOW_SIGMA, family_of, noising_of, reads_noise_mask

if TYPE_CHECKING:
    from comfy.model_base import BaseModel

log = logging.getLogger("ebca")


class RePaintSampler(comfy.samplers.KSAMPLER):
    """A SAMPLER that inpaints by RePaint; without a noise mask it resamples the whole image."""

    def __init__(self, jump_length: int, jump_n_sample: int, eta: float):
        if not 0 <= eta <= 1:
            raise ValueError(f"eta is {eta}. Set it to a number from 0 (no noise in the steps) to 1 (as in DDPM).")
        settings = {"jump_length": jump_length, "jump_n_sample": jump_n_sample, "eta": eta}
        super().__init__(sample_repaint, extra_options=settings)
        self._jumps = (jump_length, jump_n_sample)

    def sample(
        self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, *args, **kwargs
    ):
        """As ComfyUI calls it; progress counts all calls of the model. ValueError for other models and sigmas."""
        calls = count_model_calls(repaint_levels(len(sigmas) - 1, *self._jumps))
        _warn_if_without_effect(calls, len(sigmas) - 1, *self._jumps, denoise_mask)

        def with_jumps(call: int, denoised: Tensor, x: Tensor, total_steps: int) -> None:
            if callback is not None:
                callback(call, denoised, x, calls)

        return super().sample(
            model_wrap, sigmas, extra_args, with_jumps, noise, latent_image, denoise_mask, *args, **kwargs
        )


@torch.no_grad()
def sample_repaint(
    model: Callable[..., Tensor],
    x: Tensor,
    sigmas: Tensor,
    extra_args: dict[str, Any],
    callback: Callable[[dict], None],
    disable: bool,
    *,
    jump_length: int,
    jump_n_sample: int,
    eta: float,
) -> Tensor:
    """A sampler for KSAMPLER; it shows no bar on the console to disable.

    Its model, a KSamplerX0Inpaint, puts the known region into x and into what it returns, with the noise that it holds.
    """
    noising = _checked_noising(model, sigmas)
    sampling = model.inner_model.inner_model.model_sampling
    make_noise = default_noise_sampler(x, seed=extra_args.get("seed"))
    call = 0
    for level, level_after in pairwise(repaint_levels(len(sigmas) - 1, jump_length, jump_n_sample)):
        sigma, sigma_after = sigmas[level], sigmas[level_after]
        if level_after < level:
            x = renoise(x, sigma, sigma_after, make_noise(sigma, sigma_after), noising)
            mask = _mask_at(sigma_after, model, x, extra_args)
            if mask is not None:  # what was painted may be known again at this level
                noise = _for_blending(make_noise(sigma, sigma_after), mask)
                x = x * mask + sampling.noise_scaling(sigma_after, noise, model.latent_image) * (1 - mask)
            continue
        model.noise = _for_blending(make_noise(sigma, sigma_after), _mask_at(sigma, model, x, extra_args))
        denoised = model(x, sigma * x.new_ones(x.shape[0]), **extra_args)
        fresh = make_noise(sigma, sigma_after) if eta else 0
        x = ddim_step(x, denoised, sigma, sigma_after, eta, fresh, noising)
        callback({"x": x, "i": call, "sigma": sigma, "sigma_hat": sigma, "denoised": denoised})
        call += 1
    return x


def _mask_at(sigma: Tensor, model, x: Tensor, extra_args: dict[str, Any]) -> Tensor | None:
    """The noise mask [b, c, height, width] in force at a sigma, as KSamplerX0Inpaint asks for it; None without one."""
    mask, mask_function = extra_args.get("denoise_mask"), extra_args["model_options"].get("denoise_mask_function")
    if mask is None or mask_function is None:
        return mask
    options = {"model": model.inner_model, "sigmas": model.sigmas}
    return mask_function(sigma * x.new_ones(x.shape[0]), mask, extra_options=options)


def _for_blending(noise: Tensor, mask: Tensor | None) -> Tensor:
    """Fresh noise for the known region, so strong that with x under a soft mask m it has x's level again.

    x and the noise are independent: m^2 + (1 - m)^2 k^2 = 1 for k = sqrt((1 + m) / (1 - m)), 1 outside the mask.
    """
    return noise if mask is None else noise * ((1 + mask) / (1 - mask).clamp(min=1e-6)).sqrt()


def _warn_if_without_effect(
    calls: int, steps: int, jump_length: int, jump_n_sample: int, denoise_mask: Tensor | None
) -> None:
    if jump_n_sample > 1 and calls == steps:
        log.warning(
            "EBCA RePaint Sampler makes no jumps: the run has %d steps and jump_length is %d, so this is plain "
            "inpainting. Set jump_length below the number of steps.",
            steps,
            jump_length,
        )
    if denoise_mask is None:
        log.warning(
            "EBCA RePaint Sampler: the latent has no noise mask, so the whole image is resampled. Put a Set Latent "
            "Noise Mask before the sampler."
        )


def _checked_noising(model, sigmas: Tensor) -> Noising:
    if not hasattr(model, "noise"):
        raise ValueError(
            "Another node wraps EBCA RePaint Sampler and hides ComfyUI's inpainting, so the known region cannot be "
            "given new noise. Connect EBCA RePaint Sampler directly to the sampling node."
        )
    if bool((sigmas.diff() > 0).any()):
        raise ValueError(
            "The sigmas increase. RePaint re-noises the latent by itself: remove FlipSigmas, or use the sigmas of a "
            "scheduler."
        )
    noising = _noising_of(model.inner_model.inner_model)
    if noising is FLOW and bool((sigmas > HIGHEST_FLOW_SIGMA).any() | (sigmas[1:] >= 1).any()):
        raise ValueError(
            f"The sigmas {', '.join(f'{sigma:.4g}' for sigma in sigmas[:8].tolist())} do not fit a flow-matching "
            "model: they must start at 1 at most and be below 1 after that. Use the sigmas of a scheduler for this "
            "model."
        )
    return noising


def _noising_of(model: BaseModel) -> Noising:
    noising = noising_of(model.model_sampling)
    if noising is None:
        raise ValueError(
            f"RePaint does not apply to {family_of(model)}, which predicts neither noise (eps) nor a velocity (v, flow "
            "matching). Use ComfyUI's own samplers with this model."
        )
    if reads_noise_mask(model):
        raise ValueError(
            f"RePaint does not apply to {family_of(model)}, which reads the noise mask itself and sees the known "
            "region without noise. Use ComfyUI's own samplers with this model."
        )
    return noising
