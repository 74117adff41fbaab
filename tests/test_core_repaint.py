"""RePaint's walk and steps: the authors' lists of timesteps, DDIM as published, and the noise at every level."""
from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from ebca_core import ddim_step, renoise, repaint_levels
from support import reference, toy
from support.sampling import relative_error

LISTS = reference.load("reference_inversion_a")[0]["repaint_timesteps"]


def timesteps(levels, steps):
    """The walk as the reference lists it: a model call at its timestep, one level of noise at the one it leads to."""
    stride = 1000 // steps
    moves = pairwise(levels)
    return [stride * (steps - 1 - before if after > before else steps - after) for before, after in moves]


@pytest.mark.parametrize("setting", LISTS)
def test_walk_is_the_authors(setting):
    steps, jump_length, jump_n_sample = map(int, setting.split(","))
    assert timesteps(repaint_levels(steps, jump_length, jump_n_sample), steps) == LISTS[setting]


@pytest.mark.parametrize(("steps", "length", "samples"), [(1, 1, 1), (1, 10, 10), (7, 3, 4), (20, 20, 5), (5, 1, 2)])
def test_walk_goes_step_by_step_from_noise_to_picture(steps, length, samples):
    levels = repaint_levels(steps, length, samples)
    assert (levels[0], levels[-1]) == (0, steps)
    assert all(abs(after - before) == 1 for before, after in pairwise(levels))
    assert min(levels) == 0
    assert set(levels) == set(range(steps + 1))


@pytest.mark.parametrize("length", [1, 4, 10])
def test_one_sample_is_a_plain_run(length):
    assert repaint_levels(12, length, 1) == list(range(13))


# --- steps -----------------------------------------------------------------------------------------------------------


def published_ddim(x, denoised, sigma, sigma_next, eta, noise):
    """Song et al. (2021), equations 12 and 16, in their variance-preserving scale."""
    alpha, alpha_next = 1 / (1 + sigma**2), 1 / (1 + sigma_next**2)
    spread = eta * ((1 - alpha_next) / (1 - alpha)).sqrt() * (1 - alpha / alpha_next).sqrt()
    eps = (x - denoised) / sigma
    out = alpha_next.sqrt() * denoised + (1 - alpha_next - spread**2).sqrt() * eps + spread * noise
    return out / alpha_next.sqrt()


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize(("high", "low"), [(14.6, 8.0), (1.0, 0.3), (0.03, 0.0)])
def test_step_down_is_the_published_one(high, low, eta):
    x, denoised, noise = (toy.noise(1, 4, 8, 8, seed=seed).double() for seed in range(3))
    sigma, sigma_next = torch.tensor([high, low], dtype=torch.float64)
    expected = published_ddim(x, denoised, sigma, sigma_next, eta, noise)
    assert relative_error(ddim_step(x, denoised, sigma, sigma_next, eta, noise), expected) < 1e-12


def test_without_eta_it_is_euler_s():
    x, denoised = (toy.noise(1, 4, 8, 8, seed=seed).double() for seed in range(2))
    sigma, sigma_next = torch.tensor([3.0, 1.0], dtype=torch.float64)
    euler = x + (sigma_next - sigma) * (x - denoised) / sigma
    assert relative_error(ddim_step(x, denoised, sigma, sigma_next, 0.0, 0), euler) < 1e-12


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_noise_has_its_level_after_every_step_and_jump(eta):
    """Pictures of one point: x at a level is that point plus noise of its sigma, in mean and variance."""
    sigmas = torch.tensor([14.6, 6.0, 3.0, 1.5, 0.7, 0.2, 0.0], dtype=torch.float64)
    generator, point, seeds = torch.Generator().manual_seed(0), 0.8, 40000

    def fresh():
        return torch.randn(seeds, generator=generator, dtype=torch.float64)

    x = point + sigmas[0] * fresh()
    for before, after in pairwise(repaint_levels(6, 2, 3)):
        sigma, sigma_after = sigmas[before], sigmas[after]
        if after > before:
            x = ddim_step(x, torch.full_like(x, point), sigma, sigma_after, eta, fresh())
        else:
            x = renoise(x, sigma, sigma_after, fresh())
        error_of_mean = 5 * float(sigma_after) / seeds**0.5
        assert abs(float(x.mean()) - point) <= error_of_mean + 1e-12
        assert float(x.var()) == pytest.approx(float(sigma_after) ** 2, rel=5 * (2 / seeds) ** 0.5, abs=1e-20)
