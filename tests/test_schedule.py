"""EBCA Schedule: the curves, and that a strength follows them."""

from __future__ import annotations

import math

import pytest
import torch

from ebca_core import SHAPES, Schedule, Window, smallest_denominator
from support import toy
from support.host import node
from support.log_messages import refused
from support.sampling import relative_error, sample, sample_sigmas

ACTIVE = dict(gamma_attn=0.04, gamma_norm=0.03)
WHOLE = dict(start_percent=0.0, end_percent=1.0, gamma_start_percent=0.0, gamma_end_percent=1.0)


def schedule(comfy, **inputs):
    return node(comfy, "EBCASchedule").execute(**inputs)[0]


def updated(comfy, model, **inputs):
    return node(comfy, "EBCAContextUpdate").execute(model=model, **{**ACTIVE, **inputs})[0]


def composed(comfy, model, **inputs):
    inputs = {**WHOLE, "alpha": 0.6, "gamma_attn": 0.004, "gamma_norm": 0.003, **inputs}
    edit = node(comfy, "EBCAEditContext").execute(conditioning=toy.conditioning(7), **inputs)[0]
    return node(comfy, "EBCACompose").execute(model=model, edits={"edit0": edit})[0]


def run(model, **options):
    return sample(model, toy.conditioning(1), latent=toy.latent(1, 8, 8), **options)


# --- the curves ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape != "constant"])
@pytest.mark.parametrize(("start", "end"), [(1.0, 0.1), (0.2, 3.0)])
def test_curve_goes_from_start_to_end_and_never_back(shape, start, end):
    curve = Schedule(shape, start, end, Window(0.2, 0.7))
    values = [curve.factor(percent / 100) for percent in range(101)]
    assert values[:21] == [start] * 21
    assert values[70:] == pytest.approx([end] * 31)
    assert sorted(values, reverse=start > end) == values


def test_curves_are_what_they_are_called():
    quarters = [0.0, 0.25, 0.5, 0.75, 1.0]
    linear, exponential, cosine, constant = (
        [Schedule(shape, 1.0, 0.16).factor(p) for p in quarters]
        for shape in ("linear", "exponential", "cosine", "constant")
    )
    assert linear == pytest.approx([1.0, 0.79, 0.58, 0.37, 0.16])  # even differences
    assert exponential == pytest.approx([1.0, 0.16**0.25, 0.4, 0.4 * 0.16**0.25, 0.16])  # even ratios
    assert cosine[2] == pytest.approx(0.58)
    assert cosine[1] - 0.58 == pytest.approx(0.42 * math.cos(math.pi / 4))
    assert constant == [1.0] * 5


@pytest.mark.parametrize(
    ("inputs", "parts"),
    [
        (dict(shape="exponential", end_factor=0.0), ("above 0", "0.01")),
        (dict(start_percent=0.6, end_percent=0.6), ("start_percent", "0.6")),
        (dict(start_factor=math.nan), ("start_factor", "nan")),
    ],
)
def test_curves_that_cannot_be_are_refused(comfy, inputs, parts):
    refused(lambda: schedule(comfy, **{"shape": "linear", **inputs}), *parts)


# --- along the run ---------------------------------------------------------------------------------------------------


def percents_of(model, sigmas):
    """The share of the noise schedule of each sigma: SD's timesteps count down from 999."""
    sampling = model.get_model_object("model_sampling")
    return [1 - float(sampling.timestep(sigma)) / 999 for sigma in sigmas]


SHAPED = dict(start_factor=1.0, end_factor=0.1, start_percent=0.1, end_percent=0.9)


@pytest.mark.parametrize(("shape", "family"), [("linear", "sd1"), ("exponential", "sd2_v"), ("cosine", "sdxl")])
def test_scheduled_update_is_one_of_other_gammas_at_each_sigma(comfy, shape, family):
    """Against a chain of updates, one for each sigma: its gammas are the product, its window holds there alone."""
    plain = toy.model(family)
    sigmas = torch.tensor([12.0, 5.0, 2.0, 0.8, 0.3, 0.0])
    factor = Schedule(shape, 1.0, 0.1, Window(0.1, 0.9)).factor
    by_hand = plain
    for percent in percents_of(plain, sigmas[:-1]):
        gammas = {name: gamma * factor(percent) for name, gamma in ACTIVE.items()}
        by_hand = updated(comfy, by_hand, **gammas, start_percent=percent - 0.01, end_percent=percent + 0.01)
    scheduled = updated(comfy, plain, schedule=schedule(comfy, shape=shape, **SHAPED))

    def run(model):
        noise = toy.noise(1, 4, 8, 8)
        return sample_sigmas(model, noise, sigmas, toy.conditioning(1), toy.conditioning(99), 4.0)

    expected = run(by_hand)
    assert relative_error(run(scheduled), expected) < 3e-5  # timesteps are whole numbers
    assert relative_error(run(updated(comfy, plain)), expected) > 1e-3


