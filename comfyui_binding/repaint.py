"""RePaint as a SAMPLER of ComfyUI: schedules, previews, progress, interruption and masks as with its own samplers."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import comfy.model_sampling
import comfy.samplers
import torch
from comfy.k_diffusion.sampling import default_noise_sampler
from torch import Tensor

from ..ebca_core import ddim_step, noised_again, repaint_levels


class RePaintSampler(comfy.samplers.KSAMPLER):
    """A SAMPLER that inpaints by RePaint; without a noise mask it resamples the whole picture."""

    def __init__(self, jump_length: int, jump_n_sample: int, eta: float):
        settings = {"jump_length": jump_length, "jump_n_sample": jump_n_sample, "eta": eta}
        super().__init__(sample_repaint, extra_options=settings)
        self._jumps = (jump_length, jump_n_sample)

    def sample(self, model_wrap, sigmas, extra_args, callback, *args, **kwargs) -> Tensor:
        """As ComfyUI calls it; progress counts all calls of the model. Raises ValueError for other models."""
        _check_model(model_wrap.inner_model)
        calls = model_calls(repaint_levels(len(sigmas) - 1, *self._jumps))

        def with_jumps(call: int, denoised: Tensor, x: Tensor, total_steps: int) -> None:
            if callback is not None:
                callback(call, denoised, x, calls)

        return super().sample(model_wrap, sigmas, extra_args, with_jumps, *args, **kwargs)


def model_calls(levels: list[int]) -> int:
    """How often a walk calls the model: once for each step towards the picture."""
    return sum(after > before for before, after in pairwise(levels))


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
    """A sampler for KSAMPLER.

    Its model, a KSamplerX0Inpaint, puts the known region into x and into what it returns, with the noise that it holds.
    """
    make_noise = default_noise_sampler(x, seed=extra_args.get("seed"))
    call = 0
    for level, level_after in pairwise(repaint_levels(len(sigmas) - 1, jump_length, jump_n_sample)):
        sigma, sigma_after = sigmas[level], sigmas[level_after]
        if level_after < level:
            x = noised_again(x, sigma, sigma_after, make_noise(sigma, sigma_after))
            continue
        model.noise = make_noise(sigma, sigma_after)
        denoised = model(x, sigma * x.new_ones(x.shape[0]), **extra_args)
        x = ddim_step(x, denoised, sigma, sigma_after, eta, make_noise(sigma, sigma_after) if eta else 0)
        callback({"x": x, "i": call, "sigma": sigma, "sigma_hat": sigma, "denoised": denoised})
        call += 1
    return x


def _check_model(model: Any) -> None:
    name, sampling = type(model.model_config).__name__, model.model_sampling
    if isinstance(sampling, comfy.model_sampling.EPS) and not isinstance(sampling, comfy.model_sampling.IMG_TO_IMG):
        return
    raise ValueError(
        f"Expected a model that predicts noise (eps) or velocity (v), but {name} does not: RePaint adds noise to a "
        "picture, where flow-matching models mix the two. Use ComfyUI's own samplers with this model."
    )
