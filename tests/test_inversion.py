"""EBCA Invert on ComfyUI's models: against a chain of core nodes, and what it accepts and refuses."""
from __future__ import annotations

import copy
import functools
from itertools import pairwise

import numpy as np
import pytest
import torch
from comfy import model_management
from comfy import samplers as comfy_samplers
from comfy.model_sampling import IMG_TO_IMG, ModelSamplingDiscrete

from ebca_core import NoiseRegularisation, regularised_noise
from shapes.drawing import draw, random_picture
from shapes.grammar import Scene, Wanted
from support import progress, shapes, toy
from support.host import PromptError, node
from support.log_messages import messages, refused
from support.sampling import relative_error

OFF = dict(lambda_auto_corr=0.0, lambda_kl=0.0)
CAPTION = toy.conditioning(1)


def picture(batch=1, height=16, width=16, seed=5, channels=4):
    return {"samples": 0.8 * toy.noise(batch, channels, height, width, seed=seed)}


def inverted(comfy, model, latent, caption=CAPTION, **inputs):
    """The inverted LATENT and its NOISE."""
    inputs = {"steps": 6, "scheduler": "normal", **inputs}
    return node(comfy, "EBCAInvert").execute(model=model, caption=caption, latent=latent, **inputs)


def sigmas_of(comfy, model, steps=6, scheduler="normal"):
    return node(comfy, "BasicScheduler").execute(model=model, scheduler=scheduler, steps=steps, denoise=1.0)[0]


def core_chain(comfy, model, latent, sigmas, caption=CAPTION):
    """Inversion with core nodes alone: flipped sigmas, no added noise, euler."""
    (flipped,) = node(comfy, "FlipSigmas").execute(sigmas=sigmas)
    (sampler,) = node(comfy, "KSamplerSelect").execute(sampler_name="euler")
    return node(comfy, "SamplerCustom").execute(
        model=model, add_noise=False, noise_seed=0, cfg=1.0, positive=caption, negative=caption, sampler=sampler,
        sigmas=flipped, latent_image=latent,
    )[0]["samples"]  # fmt: skip


def sampled(comfy, model, latent, caption=CAPTION, negative=CAPTION, **inputs):
    inputs = {
        "steps": 6, "cfg": 1.0, "sampler_name": "euler", "scheduler": "normal", "end_at_step": 10000,
        "return_with_leftover_noise": "enable" if "end_at_step" in inputs else "disable", **inputs,
    }  # fmt: skip
    return node(comfy, "KSamplerAdvanced").execute(
        model=model, add_noise="disable", noise_seed=0, positive=caption, negative=negative, latent_image=latent,
        start_at_step=0, **inputs,
    )[0]["samples"]  # fmt: skip


def sampled_custom(comfy, model, noise, latent, sigmas, caption=CAPTION):
    (guider,) = node(comfy, "CFGGuider").execute(model=model, positive=caption, negative=caption, cfg=1.0)
    (sampler,) = node(comfy, "KSamplerSelect").execute(sampler_name="euler")
    return node(comfy, "SamplerCustomAdvanced").execute(
        noise=noise, guider=guider, sampler=sampler, sigmas=sigmas, latent_image=latent
    )[0]["samples"]


# --- against core nodes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["sd1", "sd2_v", "sdxl"])
def test_without_regularisation_it_is_a_chain_of_core_nodes(comfy, family):
    model, latent = toy.model(family), picture()
    expected = core_chain(comfy, model, latent, sigmas_of(comfy, model))
    assert relative_error(inverted(comfy, model, latent, **OFF)[0]["samples"], expected) < 1e-6


@pytest.mark.parametrize("scheduler", ["normal", "karras", "simple", "ddim_uniform", "sgm_uniform", "beta"])
def test_schedulers_are_those_of_ksampler(comfy, scheduler):
    model, latent = toy.model(), picture()
    sigmas = comfy_samplers.KSampler(model, 6, "cpu", "euler", scheduler).sigmas
    expected = core_chain(comfy, model, latent, sigmas)
    got = inverted(comfy, model, latent, scheduler=scheduler, **OFF)[0]["samples"]
    assert relative_error(got, expected) < 1e-6


