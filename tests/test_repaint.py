"""EBCA RePaint Sampler in ComfyUI's sampling nodes."""
from __future__ import annotations

import sys

import pytest
import torch
from comfy import model_management, samplers
from comfy.k_diffusion import sampling as k_sampling
from comfy.model_sampling import IMG_TO_IMG, ModelSamplingDiscrete

from support import progress, toy
from support.host import node
from support.log_messages import messages
from support.sampling import relative_error

POSITIVE, NEGATIVE = toy.conditioning(1), toy.conditioning(2)


def sampler(comfy, jump_length=2, jump_n_sample=2, eta=0.0):
    return node(comfy, "EBCARePaintSampler").execute(
        jump_length=jump_length, jump_n_sample=jump_n_sample, eta=eta
    )[0]


def euler():
    return samplers.sampler_object("euler")


def painted(comfy, latent, chosen=None, model=None, steps=6, seed=3, sigmas=None, scheduler="normal"):
    """The latent that SamplerCustomAdvanced makes."""
    model = model or toy.model()
    if sigmas is None:
        (sigmas,) = node(comfy, "BasicScheduler").execute(model=model, scheduler=scheduler, steps=steps, denoise=1.0)
    (guider,) = node(comfy, "CFGGuider").execute(model=model, positive=POSITIVE, negative=NEGATIVE, cfg=3.0)
    (noise,) = node(comfy, "RandomNoise").execute(noise_seed=seed)
    return node(comfy, "SamplerCustomAdvanced").execute(
        noise=noise, guider=guider, sampler=chosen or sampler(comfy), sigmas=sigmas, latent_image=latent
    )[0]["samples"]


def masked(batch=1, height=16, width=16, soft=False):
    """A picture whose noise mask, one for each image, has hard edges or soft ones."""
    mask = torch.zeros(batch, height, width)
    for image in range(batch):
        mask[image, 3 + image : 10 + image, 4:11] = 1
    if soft:
        mask = torch.nn.functional.avg_pool2d(mask, 5, stride=1, padding=2)
    return {"samples": 0.8 * toy.noise(batch, 4, height, width, seed=5), "noise_mask": mask}


def outside(latent):
    return latent["noise_mask"][:, None].expand_as(latent["samples"]) == 0


# --- against ComfyUI's own -------------------------------------------------------------------------------------------


@pytest.fixture
def own_noise(comfy, monkeypatch):
    """Puts the run's own noise in the place of fresh noise, as ComfyUI's inpainting does."""

    def put(latent, seed=3):
        noise = node(comfy, "RandomNoise").execute(noise_seed=seed)[0].generate_noise(latent)
        module = sys.modules[type(sampler(comfy)).__module__]
        monkeypatch.setattr(module, "default_noise_sampler", lambda x, seed: lambda *_: noise)

    return put


@pytest.mark.parametrize("family", ["sd1", "sd2_v", "sdxl"])
def test_one_sample_without_eta_is_euler_but_for_the_fresh_noise(comfy, own_noise, family):
    latent, model = masked(batch=2), toy.model(family)
    own_noise(latent)
    expected = painted(comfy, latent, euler(), model)
    assert relative_error(painted(comfy, latent, sampler(comfy, 2, 1), model), expected) < 1e-5


@pytest.mark.parametrize("soft", [False, True], ids=["hard mask", "soft mask"])
def test_differential_diffusion_is_euler_s_too(comfy, own_noise, soft):
    (model,) = node(comfy, "DifferentialDiffusion").execute(model=toy.model())
    latent, once = masked(soft=soft), sampler(comfy, 2, 1)
    own_noise(latent)
    expected = painted(comfy, latent, euler(), model)
    assert relative_error(painted(comfy, latent, once, model), expected) < 1e-5


def test_without_a_mask_and_jumps_it_is_euler(comfy):
    latent = {"samples": masked()["samples"]}
    assert relative_error(painted(comfy, latent, sampler(comfy, 3, 1)), painted(comfy, latent, euler())) < 1e-5


# --- the known region ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [(1, 2, 0.0), (2, 3, 0.0), (2, 2, 1.0), (4, 1, 0.3)], ids=str)
def test_known_region_is_the_original(comfy, settings):
    latent = masked(batch=2, width=24)
    out = painted(comfy, latent, sampler(comfy, *settings))
    assert torch.allclose(out[outside(latent)], latent["samples"][outside(latent)], rtol=0, atol=1e-6)
    assert not torch.allclose(out[~outside(latent)], latent["samples"][~outside(latent)], atol=0.1)


