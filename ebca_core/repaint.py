"""RePaint: inpainting with a model that knows no masks (Lugmayr et al., CVPR 2022; paper, section 4.2).

Levels are indices into the falling sigmas of a run: 0 is pure noise, the last one the finished picture.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor


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


def model_calls(levels: list[int]) -> int:
    """How often a walk calls the model: once for each step towards the picture."""
    return sum(after > before for before, after in pairwise(levels))


def ddim_step(x: Tensor, denoised: Tensor, sigma: Tensor, sigma_next: Tensor, eta: float, noise: Tensor) -> Tensor:
    """One DDIM step down: x0 + sqrt(sigma'^2 - s^2) * eps + s * noise, s = eta * sigma' * sqrt(1 - sigma'^2 / sigma^2).

    x [b, c, height, width] = picture + sigma * noise; eta 0 is deterministic (an Euler step), 1 is ancestral sampling.
    """
    spread = eta * sigma_next * (1 - (sigma_next / sigma) ** 2).clamp(min=0).sqrt()
    return denoised + (sigma_next**2 - spread**2).sqrt() * (x - denoised) / sigma + spread * noise


def noised_again(x: Tensor, sigma: Tensor, sigma_higher: Tensor, noise: Tensor) -> Tensor:
    """x at sigma -> x at a higher sigma, as the forward process goes: x + sqrt(sigma_higher^2 - sigma^2) * noise."""
    return x + (sigma_higher**2 - sigma**2).sqrt() * noise