@pytest.mark.parametrize("off", [dict(reg_steps=0), dict(rolls=0, lambda_kl=0.0), OFF], ids=str)
def test_every_way_to_switch_regularisation_off_is_the_same(comfy, off):
    model, latent = toy.model(), picture()
    assert torch.equal(
        inverted(comfy, model, latent, **off)[0]["samples"], inverted(comfy, model, latent, reg_steps=0)[0]["samples"]
    )


@pytest.mark.parametrize("family", ["sd1", "sd2_v"])
def test_regularised_walk_by_hand(comfy, family):
    """Each step: one Euler step of core's sampler, whose noise is regularised before it is used."""
    model, latent = toy.model(family), picture(height=24)
    sigmas = sigmas_of(comfy, model).flip(0)
    sigmas[0] = 1e-4
    scale, generator = model.model.latent_format.scale_factor, torch.Generator().manual_seed(3)
    x = latent["samples"].double() * scale
    for sigma, sigma_next in pairwise(sigmas):
        step = core_chain(comfy, model, {"samples": (x / scale).float()}, torch.stack([sigma_next, sigma]))
        noise = (step.double() * scale - x) / (sigma_next - sigma).double()
        noise = regularised_noise(noise.float(), NoiseRegularisation(30.0, 10.0), generator)
        x = x + (sigma_next - sigma).double() * noise
    got = inverted(comfy, model, latent, lambda_auto_corr=30.0, lambda_kl=10.0, seed=3)[0]["samples"]
    assert relative_error(got * scale, x) < 2e-4  # the first step divides a rounding error by a sigma of 1e-4


def test_wired_sigmas_replace_steps_and_scheduler(comfy):
    model, latent = toy.model(), picture()
    sigmas = sigmas_of(comfy, model, 4, "karras")
    got = inverted(comfy, model, latent, steps=9, sigmas=sigmas, **OFF)[0]["samples"]
    assert torch.equal(got, inverted(comfy, model, latent, steps=4, scheduler="karras", **OFF)[0]["samples"])


def test_part_of_the_way(comfy):
    model, latent = toy.model(), picture()
    sigmas = sigmas_of(comfy, model)[3:]
    expected = core_chain(comfy, model, latent, sigmas)
    assert relative_error(inverted(comfy, model, latent, sigmas=sigmas, **OFF)[0]["samples"], expected) < 1e-6


# --- there and back, on a model that knows its pictures --------------------------------------------------------------


@pytest.fixture(scope="module")
def drawn(comfy):
    """MODEL, the LATENT of two drawn pictures and a CONDITIONING that describes each."""
    model, clip, vae = shapes.load(comfy)
    rng = np.random.default_rng(0)
    pictures = [random_picture(rng, 1) for _ in range(2)]
    captions = [Scene((Wanted(p.things[0].colour, p.things[0].shape),), ground=p.ground).caption() for p in pictures]
    contexts = [clip.encode_from_tokens_scheduled(clip.tokenize(caption))[0][0] for caption in captions]
    latent = {"samples": vae.encode(torch.from_numpy(np.stack([draw(p) for p in pictures])).float())}
    return model, latent, [[torch.cat(contexts), {}]]


@pytest.fixture(scope="module")
def round_trip_error(comfy, drawn):
    """A function of the steps, the fixed-point iterations and the MODEL: how far the picture is that comes back."""
    plain, latent, caption = drawn

    @functools.cache
    def error(steps, iterations=0, model=plain):
        top = inverted(comfy, model, latent, caption, steps=steps, fixed_point_iterations=iterations, **OFF)[0]
        return float((sampled(comfy, model, top, caption, caption, steps=steps) - latent["samples"]).abs().mean())

    return error


@pytest.mark.slow
@pytest.mark.parametrize("steps", [10, pytest.param(20, marks=pytest.mark.nightly)])
def test_more_steps_bring_the_picture_back_more_exactly(round_trip_error, steps):
    assert round_trip_error(2 * steps) < 0.8 * round_trip_error(steps)


@pytest.mark.slow
def test_one_fixed_point_iteration_brings_it_back_more_exactly(round_trip_error):
    errors = [round_trip_error(20, iterations) for iterations in (0, 1)]
    assert errors[1] < 0.6 * errors[0]