def test_known_region_holds_when_the_run_ends_early(comfy):
    """A run that stops at a sigma leaves the original with that much noise, whatever the model paints inside: black."""
    latent, stop, model = masked(height=64, width=64), 4, toy.model()
    model.add_wrapper_with_key("apply_model", "black", lambda executor, x, *args: torch.zeros_like(x))
    (sigmas,) = node(comfy, "BasicScheduler").execute(model=model, scheduler="normal", steps=8, denoise=1.0)
    out = painted(comfy, latent, sampler(comfy, 2, 2), model, sigmas=sigmas[: stop + 1])
    left = (out - latent["samples"])[outside(latent)] * 0.18215 / sigmas[stop]
    assert float(left.std()) == pytest.approx(1, abs=0.03)
    assert abs(float(left.mean())) < 0.03


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("jumps", [(2, 1), (2, 3)], ids=["no jumps", "jumps"])
def test_noise_has_its_level_under_a_soft_mask_too(comfy, share, jumps):
    """Of a black picture under a model that sees one: whatever share is painted, x is noise of the level's sigma."""
    seen, model = [], toy.model()

    def black(executor, x, sigma, *args):
        seen.append(float(x.std() / sigma[0]))
        return torch.zeros_like(x)

    model.add_wrapper_with_key("apply_model", "black", black)
    latent = {"samples": torch.zeros(1, 4, 64, 64), "noise_mask": torch.full((1, 64, 64), share)}
    painted(comfy, latent, sampler(comfy, *jumps), model, steps=8)
    assert len(seen) >= 8
    assert all(level == pytest.approx(1, abs=0.03) for level in seen)


def test_fresh_noise_in_the_known_region_at_every_call(comfy):
    seen, model, latent = [], toy.model(), masked()
    model.add_wrapper_with_key("apply_model", "see", lambda executor, x, *args: (seen.append(x), executor(x, *args))[1])
    painted(comfy, latent, sampler(comfy, 2, 2), model)
    known = latent["samples"] * 0.18215
    noises = [(x[:1] - known)[outside(latent)] for x in seen]
    levels = [float(noise.std()) for noise in noises]
    assert len(noises) == 10
    assert all(abs(float((a * b).mean())) < 0.15 * a.std() * b.std() for i, a in enumerate(noises) for b in noises[:i])
    assert levels[0] == max(levels)


# --- a sampler like others -------------------------------------------------------------------------------------------


def test_same_seed_same_picture(comfy):
    first, again, other = (painted(comfy, masked(), seed=seed) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_fresh_noise_is_not_the_run_s_own(comfy):
    latent = masked()
    noise = node(comfy, "RandomNoise").execute(noise_seed=3)[0].generate_noise(latent)
    fresh = k_sampling.default_noise_sampler(latent["samples"], seed=3)(None, None)
    assert abs(float((noise * fresh).mean())) < 0.1


@pytest.mark.parametrize("scheduler", ["karras", "simple", "sgm_uniform", "beta"])
def test_any_schedule(comfy, scheduler):
    latent = masked()
    out = painted(comfy, latent, scheduler=scheduler)
    assert torch.allclose(out[outside(latent)], latent["samples"][outside(latent)], rtol=0, atol=1e-6)


def test_progress_counts_every_call_of_the_model(comfy, monkeypatch):
    seen, calls, model = progress.recorded(monkeypatch), [], toy.model()
    model.add_wrapper_with_key("apply_model", "count", lambda executor, *args: (calls.append(1), executor(*args))[1])
    painted(comfy, masked(), sampler(comfy, 2, 3), model)
    assert [(value, total) for value, total, _ in seen] == [(i + 1, len(calls)) for i in range(len(calls))]
    assert len(calls) == 14
    assert all(preview is not None for *_, preview in seen)


def test_interruption_ends_it(comfy, monkeypatch):
    seen = progress.interrupted_at(monkeypatch, 2)
    with pytest.raises(model_management.InterruptProcessingException):
        painted(comfy, masked(), sampler(comfy, 2, 10), steps=20)
    assert len(seen) <= 3


def test_model_without_noise_is_refused(comfy):
    model, sampling = toy.model(), type("Sampling", (ModelSamplingDiscrete, IMG_TO_IMG), {})()
    model.add_object_patch("model_sampling", sampling)
    with pytest.raises(ValueError, match=r"SD15, which predicts neither noise.*own samplers"):
        painted(comfy, masked(), model=model)


def test_run_too_short_for_its_jumps_says_so(comfy, caplog):
    painted(comfy, masked(), sampler(comfy, 6, 2), steps=6)
    (message,) = messages(caplog)
    assert "no jumps: the run has 6 steps and jump_length is 6" in message


def test_latent_without_a_mask_says_so(comfy, caplog):
    painted(comfy, {"samples": masked()["samples"]})
    (message,) = messages(caplog)
    assert "has no noise mask" in message


def test_good_run_says_nothing(comfy, caplog):
    painted(comfy, masked())
    assert not messages(caplog)


def test_rising_sigmas_are_refused(comfy):
    with pytest.raises(ValueError, match=r"sigmas increase.*FlipSigmas"):
        painted(comfy, masked(), sigmas=torch.tensor([0.1, 1.0, 5.0]))


def test_sampler_that_another_node_wraps_is_refused(comfy):
    """As packs do that put a function of their own around the model."""
    inner = sampler(comfy)

    def wrapping(model, x, sigmas, **kwargs):
        return inner.sampler_function(lambda *a, **k: model(*a, **k), x, sigmas, **kwargs, **inner.extra_options)

    with pytest.raises(ValueError, match=r"Another node wraps EBCA RePaint Sampler.*directly to"):
        painted(comfy, masked(), samplers.KSAMPLER(wrapping))


def test_update_of_the_prompt_works_in_it(comfy):
    (model,) = node(comfy, "EBCAContextUpdate").execute(model=toy.model(), gamma_attn=0.05, gamma_norm=0.05)
    latent = masked()
    assert not torch.allclose(painted(comfy, latent, model=model), painted(comfy, latent), atol=1e-4)
