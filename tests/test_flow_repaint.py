"""EBCA RePaint Sampler on flow-matching transformers, for images and videos."""
from __future__ import annotations

import sys

import pytest
import torch
from comfy import samplers

from support import toy, toy_dit
from support.host import node
from support.sampling import relative_error

FAMILIES = ["wan", "predict2"]
each_family = pytest.mark.parametrize("family", FAMILIES)


def sampler(comfy, jump_length=2, jump_n_sample=2, eta=0.0):
    return node(comfy, "EBCARePaintSampler").execute(
        jump_length=jump_length, jump_n_sample=jump_n_sample, eta=eta
    )[0]


def painted(comfy, family, latent, chosen=None, model=None, steps=6, sigmas=None):
    """The latent that SamplerCustomAdvanced makes."""
    model = model or toy_dit.model(family)
    if sigmas is None:
        (sigmas,) = node(comfy, "BasicScheduler").execute(model=model, scheduler="simple", steps=steps, denoise=1.0)
    positive, negative = (toy_dit.conditioning(family, seed) for seed in (1, 2))
    (guider,) = node(comfy, "CFGGuider").execute(model=model, positive=positive, negative=negative, cfg=3.0)
    (noise,) = node(comfy, "RandomNoise").execute(noise_seed=3)
    return node(comfy, "SamplerCustomAdvanced").execute(
        noise=noise, guider=guider, sampler=chosen or sampler(comfy), sigmas=sigmas, latent_image=latent
    )[0]["samples"]


def masked(family, frames=1):
    samples = 0.5 * toy.noise(*toy_dit.shape(family, frames=frames), seed=5)
    mask = torch.zeros(1, 1, *samples.shape[2:])
    mask[..., :5, 1:4] = 1
    return {"samples": samples, "noise_mask": mask}


def outside(latent):
    return (latent["noise_mask"] == 0).expand_as(latent["samples"])


@each_family
@pytest.mark.parametrize("mask", [True, False], ids=["mask", "no mask"])
def test_one_sample_without_eta_is_euler_but_for_the_fresh_noise(comfy, monkeypatch, family, mask):
    latent = masked(family, frames=2)
    if not mask:
        del latent["noise_mask"]
    noise = node(comfy, "RandomNoise").execute(noise_seed=3)[0].generate_noise(latent)
    module = sys.modules[type(sampler(comfy)).__module__]
    monkeypatch.setattr(module, "default_noise_sampler", lambda x, seed: lambda *_: noise)
    expected = painted(comfy, family, latent, samplers.sampler_object("euler"))
    assert relative_error(painted(comfy, family, latent, sampler(comfy, 2, 1)), expected) < 1e-5


@each_family
@pytest.mark.parametrize("settings", [(1, 2, 0.0), (2, 3, 0.0), (2, 2, 1.0), (4, 1, 0.3)], ids=str)
def test_known_region_is_the_original(comfy, family, settings):
    latent = masked(family, frames=2)
    out = painted(comfy, family, latent, sampler(comfy, *settings))
    assert torch.allclose(out[outside(latent)], latent["samples"][outside(latent)], rtol=0, atol=1e-5)
    assert not torch.allclose(out[~outside(latent)], latent["samples"][~outside(latent)], atol=0.1)
    assert torch.isfinite(out).all()


# Predict2 gets what is known without noise, from ComfyUI.
@pytest.mark.parametrize(
    ("family", "share"), [("wan", 0.0), ("wan", 0.3), ("wan", 0.8), ("wan", 1.0), ("predict2", 1.0)]
)
@pytest.mark.parametrize("jumps", [(2, 1, 0.0), (2, 3, 0.0), (2, 3, 1.0)], ids=str)
def test_noise_has_its_level_at_every_call(comfy, family, share, jumps):
    """Of an image whose latent is 0 under a model that sees it: whatever share is painted, x is noise of sigma."""
    seen, model = [], toy_dit.model(family)
    scale = model.get_model_object("latent_format")

    def sees_zeros(executor, x, sigma, *args, **more):
        seen.append(float(x.std() / sigma[0]))
        return torch.zeros_like(x)

    model.add_wrapper_with_key("apply_model", "zeros", sees_zeros)
    empty = torch.zeros(1, 16, 2, 32, 32)
    latent = {"samples": scale.process_out(empty), "noise_mask": torch.full((1, 1, 2, 32, 32), share)}
    painted(comfy, family, latent, sampler(comfy, *jumps), model, steps=8)
    assert len(seen) >= 8
    assert all(level == pytest.approx(1, abs=0.03) for level in seen)


def test_frames_have_masks_of_their_own(comfy):
    latent = masked("wan", frames=2)
    latent["noise_mask"][:, :, 1] = 0
    out = painted(comfy, "wan", latent)
    assert torch.allclose(out[:, :, 1], latent["samples"][:, :, 1], rtol=0, atol=1e-5)
    assert not torch.allclose(out[:, :, 0], latent["samples"][:, :, 0], atol=0.1)


def test_model_that_reads_the_mask_itself_is_refused(comfy):
    with pytest.raises(ValueError, match=r"LTXV, which reads the noise mask itself.*own samplers"):
        painted(comfy, "ltxv", masked("ltxv"))


@pytest.mark.parametrize("sigmas", [[14.6, 3.0, 0.5, 0.0], [1.0, 1.0, 0.5, 0.0]], ids=str)
def test_sigmas_of_another_kind_of_model_are_refused(comfy, sigmas):
    with pytest.raises(ValueError, match=r"start at 1 at most.*scheduler for this model"):
        painted(comfy, "wan", masked("wan"), sigmas=torch.tensor(sigmas))
