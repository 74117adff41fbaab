"""Inversion and RePaint in flow matching: an exact flow, Euler's steps, DDIM in other coordinates, noise levels."""
from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from ebca_core import (
    FLOW,
    NoiseRegularisation,
    ddim_inversion,
    ddim_step,
    inversion_sigmas,
    regularised_noise,
    renoise,
    repaint_levels,
)
from ebca_core.noise_regularisation import auto_correlation_loss, draw_shifts, kl_loss
from support import toy
from support.sampling import relative_error

MEANS, STD = torch.tensor([-1.0, 1.0], dtype=torch.float64), 0.3


def generator(seed=1234):
    return torch.Generator().manual_seed(seed)


def normal(count, seed):
    return torch.randn(count, generator=generator(seed), dtype=torch.float64)


def mixture(count=20000):
    """Values of an equal mixture of two Gaussians, of MEANS and STD."""
    return MEANS[torch.randint(2, (count,), generator=generator(0))] + STD * normal(count, 1)


def denoised(x, sigma):
    """E[x0 | x] for that mixture, x = (1 - sigma) x0 + sigma n."""
    signal = 1 - sigma
    variance = (signal * STD) ** 2 + sigma**2
    deviation = x[:, None] - signal * MEANS
    shares = torch.softmax(-(deviation**2) / (2 * variance), dim=1)
    return (shares * (MEANS + signal * STD**2 / variance * deviation)).sum(dim=1)


def velocity(x, sigma):
    return (x - denoised(x, sigma)) / sigma


def shifted(steps, shift):
    """The falling sigmas of a flow model of this shift."""
    time = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    return shift * time / (1 + (shift - 1) * time)


def euler(x, sigmas):
    for sigma, sigma_next in pairwise(sigmas):
        x = x + (sigma_next - sigma) * velocity(x, sigma)
    return x


def round_trip_error(steps, shift, iterations):
    sigmas, image = shifted(steps, shift), mixture()
    top = ddim_inversion(image, inversion_sigmas(sigmas), velocity, iterations, noising=FLOW)
    return float((euler(top, sigmas) - image).norm() / image.norm())


# --- inversion -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "shift", "plain", "refined"), [(20, 1, 0.072, 0.0105), (20, 3, 0.105, 0.039), (50, 3, 0.045, 0.0072)]
)
def test_round_trip_errors_are_those_measured_before(steps, shift, plain, refined):
    """By an independent implementation, without and with one fixed-point iteration."""
    assert round_trip_error(steps, shift, 0) == pytest.approx(plain, rel=0.1)
    assert round_trip_error(steps, shift, 1) == pytest.approx(refined, rel=0.1)


@pytest.mark.parametrize(("iterations", "share"), [(0, 0.5), (1, 0.3)])
def test_error_falls_with_the_number_of_steps(iterations, share):
    assert round_trip_error(50, 1, iterations) < share * round_trip_error(20, 1, iterations)


@pytest.mark.parametrize("shift", [1, 3, 8])
def test_step_with_noise_as_predicted_is_euler_s(shift):
    sigmas = inversion_sigmas(shifted(20, shift))
    assert sigmas[-1] == 1
    got = ddim_inversion(mixture(), sigmas, velocity, noising=FLOW)
    assert relative_error(got, euler(mixture(), sigmas)) < 1e-12


def test_fixed_point_is_what_the_step_down_leads_back_from():
    image, sigmas = mixture(200), torch.tensor([0.5, 0.55], dtype=torch.float64)
    top = ddim_inversion(image, sigmas, velocity, 200, noising=FLOW)
    assert relative_error(euler(top, sigmas.flip(0)), image) < 1e-12


