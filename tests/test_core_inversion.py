"""Noise regularisation and the walk up the sigmas: the authors' numbers, autograd, and a process solved by hand."""
from __future__ import annotations

import math
from functools import partial
from itertools import pairwise

import pytest
import torch

from ebca_core import NoiseRegularisation, ddim_inversion, inversion_sigmas, regularised_noise
from ebca_core.noise_regularisation import (
    auto_correlation_gradient,
    auto_correlation_loss,
    draw_shifts,
    kl_gradient,
    kl_loss,
    pyramid,
)
from support import reference, toy
from support.sampling import relative_error

SETTINGS, TENSORS = reference.load("reference_inversion_a")
SHAPES = [(2, 4, 64, 64), (1, 4, 16, 40), (2, 3, 41, 17), (1, 1, 9, 8), (1, 4, 5, 90), (1, 2, 1, 6)]


def generator(seed=1234):
    return torch.Generator().manual_seed(seed)


def gradient_of(loss, noise):
    noise = noise.clone().requires_grad_()
    return torch.autograd.grad(loss(noise).sum(), noise)[0]


# --- the authors' numbers --------------------------------------------------------------------------------------------


def test_losses_are_the_authors():
    noise = TENSORS["epsilon"]
    shifts = draw_shifts(noise, (), generator())
    assert relative_error(auto_correlation_loss(noise, shifts), TENSORS["auto_corr_loss"]) < 1e-5
    assert relative_error(kl_loss(noise), TENSORS["kl_loss"]) < 1e-5


def test_gradients_are_the_authors():
    noise = TENSORS["epsilon"]
    shifts = draw_shifts(noise, (), generator())
    assert relative_error(auto_correlation_gradient(noise, shifts), TENSORS["auto_corr_grad"]) < 1e-5
    assert relative_error(kl_gradient(noise), TENSORS["kl_grad"]) < 1e-5


def test_regularised_noise_is_the_authors():
    settings = SETTINGS["regularized"]
    asked = NoiseRegularisation(
        settings["lambda_auto_corr"], settings["lambda_kl"], settings["reg_steps"], settings["rolls"]
    )
    assert asked == NoiseRegularisation()  # the defaults
    noise = TENSORS["epsilon"]
    change = regularised_noise(noise, asked, generator()) - noise
    assert relative_error(change, TENSORS["regularized"] - noise) < 1e-5


