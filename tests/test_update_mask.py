"""The context update under a mask: one that is wired, of any size, or the latent's own."""
from __future__ import annotations

import pytest
import torch

from support import oracle, toy
from support.host import node
from support.log_messages import messages
from support.sampling import relative_error, sample
from support.wiring import Ebca

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


# --- a wired mask ----------------------------------------------------------------------------------------------------


def at_latent_size(mask, height=16, width=24):
    """A mask [h, w] at the latent's size: bilinear between the middles of the pixels around a position's middle."""
    rows, columns = mask.shape
    out = torch.zeros(height, width, dtype=torch.float64)
    for y in range(height):
        for x in range(width):
            row = min(max((y + 0.5) * rows / height - 0.5, 0), rows - 1)
            column = min(max((x + 0.5) * columns / width - 0.5, 0), columns - 1)
            top, left = int(row), int(column)
            below, right = min(top + 1, rows - 1), min(left + 1, columns - 1)
            down, across = row - top, column - left
            out[y, x] = (
                (1 - down) * ((1 - across) * mask[top, left] + across * mask[top, right])
                + down * ((1 - across) * mask[below, left] + across * mask[below, right])
            )  # fmt: skip
    return out.float()


@pytest.mark.parametrize(("family", "size"), [
    *(("sd1", size) for size in [(512, 512), (64, 64), (1, 1), (16, 24), (5, 90)]), ("sd1_inpaint", (300, 200)),
], ids=str)  # fmt: skip
def test_mask_of_any_size_by_hand(comfy, pack, family, size):
    mask = (toy.noise(1, *size, seed=9) / 2 + 0.5).clamp(0, 1)
    bare, negative = {"samples": latent(None)["samples"]}, toy.conditioning(99)
    model = toy.model(family)
    got = sample(updated(comfy, model, mask=mask), POSITIVE, negative, latent=bare)
    expected = Ebca([oracle.Update(GAMMAS["gamma_attn"], GAMMAS["gamma_norm"], None, at_latent_size(mask[0])[None])])
    with expected.by_hand(model, POSITIVE, negative):
        by_formula = sample(model, POSITIVE, negative, latent=bare)
    assert relative_error(got, by_formula) < 1e-5


def test_mask_of_zeros_leaves_the_norm_term_alone(comfy):
    bare = {"samples": latent(None)["samples"]}
    zeros = sample(updated(comfy, mask=torch.zeros(1, 32, 32)), POSITIVE, latent=bare)
    (norm_alone,) = node(comfy, "EBCAContextUpdate").execute(
        model=toy.model(), gamma_attn=0.0, gamma_norm=GAMMAS["gamma_norm"]
    )
    assert torch.equal(zeros, sample(norm_alone, POSITIVE, latent=bare))


def test_black_mask_is_said(comfy, caplog):
    updated(comfy, mask=torch.zeros(1, 64, 64))
    node(comfy, "EBCACompose").execute(
        model=toy.model(),
        edits={"edit0": node(comfy, "EBCAEditContext").execute(conditioning=POSITIVE, mask=torch.zeros(1, 8, 8))[0]},
    )
    black = [message for message in messages(caplog) if "black everywhere" in message]
    assert len(black) == 2
    assert all("Load Image" in message for message in black)


def test_black_noise_mask_leaves_nothing_of_an_update_without_norm_term(comfy, caplog):
    black = latent(torch.zeros(1, 16, 24))
    (model,) = node(comfy, "EBCAContextUpdate").execute(
        model=toy.model(), gamma_attn=0.05, gamma_norm=0.0, use_noise_mask=True
    )
    assert torch.equal(sample(model, POSITIVE, latent=black), sample(toy.model(), POSITIVE, latent=black))
    assert not messages(caplog)


def test_norm_term_alone_asks_for_no_mask(comfy, caplog):
    (model,) = node(comfy, "EBCAContextUpdate").execute(
        model=toy.model(), gamma_attn=0.0, gamma_norm=0.02, use_noise_mask=True
    )
    sample(model, POSITIVE, latent={"samples": latent(None)["samples"]})
    assert not messages(caplog)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_plain_noise_mask_is_exact_too(comfy, value):
    plain = latent(torch.full((1, 16, 24), value))
    taken = sample(updated(comfy, use_noise_mask=True), POSITIVE, latent=plain)
    wired = sample(updated(comfy, mask=plain["noise_mask"]), POSITIVE, latent=plain)
    assert torch.equal(taken, wired)


def test_mask_of_ones_is_no_mask(comfy):
    bare = {"samples": latent(None)["samples"]}
    ones = sample(updated(comfy, mask=torch.ones(1, 32, 32)), POSITIVE, latent=bare)
    assert torch.equal(ones, sample(updated(comfy), POSITIVE, latent=bare))


# --- the latent's own ------------------------------------------------------------------------------------------------


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