@pytest.mark.slow
def test_update_on_both_ways_round_trips_too(comfy, drawn, round_trip_error):
    (model,) = node(comfy, "EBCAContextUpdate").execute(model=drawn[0], gamma_attn=0.02, gamma_norm=0.02)
    assert round_trip_error(20, 1, model) < 1.5 * round_trip_error(20, 1)


@pytest.mark.slow
def test_regularised_noise_is_whiter(comfy, drawn):
    model, latent, caption = drawn
    plain, white = (inverted(comfy, model, latent, caption, steps=20, **kind)[0]["samples"] for kind in (OFF, {}))
    sigma = float(sigmas_of(comfy, model)[0])
    assert 1 < (white / sigma).std() < (plain / sigma).std()


# --- the noise output ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["sd1", "sd2_v", "sdxl"])
@pytest.mark.parametrize("part", [0, 3], ids=["whole run", "part of a run"])
def test_noise_starts_a_run_on_the_picture_at_the_inverted_latent(comfy, family, part):
    model, latent = toy.model(family), picture(batch=2)
    sigmas = sigmas_of(comfy, model)[part:]
    top, noise = inverted(comfy, model, latent, sigmas=sigmas, **OFF)
    (no_noise,) = node(comfy, "DisableNoise").execute()
    expected = sampled_custom(comfy, model, no_noise, top, sigmas)
    for image in (latent, {"samples": torch.zeros_like(latent["samples"])}):
        assert relative_error(sampled_custom(comfy, model, noise, image, sigmas), expected) < 1e-4


def test_under_a_noise_mask_the_rest_of_the_picture_stays_exactly(comfy):
    model, latent = toy.model(), picture()
    sigmas, mask = sigmas_of(comfy, model), torch.zeros(1, 16, 16)
    mask[:, 4:12, 4:12] = 1
    _, noise = inverted(comfy, model, latent, sigmas=sigmas)
    out = sampled_custom(comfy, model, noise, {**latent, "noise_mask": mask}, sigmas, toy.conditioning(2))
    outside = mask[:, None].expand_as(out) == 0
    assert torch.allclose(out[outside], latent["samples"][outside], rtol=0, atol=1e-6)
    assert not torch.allclose(out[~outside], latent["samples"][~outside], atol=0.1)


def test_noise_for_a_latent_of_another_size_is_refused(comfy):
    _, noise = inverted(comfy, toy.model(), picture())
    with pytest.raises(ValueError, match=r"shape \[1, 4, 16, 8\], but the inverted one has \[1, 4, 16, 16\].*Connect"):
        noise.generate_noise(picture(width=8))


# --- sizes, batches, masks -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), [(16, 24), (9, 13), (64, 8), (8, 8)])
def test_any_size(comfy, height, width):
    model, latent = toy.model(), picture(height=height, width=width)
    top = inverted(comfy, model, latent)[0]["samples"]
    assert top.shape == latent["samples"].shape
    assert torch.isfinite(top).all()


def test_images_of_a_batch_are_inverted_as_alone(comfy):
    model, latent = toy.model(), picture(batch=3)
    together = inverted(comfy, model, latent)[0]["samples"]
    alone = [inverted(comfy, model, {"samples": image[None]})[0]["samples"] for image in latent["samples"]]
    assert relative_error(together, torch.cat(alone)) < 3e-4  # float32 rounding, after a division by a sigma of 1e-4


def test_latent_passes_on_neither_mask_nor_more(comfy):
    latent = {**picture(), "noise_mask": torch.ones(1, 16, 16), "batch_index": [0]}
    top, _ = inverted(comfy, toy.model(), latent)
    assert torch.equal(top["samples"], inverted(comfy, toy.model(), picture())[0]["samples"])
    assert "noise_mask" not in top


