"""Inversion and RePaint on every transformer family that tests/test_flow_*.py leave out, and RePaint with EBCA."""

from __future__ import annotations

import pytest
import torch

from support import toy, toy_dit
from support.host import node
from support.sampling import relative_error
from support.transformer_runs import ebca

OFF = dict(lambda_auto_corr=0.0, lambda_kl=0.0)


def sampled(comfy, model, family, sampler, noise, latent, steps, negative=None, cfg=1.0):
    positive = toy_dit.conditioning(family, 1)
    (sigmas,) = node(comfy, "BasicScheduler").execute(model=model, scheduler="simple", steps=steps, denoise=1.0)
    (guider,) = node(comfy, "CFGGuider").execute(
        model=model, positive=positive, negative=negative or positive, cfg=cfg
    )
    return node(comfy, "SamplerCustomAdvanced").execute(
        noise=noise, guider=guider, sampler=sampler, sigmas=sigmas, latent_image=latent
    )[0]["samples"]


@pytest.mark.parametrize("family", ["wan_i2v", "wan_vace", "ltxv", "kandinsky5", "hydit"])
def test_inverted_picture_comes_back_more_exactly_after_a_fixed_point_iteration(comfy, family):
    model = toy_dit.model(family)
    to_outside = model.get_model_object("latent_format").process_out
    latent = {"samples": to_outside(toy.noise(*toy_dit.shape(family), seed=5))}
    (euler,) = node(comfy, "KSamplerSelect").execute(sampler_name="euler")

    def round_trip_error(iterations):
        _, noise = node(comfy, "EBCAInvert").execute(
            model=model, caption=toy_dit.conditioning(family, 1), latent=latent, steps=20, scheduler="simple",
            fixed_point_iterations=iterations, **OFF,
        )  # fmt: skip
        back = sampled(comfy, model, family, euler, noise, latent, 20)
        return float((back - latent["samples"]).norm() / latent["samples"].norm())

    plain, refined = round_trip_error(0), round_trip_error(1)
    assert refined < 0.5 * plain
    assert refined < 0.2


@pytest.mark.parametrize("family", ["wan", "kandinsky5", "hydit"])
def test_repaint_with_an_update_and_edits_equals_the_loop(comfy, pack, family):
    """It visits noise levels several times, and edits carry their change on at each of them."""
    shape = toy_dit.shape(family)
    mask = (toy.noise(1, *shape[-2:], seed=31) > 0).float()
    latent = {"samples": toy.noise(*shape, seed=5), "noise_mask": mask}
    (sampler,) = node(comfy, "EBCARePaintSampler").execute(jump_length=1, jump_n_sample=2, eta=0.0)
    (noise,) = node(comfy, "RandomNoise").execute(noise_seed=3)

    def run(model):
        negative = toy_dit.conditioning(family, 2)
        return sampled(comfy, model, family, sampler, noise, latent, 3, negative, 4.0)

    model, case = toy_dit.model(family), ebca(family)
    with case.applied(family, model):
        expected = run(model)
    assert relative_error(run(case.on(comfy, pack, model)), expected) < 1e-5
    assert relative_error(run(model), expected) > 1e-3
    assert torch.isfinite(expected).all()
