"""use_noise_mask: the latent's own mask in the place of one that is wired to EBCA Context Update."""
from __future__ import annotations

import pytest
import torch

from support import toy
from support.host import node
from support.sampling import sample

POSITIVE = toy.conditioning(1)
GAMMAS = dict(gamma_attn=0.05, gamma_norm=0.02)


def updated(comfy, model=None, **inputs):
    return node(comfy, "EBCAContextUpdate").execute(model=model or toy.model(), **GAMMAS, **inputs)[0]


def region(batch=1, height=16, width=24):
    mask = torch.zeros(batch, height, width)
    for image in range(batch):
        mask[image, 2 + image : 9, 5 : 14 + image] = 1
    return mask


def latent(mask, batch=1):
    return {"samples": 0.5 * toy.noise(batch, 4, 16, 24, seed=4), "noise_mask": mask}


def messages(caplog):
    return [record.getMessage() for record in caplog.records if record.name == "ebca"]


@pytest.mark.parametrize("batch", [1, 3])
def test_latent_s_mask_does_what_a_wired_one_does(comfy, batch):
    mask = region(batch)
    wired = sample(updated(comfy, mask=mask), POSITIVE, latent=latent(mask, batch))
    taken = sample(updated(comfy, use_noise_mask=True), POSITIVE, latent=latent(mask, batch))
    assert torch.equal(taken, wired)
    assert not torch.equal(taken, sample(updated(comfy), POSITIVE, latent=latent(mask, batch)))


def test_wired_mask_comes_first(comfy):
    mask, other = region(), 1 - region()
    both = sample(updated(comfy, mask=other, use_noise_mask=True), POSITIVE, latent=latent(mask))
    assert torch.equal(both, sample(updated(comfy, mask=other), POSITIVE, latent=latent(mask)))


def test_off_leaves_the_latent_s_mask_to_the_sampler(comfy):
    plain = sample(updated(comfy), POSITIVE, latent=latent(region()))
    assert torch.equal(sample(updated(comfy, use_noise_mask=False), POSITIVE, latent=latent(region())), plain)


def test_each_update_has_its_own_choice(comfy):
    mask = region()
    taken = updated(comfy, updated(comfy), use_noise_mask=True)
    wired = updated(comfy, updated(comfy), mask=mask)
    assert torch.equal(sample(taken, POSITIVE, latent=latent(mask)), sample(wired, POSITIVE, latent=latent(mask)))


def test_mask_of_one_run_does_not_stay_for_the_next(comfy, caplog):
    model = updated(comfy, use_noise_mask=True)
    sample(model, POSITIVE, latent=latent(region()))
    other = latent(1 - region())
    assert torch.equal(
        sample(model, POSITIVE, latent=other), sample(updated(comfy, mask=1 - region()), POSITIVE, latent=other)
    )
    assert not messages(caplog)


def test_latent_without_a_mask_is_said(comfy, caplog):
    bare = {"samples": latent(None)["samples"]}
    out = sample(updated(comfy, use_noise_mask=True), POSITIVE, latent=bare)
    (message,) = messages(caplog)
    assert "latent has no noise mask" in message
    assert "Set Latent Noise Mask" in message
    assert torch.equal(out, sample(updated(comfy), POSITIVE, latent=bare))


def test_larger_masks_are_taken_as_the_sampler_takes_them(comfy):
    """A mask in pixels reaches the sampler, and so the update, at the latent's size."""
    mask = torch.nn.functional.interpolate(region()[:, None], scale_factor=8, mode="nearest")[:, 0]
    small = torch.nn.functional.interpolate(mask[:, None], size=(16, 24), mode="bilinear")[:, 0]
    taken = sample(updated(comfy, use_noise_mask=True), POSITIVE, latent=latent(mask))
    wired = sample(updated(comfy, mask=small), POSITIVE, latent=latent(mask))
    assert torch.equal(taken, wired)