@pytest.mark.parametrize("family", ["sd1", "sd2_v", "sdxl"])
@pytest.mark.parametrize("factor", [0.5, 1.0])
def test_constant_schedule_is_a_factor(comfy, family, factor):
    constant = schedule(comfy, shape="constant", start_factor=factor)
    model = toy.model(family)
    scaled = {name: factor * gamma for name, gamma in ACTIVE.items()}
    assert torch.equal(run(updated(comfy, model, schedule=constant)), run(updated(comfy, model, **scaled)))
    edit = dict(alpha=0.6 * factor, gamma_attn=0.004 * factor, gamma_norm=0.003 * factor)
    scheduled = composed(comfy, model, alpha_schedule=constant, gamma_schedule=constant)
    assert torch.equal(run(scheduled), run(composed(comfy, model, **edit)))


def test_window_of_the_strength_holds_beside_the_schedule(comfy):
    fading = schedule(comfy, shape="constant", start_factor=0.5)
    halved = {name: gamma / 2 for name, gamma in ACTIVE.items()}
    window = dict(start_percent=0.2, end_percent=0.6)
    both = run(updated(comfy, toy.model(), schedule=fading, **window), steps=8)
    assert torch.equal(both, run(updated(comfy, toy.model(), **halved, **window), steps=8))
    assert not torch.equal(both, run(updated(comfy, toy.model(), schedule=fading), steps=8))


# --- off means off ---------------------------------------------------------------------------------------------------

OFF = [dict(shape="linear", start_factor=0.0, end_factor=0.0), dict(shape="constant", start_factor=0.0, end_factor=2.0)]


@pytest.mark.parametrize("off", OFF)
def test_zero_schedule_installs_nothing(comfy, off):
    model, zero = toy.model(), schedule(comfy, **off)
    assert updated(comfy, model, schedule=zero) is model
    assert composed(comfy, model, alpha_schedule=zero, gamma_schedule=zero) is model


@pytest.mark.parametrize("off", OFF)
def test_zero_schedule_of_one_strength_leaves_the_other(comfy, off):
    zero = schedule(comfy, **off)
    assert torch.equal(
        run(composed(comfy, toy.model(), gamma_schedule=zero)),
        run(composed(comfy, toy.model(), gamma_attn=0.0, gamma_norm=0.0)),
    )
    moved = composed(comfy, toy.model(), alpha_schedule=zero)
    assert torch.equal(run(moved), run(composed(comfy, toy.model(), alpha=0.0)))


@pytest.mark.parametrize("nodes", [
    lambda comfy, model, rising: updated(comfy, model, schedule=rising),
    lambda comfy, model, rising: composed(comfy, model, alpha_schedule=rising, gamma_schedule=rising),
], ids=["update", "edit"])  # fmt: skip
def test_while_the_factor_is_zero_the_run_is_the_plain_one(comfy, nodes):
    rising = schedule(comfy, shape="linear", start_factor=0.0, end_factor=1.0, start_percent=0.5, end_percent=1.0)
    model = nodes(comfy, toy.model(), rising)
    early = dict(steps=8, last_step=3)
    assert torch.equal(run(model, **early), run(toy.model(), **early))
    assert not torch.equal(run(model, steps=8), run(toy.model(), steps=8))


# --- the composition's denominator -----------------------------------------------------------------------------------


def test_denominator_follows_the_schedules():
    whole, fading, rising = Window(), Schedule("linear", 1.0, 0.0), Schedule("linear", 0.0, 1.0)
    one, two = [-0.8], [-0.8, -0.8]
    assert smallest_denominator(one, [whole], [None], [fading]) == pytest.approx(0.2)
    assert smallest_denominator(two, [whole] * 2, [None] * 2, [fading, rising]) == pytest.approx(0.2)
    assert smallest_denominator(two, [whole] * 2, [None] * 2, [fading, None]) == pytest.approx(-0.6)
    late = Window(0.75, 1.0)
    assert smallest_denominator(one, [late], [None], [fading]) == pytest.approx(0.8)
    bent = [Schedule("cosine", 1.0, 0.0), Schedule("exponential", 0.01, 1.0)]
    least = min(1 - 0.8 * sum(s.factor(p / 9999) for s in bent) for p in range(10000))
    assert smallest_denominator(two, [whole] * 2, [None] * 2, bent) == pytest.approx(least, abs=1e-4)


def test_schedule_that_could_take_everything_away_is_refused(comfy):
    rising = schedule(comfy, shape="linear", start_factor=1.0, end_factor=3.0)
    inputs = dict(direction="remove", alpha=0.5)
    composed(comfy, toy.model(), **inputs)
    refused(lambda: composed(comfy, toy.model(), **inputs, alpha_schedule=rising), "-0.5", "Schedules multiply")