def test_same_seed_same_noise(comfy):
    model, latent = toy.model(), picture(height=24)
    first, again, other = (inverted(comfy, model, latent, seed=seed)[0]["samples"] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_inputs_and_model_are_left_alone(comfy):
    model, latent = toy.model(), picture()
    before, sigmas = latent["samples"].clone(), sigmas_of(comfy, model)
    given = sigmas.clone()
    inverted(comfy, model, latent, sigmas=sigmas)
    assert torch.equal(latent["samples"], before)
    assert torch.equal(sigmas, given)


def test_no_gradients_and_no_second_model(comfy, monkeypatch):
    model = toy.model()
    monkeypatch.setattr(torch.autograd, "grad", _refuse)
    monkeypatch.setattr(torch.autograd, "backward", _refuse)
    monkeypatch.setattr(torch.nn.Module, "__deepcopy__", _refuse, raising=False)
    with pytest.raises(AssertionError):
        copy.deepcopy(model.model.diffusion_model)
    inverted(comfy, model, picture())


def _refuse(*args, **kwargs):
    raise AssertionError


# --- progress and interruption ---------------------------------------------------------------------------------------


def test_progress_goes_over_all_steps_with_a_preview(comfy, monkeypatch):
    seen = progress.recorded(monkeypatch)
    inverted(comfy, toy.model(), picture(), steps=5, fixed_point_iterations=2)
    assert [(value, total) for value, total, _ in seen] == [(i, 5) for i in range(1, 6)]
    assert all(preview is not None for *_, preview in seen)


def test_interruption_ends_it(comfy, monkeypatch):
    seen = progress.interrupted_at(monkeypatch, 2)
    with pytest.raises(model_management.InterruptProcessingException):
        inverted(comfy, toy.model(), picture(), steps=20)
    assert len(seen) <= 3


# --- runs that do not retrace it -------------------------------------------------------------------------------------


@pytest.fixture
def updated(comfy):
    return node(comfy, "EBCAContextUpdate").execute(model=toy.model(), gamma_attn=0.001)[0]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (dict(steps=5), "6 steps up to sigma 14.61, but the sampler has 5 steps"),
        (dict(steps=9), "6 steps up to sigma 14.61, but the sampler has 9 steps"),
        (dict(end_at_step=3), None),
        (dict(scheduler="karras"), "with other sigmas"),
        (dict(sampler_name="euler_ancestral"), "sampler euler_ancestral does not reverse the inversion"),
        (dict(sampler_name="dpmpp_2m"), "sampler dpmpp_2m does not reverse the inversion"),
        ({}, None),
        (dict(sampler_name="ddim"), None),
    ],
    ids=str,
)
def test_run_with_ebca_says_what_does_not_fit(comfy, updated, caplog, changes, said):
    latent, _ = inverted(comfy, toy.model(), picture())
    caplog.clear()
    sampled(comfy, updated, latent, **changes)
    found = messages(caplog)
    assert len(found) == (said is not None)
    assert all(said in message for message in found)


def test_run_with_ebca_says_that_noise_is_added(comfy, updated, caplog):
    latent, _ = inverted(comfy, toy.model(), picture())
    node(comfy, "KSampler").execute(
        model=updated, positive=CAPTION, negative=CAPTION, latent_image=latent, steps=6, cfg=1.0,
        sampler_name="euler", scheduler="normal", denoise=1.0,
    )  # fmt: skip
    assert "adds noise to the inverted latent" in caplog.text


@pytest.mark.parametrize(("steps", "said"), [(6, False), (4, True)])
def test_run_from_the_noise_output_says_what_does_not_fit(comfy, updated, caplog, steps, said):
    latent = picture()
    _, noise = inverted(comfy, toy.model(), latent)
    sampled_custom(comfy, updated, noise, latent, sigmas_of(comfy, toy.model(), steps))
    assert ("The inversion has 6 steps" in caplog.text) == said


def test_run_from_another_latent_says_nothing(comfy, updated, caplog):
    latent, _ = inverted(comfy, toy.model(), picture())
    sampled(comfy, updated, {"samples": latent["samples"] * 1}, steps=3)
    assert "inversion" not in caplog.text


# --- refusals --------------------------------------------------------------------------------------------------------


def image_to_image():
    """A MODEL that makes an image of an image, without noise, as Lotus does."""
    model, sampling = toy.model(), type("Sampling", (ModelSamplingDiscrete, IMG_TO_IMG), {})()
    model.add_object_patch("model_sampling", sampling)
    return model


