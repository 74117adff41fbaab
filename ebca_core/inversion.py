"""Inversion of an image: the latent from which a deterministic sampler reconstructs it (paper, section 4.3)."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

from torch import Tensor

from .noising import ADDITIVE, Noising

#: Where a walk up from a finished image begins: no noise can be predicted at 0. ComfyUI's FlipSigmas does the same.
LOWEST_SIGMA = 1e-4


def inversion_sigmas(sigmas: Tensor) -> Tensor:
    """The sigmas [steps + 1] of a sampling run in reverse, from LOWEST_SIGMA where the run ends at 0."""
    rising = sigmas.flip(0)
    if rising[0] == 0:
        rising[0] = LOWEST_SIGMA
    return rising


def ddim_inversion(
    x: Tensor,
    sigmas: Tensor,
    derivative: Callable[[Tensor, Tensor], Tensor],
    fixed_point_iterations: int = 0,
    after_step: Callable[[int, Tensor], None] = lambda step, x: None,
    noising: Noising = ADDITIVE,
    regularise: Callable[[Tensor], Tensor] = lambda noise: noise,
) -> Tensor:
    """DDIM inversion: steps up the sigmas, x <- r * x + (sigma' - r * sigma) * n, r = signal(sigma') / signal(sigma).

    n is the noise in x, regularised. If it is left as predicted, a step is Euler's, x + (sigma' - sigma) * derivative.

    The sampler's step down from x' uses the derivative at x'. With fixed-point iterations n is taken from that
    derivative, which brings x' towards the solution of x' = x + (sigma' - sigma) * derivative(x', sigma'); its step
    down leads back to x. The first guess keeps the noise that the step before ended with, so that one iteration costs
    no more than none.

    Args:
        x: [b, c, (frames,) height, width], an image at the lowest sigma.
        sigmas: [steps + 1], rising; at most 1 under FLOW.
        derivative: (x, sigma) -> dx/dsigma = (x - denoised) / sigma; under ADDITIVE it is the noise.
        after_step: called with the step and its x.
        regularise: predicted noise -> the noise that is used.
    """
    noise = None
    for step, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        ratio = noising.signal_ratio(sigma, sigma_next)
        if noise is None or fixed_point_iterations == 0:
            noise = regularise(noising.noise(x, derivative(x, sigma), sigma))
        x_next = ratio * x + (sigma_next - ratio * sigma) * noise
        for _ in range(fixed_point_iterations):
            noise = regularise(noising.noise(x, derivative(x_next, sigma_next), sigma))
            x_next = ratio * x + (sigma_next - ratio * sigma) * noise
        x = x_next
        after_step(step, x)
    return x