def test_walk_is_ddim_in_the_coordinates_of_added_noise():
    """y = x / (1 - s) is an image with noise of level S = s / (1 - s) added; the noise is changed before its use."""
    sigmas = inversion_sigmas(shifted(20, 3)[1:])  # below 1, where y is infinite

    def noise_in(y, level):
        sigma = level / (1 + level)
        return (y - denoised(y * (1 - sigma), sigma)) / level

    settings = dict(regularise=lambda noise: 0.9 * noise + 0.1)
    got = ddim_inversion(mixture(), sigmas, velocity, noising=FLOW, **settings)
    y = ddim_inversion(mixture() / (1 - sigmas[0]), sigmas / (1 - sigmas), noise_in, **settings)
    assert relative_error(got, (1 - sigmas[-1]) * y) < 1e-12


@pytest.mark.parametrize("iterations", [0, 1])
def test_end_of_a_walk_to_sigma_1_is_the_regularised_noise(iterations):
    used = []

    def regularise(noise):
        used.append(0.9 * noise + 0.1)
        return used[-1]

    sigmas = inversion_sigmas(shifted(20, 3))
    top = ddim_inversion(mixture(), sigmas, velocity, iterations, noising=FLOW, regularise=regularise)
    assert relative_error(top, used[-1]) < 1e-12


# --- steps of RePaint ------------------------------------------------------------------------------------------------


def assert_at_level(x, image, sigma):
    """x is (1 - sigma) image + sigma n in mean, variance and covariance with the image, within five standard errors."""
    noise = x - (1 - sigma) * image
    error = 5 * float(sigma) / len(x) ** 0.5
    assert abs(float(noise.mean())) <= error + 1e-12
    assert abs(float((noise * image).mean())) <= error * float(image.square().mean().sqrt()) + 1e-12
    assert float(noise.var()) == pytest.approx(float(sigma) ** 2, rel=5 * (2 / len(x)) ** 0.5, abs=1e-20)


@pytest.mark.parametrize(("sigma", "higher"), [(0.3, 0.5), (0.5, 0.9), (0.9, 1.0), (0.02, 0.04), (0.0, 0.2)])
def test_renoised_latent_has_the_higher_level(sigma, higher):
    image, (sigma, higher) = mixture(40000), torch.tensor([sigma, higher], dtype=torch.float64)
    x = (1 - sigma) * image + sigma * normal(40000, 2)
    assert_at_level(renoise(x, sigma, higher, normal(40000, 3), FLOW), image, higher)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("sigma", "lower"), [(1.0, 0.9), (0.8, 0.3), (0.04, 0.02), (0.1, 0.0)])
def test_step_down_has_the_lower_level(sigma, lower, eta):
    image, (sigma, lower) = mixture(40000), torch.tensor([sigma, lower], dtype=torch.float64)
    x = (1 - sigma) * image + sigma * normal(40000, 2)
    assert_at_level(ddim_step(x, image, sigma, lower, eta, normal(40000, 3), FLOW), image, lower)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize(("sigma", "lower"), [(0.8, 0.3), (0.04, 0.02), (0.1, 0.0)])
def test_step_down_is_that_of_added_noise_in_its_coordinates(sigma, lower, eta):
    x, image, fresh = mixture(100), normal(100, 2), normal(100, 3)
    sigma, lower = torch.tensor([sigma, lower], dtype=torch.float64)
    levels = sigma / (1 - sigma), lower / (1 - lower)
    expected = (1 - lower) * ddim_step(x / (1 - sigma), image, *levels, eta, fresh)
    assert relative_error(ddim_step(x, image, sigma, lower, eta, fresh, FLOW), expected) < 1e-12


