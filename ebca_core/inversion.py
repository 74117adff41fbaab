"""Inversion of a picture: the latent from which a deterministic sampler makes it again (paper, section 4.3)."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

from torch import Tensor

#: Where a walk up from a finished picture begins: no noise can be predicted at 0. ComfyUI's FlipSigmas does the same.
LOWEST_SIGMA = 1e-4


def rising_sigmas(sigmas: Tensor) -> Tensor:
    """The sigmas [steps + 1] of a sampling run in reverse, from LOWEST_SIGMA where the run ends at 0."""
    rising = sigmas.flip(0)
    if rising[0] == 0:
        rising[0] = LOWEST_SIGMA
    return rising


def ddim_inversion(
    x: Tensor,
    sigmas: Tensor,
    predict_noise: Callable[[Tensor, Tensor], Tensor],
    fixed_point_iterations: int = 0,
    after_step: Callable[[int, Tensor], None] = lambda step, x: None,
) -> Tensor:
    """DDIM inversion: Euler steps up the sigmas, x <- x + (sigma' - sigma) * noise(x, sigma).

    x [b, c, height, width] = picture + sigma * noise, sigmas [steps + 1] rising, predict_noise(x, sigma) the white
    noise in x. The sampler's step down from x' uses noise(x', sigma'). With fixed-point iterations x' is brought
    towards the solution of x' = x + (sigma' - sigma) * noise(x', sigma'), whose step down leads back to x; the first
    guess takes the noise that the step before ended with, so that one iteration costs no more than none.
    """
    noise = None
    for step, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        if noise is None or fixed_point_iterations == 0:
            noise = predict_noise(x, sigma)
        x_next = x + (sigma_next - sigma) * noise
        for _ in range(fixed_point_iterations):
            noise = predict_noise(x_next, sigma_next)
            x_next = x + (sigma_next - sigma) * noise
        x = x_next
        after_step(step, x)
    return x