# --- gradients -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_auto_correlation_gradient_is_that_of_autograd(shape):
    noise = 1 + 2 * toy.noise(*shape).double()
    shifts = draw_shifts(noise, (), generator())
    expected = gradient_of(lambda x: auto_correlation_loss(x, shifts), noise)
    assert relative_error(auto_correlation_gradient(noise, shifts), expected) < 1e-12


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_kl_gradient_is_that_of_autograd(shape):
    noise = 1 + 2 * toy.noise(*shape).double()
    assert relative_error(kl_gradient(noise), gradient_of(kl_loss, noise)) < 1e-12


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_auto_correlation_loss_is_the_sum_over_channels_levels_and_axes(shape):
    noise = toy.noise(*shape).double()
    shifts = draw_shifts(noise, (), generator())
    for image, loss in zip(noise, auto_correlation_loss(noise, shifts)):
        expected = 0.0
        for channel, values in enumerate(image):
            for level, shift in enumerate(shifts[:, channel].tolist()):
                if level:
                    rows, columns = values.shape
                    values = values[: rows // 2 * 2, : columns // 2 * 2].reshape(rows // 2, 2, columns // 2, 2)
                    values = values.mean(dim=(1, 3))
                for axis in (0, 1):
                    expected += (values * values.roll(shift, axis)).mean() ** 2
        assert float(loss) == pytest.approx(float(expected), rel=1e-12)


def test_pyramid_of_a_picture_ends_by_its_shorter_side():
    sizes = [tuple(level.shape[-2:]) for level in pyramid(torch.zeros(1, 1, 40, 70))]
    assert sizes == [(40, 70), (20, 35), (10, 17), (5, 8)]
    assert len(pyramid(torch.zeros(1, 1, 8, 512))) == 1


# --- regularisation --------------------------------------------------------------------------------------------------


def test_each_step_is_rolls_steps_down_one_loss_and_one_down_the_other():
    noise, asked = 1 + toy.noise(2, 3, 20, 12), NoiseRegularisation(7.0, 3.0, steps=2, rolls=3)
    expected, drawn = noise.double(), draw_shifts(noise, (2, 3), generator())
    for step in range(2):
        for roll in range(3):
            loss = partial(auto_correlation_loss, shifts=drawn[step, roll])
            expected = expected - 7.0 / 3 * gradient_of(loss, expected)
        expected = expected - 3.0 * gradient_of(kl_loss, expected)
    assert relative_error(regularised_noise(noise, asked, generator()), expected) < 1e-5


def test_batch_does_to_each_image_what_happens_to_it_alone():
    noise = toy.noise(3, 4, 24, 16)
    together = regularised_noise(noise, NoiseRegularisation(), generator())
    alone = [regularised_noise(image[None], NoiseRegularisation(), generator()) for image in noise]
    assert relative_error(together, torch.cat(alone)) < 1e-6


def test_noise_with_the_shape_of_a_picture_becomes_whiter():
    image = torch.linspace(-1, 1, 64).expand(1, 4, 64, 64)
    noise, shifts = 1.5 * toy.noise(1, 4, 64, 64) + image, torch.full((4, 4), 3)
    whiter = regularised_noise(noise, NoiseRegularisation(), generator())
    assert auto_correlation_loss(whiter, shifts) < 0.9 * auto_correlation_loss(noise, shifts)
    assert kl_loss(whiter) < kl_loss(noise)


@pytest.mark.parametrize(
    "off",
    [
        NoiseRegularisation(steps=0),
        NoiseRegularisation(lambda_auto_corr=0, lambda_kl=0),
        NoiseRegularisation(rolls=0, lambda_kl=0),
    ],
    ids=str,
)
def test_off_changes_nothing(off):
    noise = toy.noise(1, 4, 16, 16)
    assert off.is_off
    assert torch.equal(regularised_noise(noise, off, generator()), noise)


def test_one_loss_alone():
    noise = 1 + toy.noise(1, 4, 16, 16)
    one_step = dict(steps=1, rolls=1)
    kl = regularised_noise(noise, NoiseRegularisation(0.0, 2.0, **one_step), generator())
    assert relative_error(kl, noise - 2 * kl_gradient(noise)) < 1e-6
    auto = regularised_noise(noise, NoiseRegularisation(2.0, 0.0, **one_step), generator())
    shifts = draw_shifts(noise, (), generator())
    assert relative_error(auto, noise - 2 * auto_correlation_gradient(noise, shifts)) < 1e-6


def test_shifts_are_uniform_below_half_the_rows():
    shifts = draw_shifts(torch.zeros(1, 4, 32, 200), (500,), generator())
    assert shifts.shape == (500, 3, 4)
    for level, rows in enumerate((32, 16, 8)):
        counts = torch.bincount(shifts[:, level].flatten(), minlength=rows // 2)
        assert len(counts) == rows // 2
        assert counts.min() > 0.7 * 2000 / (rows // 2)


# --- the walk --------------------------------------------------------------------------------------------------------

SIGMAS = torch.tensor([14.6, 8.0, 4.0, 2.0, 1.0, 0.4, 0.1, 0.0], dtype=torch.float64)


def gaussian_noise(x, sigma, std=0.5):
    """The noise in x if pictures are normal of this std: (x - E[picture | x]) / sigma."""
    return x * sigma / (std**2 + sigma**2)


def way_up(start, sigma, std=0.5):
    """Where the probability flow of `gaussian_noise` carries a picture: the ratio of spreads."""
    return start * math.sqrt(std**2 + sigma**2) / std


def euler_down(x, sigmas):
    for sigma, sigma_next in pairwise(sigmas):
        x = x + (sigma_next - sigma) * gaussian_noise(x, sigma)
    return x


def test_inversion_sigmas_begin_above_zero_and_leave_the_given_ones_alone():
    given = SIGMAS.clone()
    assert inversion_sigmas(given).tolist() == [1e-4, *reversed(SIGMAS.tolist()[:-1])]
    assert torch.equal(given, SIGMAS)
    assert inversion_sigmas(SIGMAS[:4]).tolist() == [2.0, 4.0, 8.0, 14.6]


@pytest.mark.parametrize("iterations", [0, 1, 3])
def test_walk_approaches_the_probability_flow(iterations):
    picture = toy.noise(1, 1, 4, 4).double()
    errors = []
    for steps in (20, 80, 320):
        sigmas = torch.linspace(0.1, 1.5, steps + 1, dtype=torch.float64)
        start = way_up(picture, 0.1)
        end = ddim_inversion(start, sigmas, gaussian_noise, iterations)
        errors.append(relative_error(end, way_up(picture, 1.5)))
    assert errors[1] < 0.3 * errors[0]
    assert errors[2] < 0.3 * errors[1]  # first order: four times the steps, a quarter of the error


def test_fixed_point_iterations_make_the_way_down_lead_back():
    picture = toy.noise(1, 1, 4, 4).double()
    errors = []
    for iterations in (0, 1, 2, 8, 60):
        top = ddim_inversion(picture, inversion_sigmas(SIGMAS), gaussian_noise, iterations)
        errors.append(relative_error(euler_down(top, SIGMAS), picture))
    assert errors == sorted(errors, reverse=True)
    assert errors[1] < 0.7 * errors[0]
    assert errors[-1] < 1e-3


@pytest.mark.parametrize(("iterations", "calls"), [(0, 7), (1, 8), (3, 22)])
def test_one_iteration_costs_no_more_than_none_but_the_first_call(iterations, calls):
    seen = []

    def predict_noise(x, sigma):
        seen.append(float(sigma))
        return x

    ddim_inversion(torch.ones(1), inversion_sigmas(SIGMAS), predict_noise, iterations)
    assert len(seen) == calls


def test_every_step_is_reported():
    seen = []
    top = ddim_inversion(torch.ones(1), inversion_sigmas(SIGMAS), gaussian_noise, 0, lambda i, x: seen.append((i, x)))
    assert [i for i, _ in seen] == list(range(7))
    assert seen[-1][1] is top
