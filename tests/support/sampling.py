"""Sampling through ComfyUI's own code, as its nodes do it. Needs a booted host."""

from typing import Any

import comfy.sample
import comfy.samplers
import torch

from support import toy

SAMPLING = dict(steps=4, cfg=4.0, sampler="euler", scheduler="normal", seed=0)


def sample(model, positive, negative=None, latent=None, **options: Any) -> torch.Tensor:
    """The final latent of ComfyUI's KSampler.

    Args:
        negative: by default an unconditional CONDITIONING of the same shape as `toy.conditioning` makes.
        latent: LATENT; by default empty, 8 x 8.
        options: entries of SAMPLING, or further arguments of `comfy.sample.sample`.
    """
    options = {**SAMPLING, **options}
    steps, cfg, sampler, scheduler, seed = (options.pop(name) for name in SAMPLING)
    latent = toy.latent() if latent is None else latent
    negative = toy.conditioning(99) if negative is None else negative
    with torch.inference_mode():
        image = comfy.sample.fix_empty_latent_channels(model, latent["samples"])
        noise = comfy.sample.prepare_noise(image, seed, latent.get("batch_index"))
        return comfy.sample.sample(
            model, noise, steps, cfg, sampler, scheduler, positive, negative, image,
            noise_mask=latent.get("noise_mask"), disable_pbar=True, seed=seed, **options,
        )  # fmt: skip


def sample_sigmas(model, noise, sigmas, positive, negative, cfg: float, sampler: str = "euler", **options: Any):
    """The final latent for noise and sigmas of one's own, starting from an empty latent."""
    with torch.inference_mode():
        return comfy.sample.sample_custom(
            model, noise, cfg, comfy.samplers.sampler_object(sampler), sigmas, positive, negative,
            torch.zeros_like(noise), disable_pbar=True, **options,
        )  # fmt: skip


def relative_error(got: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference, over the largest magnitude that was expected."""
    return float((got.double() - expected.double()).abs().max() / expected.double().abs().max())