def test_step_down_without_eta_is_euler_s():
    x, (sigma, lower) = mixture(), torch.tensor([1.0, 0.8], dtype=torch.float64)
    got = ddim_step(x, denoised(x, sigma), sigma, lower, 0.0, 0, FLOW)
    assert relative_error(got, euler(x, torch.stack([sigma, lower]))) < 1e-12


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_noise_has_its_level_after_every_step_and_jump(eta):
    image, sigmas, x = mixture(40000), shifted(6, 3), normal(40000, 2)
    for step, (before, after) in enumerate(pairwise(repaint_levels(6, 3, 3))):
        sigma, sigma_after, fresh = sigmas[before], sigmas[after], normal(40000, 3 + step)
        if after > before:
            x = ddim_step(x, image, sigma, sigma_after, eta, fresh, FLOW)
        else:
            x = renoise(x, sigma, sigma_after, fresh, FLOW)
        assert_at_level(x, image, sigma_after)


# --- regularisation --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flow_matching", [False, True])
def test_frames_of_a_video_are_regularised_as_alone(flow_matching):
    noise = 0.5 + toy.noise(2, 3, 4, 20, 12)
    together = regularised_noise(noise, NoiseRegularisation(), generator(), flow_matching)
    for frame in range(4):
        alone = regularised_noise(noise[:, :, frame], NoiseRegularisation(), generator(), flow_matching)
        assert relative_error(together[:, :, frame], alone) < 1e-6


@pytest.mark.parametrize("shape", [(2, 16, 24, 20), (1, 4, 64, 64), (1, 16, 3, 12, 10)], ids=str)
def test_lambdas_grow_with_the_number_of_values_of_an_image(shape):
    noise = 1 + toy.noise(*shape)
    scale = shape[1] * shape[-2] * shape[-1] / 16384
    scaled = regularised_noise(noise, NoiseRegularisation(scale * 20, scale * 20), generator())
    assert relative_error(regularised_noise(noise, NoiseRegularisation(), generator(), True), scaled) < 1e-6


def test_image_of_low_variance_takes_no_kl_step():
    noise = toy.noise(3, 4, 16, 16) * torch.tensor([1.0, 0.04**0.5, 0.06**0.5])[:, None, None, None]
    settings = NoiseRegularisation(lambda_auto_corr=0.0, steps=1)
    moved = (regularised_noise(noise, settings, generator(), flow_matching=True) != noise).flatten(1).any(dim=1)
    assert moved.tolist() == [True, False, True]
    assert bool((regularised_noise(noise, settings, generator()) != noise).flatten(1).any(dim=1).all())


def test_step_on_a_video_is_down_the_gradients_of_its_frames():
    video, settings = 1 + 2 * toy.noise(2, 3, 2, 12, 20).double(), NoiseRegularisation(7.0, 3.0, steps=1, rolls=1)
    shifts, scale = draw_shifts(video[:, :, 0], (), generator()), 3 * 12 * 20 / 16384

    def descended(values, loss, step):
        values = values.clone().requires_grad_()
        total = sum(loss(values[:, :, frame]).sum() for frame in range(2))
        return (values - step * torch.autograd.grad(total, values)[0]).detach()

    expected = descended(video, lambda frame: auto_correlation_loss(frame, shifts), 7 * scale)
    expected = descended(expected, kl_loss, 3 * scale)
    assert relative_error(regularised_noise(video, settings, generator(), True), expected) < 1e-12


# --- added noise -----------------------------------------------------------------------------------------------------


def test_steps_of_added_noise_are_plain_arithmetic_to_the_bit():
    x, image, fresh = (toy.noise(1, 4, 8, 8, seed=seed) for seed in range(3))
    sigma, higher = torch.tensor([3.7, 9.1])
    assert torch.equal(renoise(x, sigma, higher, fresh), x + (higher**2 - sigma**2).sqrt() * fresh)
    tau = 0.4 * sigma * (1 - (sigma / higher) ** 2).clamp(min=0).sqrt()
    down = image + (sigma**2 - tau**2).sqrt() * (x - image) / higher + tau * fresh
    assert torch.equal(ddim_step(x, image, higher, sigma, 0.4, fresh), down)
    up = ddim_inversion(x, torch.stack([sigma, higher]), lambda x, sigma: fresh)
    assert torch.equal(up, x + (higher - sigma) * fresh)