def test_model_without_noise_is_refused(comfy):
    refused(lambda: inverted(comfy, image_to_image(), picture()), "predicts neither noise", "velocity", "SD 1.x")


def test_sigmas_of_another_kind_of_model_are_refused(comfy):
    (model,) = node(comfy, "ModelSamplingSD3").execute(model=toy.model(), shift=3.0)
    sigmas = sigmas_of(comfy, toy.model())
    parts = "start at 1 at most", "14.61", "scheduler for this model"
    refused(lambda: inverted(comfy, model, picture(), sigmas=sigmas), *parts)


def test_model_with_edits_is_refused(comfy):
    (edit,) = node(comfy, "EBCAEditContext").execute(conditioning=toy.conditioning(2))
    (model,) = node(comfy, "EBCACompose").execute(model=toy.model(), edits={"edit0": edit})
    refused(lambda: inverted(comfy, model, picture()), "has edits from EBCA Compose", "before EBCA Compose")


@pytest.mark.parametrize(
    "samples",
    [torch.ones(1, 16, 16, 16), torch.ones(1, 4, 2, 16, 16), torch.ones(4, 16, 16), torch.ones(0, 4, 16, 16)],
    ids=lambda samples: str(list(samples.shape)),
)
def test_latent_of_another_shape_is_refused(comfy, samples):
    refused(lambda: inverted(comfy, toy.model(), {"samples": samples}), "latent", "Encode")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_latent_that_is_not_finite_is_refused(comfy, value):
    latent = picture()
    latent["samples"][0, 0, 0, 0] = value
    refused(lambda: inverted(comfy, toy.model(), latent), "latent has numbers that are not finite", "image")


NOT_FALLING = [[0.0, 1.0, 14.0], [1.0], [], [2.0, 2.0, 0.0], [2.0, float("nan"), 0.0], [[2.0, 1.0]], [1.0, 0.0, -1.0]]


@pytest.mark.parametrize("sigmas", NOT_FALLING, ids=str)
def test_sigmas_that_do_not_fall_are_refused(comfy, sigmas):
    sigmas = torch.tensor(sigmas)
    parts = "at least two decreasing numbers", "FlipSigmas"
    refused(lambda: inverted(comfy, toy.model(), picture(), sigmas=sigmas), *parts)


def test_noise_that_explodes_is_said(comfy):
    refused(
        lambda: inverted(comfy, toy.model(), picture(), lambda_kl=1000.0, reg_steps=100, steps=3),
        "inversion has no finite numbers", "Lower lambda_auto_corr and lambda_kl",
    )  # fmt: skip


def test_refusal_reaches_the_user_through_the_executor(comfy, run_prompt, monkeypatch):
    monkeypatch.setitem(comfy.NODE_CLASS_MAPPINGS, "ToyModel", _toy_node("MODEL", image_to_image))
    monkeypatch.setitem(comfy.NODE_CLASS_MAPPINGS, "ToyPrompt", _toy_node("CONDITIONING", lambda: CAPTION))
    prompt = {
        "1": {"class_type": "ToyModel", "inputs": {}},
        "2": {"class_type": "ToyPrompt", "inputs": {}},
        "3": {"class_type": "EmptyLatentImage", "inputs": {"width": 128, "height": 128, "batch_size": 1}},
        "4": {
            "class_type": "EBCAInvert",
            "inputs": {
                "model": ["1", 0], "caption": ["2", 0], "latent": ["3", 0], "steps": 4, "scheduler": "normal",
                "lambda_auto_corr": 20.0, "lambda_kl": 20.0, "reg_steps": 5, "rolls": 5, "seed": 0,
            },
        },
        "5": {"class_type": "EBCASaveInversion", "inputs": {"latent": ["4", 0], "filename_prefix": "x"}},
    }  # fmt: skip
    with pytest.raises(PromptError, match="predicts neither noise"):
        run_prompt(prompt)


def _toy_node(kind, make):
    return type("Toy", (), {
        "INPUT_TYPES": classmethod(lambda cls: {"required": {}}), "RETURN_TYPES": (kind,), "FUNCTION": "make",
        "CATEGORY": "tests", "make": lambda self: (make(),),
    })  # fmt: skip
