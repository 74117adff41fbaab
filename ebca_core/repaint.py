"""RePaint: inpainting with a model that has no mask input (Lugmayr et al., CVPR 2022; paper, section 4.2).

Levels are indices into the falling sigmas of a run: 0 is pure noise, the last one the finished image.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor

from .noising import ADDITIVE, Noising


def repaint_levels(steps: int, jump_length: int, jump_n_sample: int) -> list[int]:
    """The levels that a run passes, from 0 to `steps`, each one step from the one before.

    A step up in level is a call of the model; a step down adds one level of noise back. At every multiple of
    `jump_length` steps from the end, but for the first of the run, the walk goes back `jump_length` levels and comes
    again, `jump_n_sample` - 1 times.
    """
    jumps = {steps - distance: jump_n_sample - 1 for distance in range(0, steps - jump_length, jump_length)}
    levels = [0]
    while levels[-1] < steps:
        levels.append(levels[-1] + 1)
        if jumps.get(levels[-1], 0) > 0:
            jumps[levels[-1]] -= 1
            levels += range(levels[-1] - 1, levels[-1] - jump_length - 1, -1)
    return levels


def count_model_calls(levels: list[int]) -> int:
    """How often a walk calls the model: once for each step towards the image."""
    return sum(after > before for before, after in pairwise(levels))


def ddim_step(
    x: Tensor,
    denoised: Tensor,
    sigma: Tensor,
    sigma_next: Tensor,
    eta: float,
    noise: Tensor,
    noising: Noising = ADDITIVE,
) -> Tensor:
    """One DDIM step down: signal(sigma') * x0 + sqrt(sigma'^2 - tau^2) * n + tau * noise.

    n = (x - signal(sigma) * x0) / sigma is the predicted noise, tau = eta * sigma' * sqrt(1 - (S' / S)^2) the share of
    the fresh one, with S = sigma / signal(sigma). eta 0 is deterministic (an Euler step), 1 is ancestral sampling.

    x, x0 = denoised and noise [b, c, (frames,) height, width].
    """
    noise_to_signal = sigma_next / (sigma * noising.signal_ratio(sigma, sigma_next))  # S' / S, 0 where S is infinite
    tau = eta * sigma_next * (1 - noise_to_signal**2).clamp(min=0).sqrt()
    predicted = (sigma_next**2 - tau**2).sqrt() * (x - noising.signal(sigma) * denoised) / sigma
    return noising.signal(sigma_next) * denoised + predicted + tau * noise


def renoise(x: Tensor, sigma: Tensor, sigma_higher: Tensor, noise: Tensor, noising: Noising = ADDITIVE) -> Tensor:
    """x at sigma -> x at a higher sigma', as the forward process goes: r * x + sqrt(sigma'^2 - (r * sigma)^2) * noise.

    r = signal(sigma') / signal(sigma); x and noise [b, c, (frames,) height, width].
    """
    ratio = noising.signal_ratio(sigma, sigma_higher)
    return ratio * x + (sigma_higher**2 - (ratio * sigma) ** 2).sqrt() * noise
