"""EBCA Invert on flow-matching transformers, for images and videos: against core's Euler steps, and there and back."""
from __future__ import annotations

from functools import partial
from itertools import pairwise
from pathlib import Path

import folder_paths
import pytest
import torch
from comfy import samplers as comfy_samplers
from einops import rearrange

from ebca_core import NoiseRegularisation, regularised_noise
from ebca_core.noise_regularisation import auto_correlation_loss, draw_shifts, kl_loss
from support import toy, toy_dit
from support.host import node
from support.sampling import relative_error

OFF = dict(lambda_auto_corr=0.0, lambda_kl=0.0)
FAMILIES = ["wan", "predict2"]
each_family = pytest.mark.parametrize("family", FAMILIES)


def picture(family, batch=1, frames=None):
    """A LATENT of variance 1 in the scale of the model."""
    scale = toy_dit.model(family).get_model_object("latent_format")
    return {"samples": scale.process_out(toy.noise(*toy_dit.shape(family, batch, frames), seed=5))}


def model_of(comfy, family):
    """The tiny model; Wan with the shift recommended for inversion."""
    model = toy_dit.model(family)
    return node(comfy, "ModelSamplingSD3").execute(model=model, shift=3.0)[0] if family == "wan" else model


def inverted(comfy, model, family, latent, **inputs):
    """The inverted LATENT and its NOISE."""
    inputs = {"steps": 6, "scheduler": "simple", **inputs}
    caption = toy_dit.conditioning(family)
    return node(comfy, "EBCAInvert").execute(model=model, caption=caption, latent=latent, **inputs)


def sigmas_of(comfy, model, steps=6):
    return node(comfy, "BasicScheduler").execute(model=model, scheduler="simple", steps=steps, denoise=1.0)[0]


def sampled(comfy, model, family, noise, latent, sigmas, sampler="euler"):
    caption = toy_dit.conditioning(family)
    (guider,) = node(comfy, "CFGGuider").execute(model=model, positive=caption, negative=caption, cfg=1.0)
    (sampler,) = node(comfy, "KSamplerSelect").execute(sampler_name=sampler)
    return node(comfy, "SamplerCustomAdvanced").execute(
        noise=noise, guider=guider, sampler=sampler, sigmas=sigmas, latent_image=latent
    )[0]["samples"]


class Given:
    """A NOISE of one's own."""

    seed = 0

    def __init__(self, noise):
        self.noise = noise

    def generate_noise(self, latent):
        return self.noise


def stepped(comfy, model, family, x, sigma, sigma_next):
    """x after one Euler step of core's sampler, up or down, in the scale of the model."""
    sampling, scaled = model.get_model_object("model_sampling"), model.get_model_object("latent_format")
    top = float(sampling.sigma_max)
    one = torch.ones_like(x)
    plain = sampling.noise_scaling(sigma, torch.zeros_like(x), torch.zeros_like(x), float(sigma) >= top)
    factor = sampling.noise_scaling(sigma, one, torch.zeros_like(x), float(sigma) >= top) - plain
    empty = {"samples": torch.zeros_like(x)}
    out = sampled(comfy, model, family, Given(x / factor), empty, torch.stack([sigma, sigma_next]))
    out = scaled.process_in(out)
    return out * (1 - sigma_next) if family == "wan" else out


def relative_distance(got, expected):
    return float((got - expected).norm() / expected.norm())


# --- against core ----------------------------------------------------------------------------------------------------


@each_family
def test_walk_is_core_s_euler_steps(comfy, family):
    """With noise as predicted; the last step of Wan ends at sigma 1, where core's own result is infinite."""
    model, latent = model_of(comfy, family), picture(family)
    sigmas = sigmas_of(comfy, model).flip(0)
    sigmas[0] = 1e-4
    x = model.get_model_object("latent_format").process_in(latent["samples"])
    x = x * (1 - sigmas[0]) if family == "wan" else x
    for sigma, sigma_next in pairwise(sigmas[:-1]):
        x = stepped(comfy, model, family, x, sigma, sigma_next)
    top, _ = inverted(comfy, model, family, latent, sigmas=sigmas[:-1].flip(0), fixed_point_iterations=0, **OFF)
    if family == "wan":
        assert relative_error(top["samples"] * sigmas[-2], x) < 1e-3
    else:
        assert relative_error(model.get_model_object("latent_format").process_in(top["samples"]), x) < 1e-3


@each_family
def test_regularised_step_by_hand(comfy, family):
    """Core's Euler step tells the derivative; the noise in it is regularised, and the step taken again with it."""
    model, latent = model_of(comfy, family), picture(family, frames=3)
    scaled = model.get_model_object("latent_format")
    low, high = torch.tensor([0.4, 0.6])
    x = scaled.process_in(latent["samples"])
    x = (1 - low) * x if family == "wan" else x
    derivative = (stepped(comfy, model, family, x, low, high) - x) / (high - low)
    noise = x + (1 - low) * derivative if family == "wan" else derivative
    noise = regularised_noise(noise, NoiseRegularisation(30.0, 10.0), torch.Generator().manual_seed(3), True)
    settings = dict(lambda_auto_corr=30.0, lambda_kl=10.0, seed=3, fixed_point_iterations=0)
    top, _ = inverted(comfy, model, family, latent, sigmas=torch.stack([high, low]), **settings)
    if family == "wan":
        expected = x * (1 - high) / (1 - low) + noise * (high - low) / (1 - low)
        assert relative_error(top["samples"] * high, expected) < 1e-4
    else:
        assert relative_error(scaled.process_in(top["samples"]), x + (high - low) * noise) < 1e-4


# --- there and back --------------------------------------------------------------------------------------------------


def round_trip_error(comfy, family, steps, image=None, sampler="euler", frames=None, **inputs):
    """From the NOISE, which starts on any latent of the same size."""
    model, latent = model_of(comfy, family), picture(family, frames=frames)
    _, noise = inverted(comfy, model, family, latent, steps=steps, **inputs)
    image = latent if image is None else image
    back = sampled(comfy, model, family, noise, image, sigmas_of(comfy, model, steps), sampler)
    return relative_distance(back, latent["samples"])


@each_family
def test_one_fixed_point_iteration_brings_the_picture_back_more_exactly(comfy, family):
    plain, refined = (round_trip_error(comfy, family, 20, fixed_point_iterations=n, **OFF) for n in (0, 1))
    assert refined < 0.5 * plain
    assert refined < 0.05


@each_family
def test_it_is_the_default(comfy, family):
    model, latent = model_of(comfy, family), picture(family)
    default, one = (inverted(comfy, model, family, latent, **kind)[0] for kind in ({}, dict(fixed_point_iterations=1)))
    assert torch.equal(default["samples"], one["samples"])


@each_family
def test_more_steps_bring_the_picture_back_more_exactly(comfy, family):
    few, many = (round_trip_error(comfy, family, steps, **OFF) for steps in (10, 40))
    assert many < 0.5 * few


@each_family
@pytest.mark.parametrize("change", [dict(frames=3), dict(sampler="ddim")], ids=["video", "ddim"])
def test_video_and_ddim_come_back_too(comfy, family, change):
    assert round_trip_error(comfy, family, 20, **OFF, **change) < 0.1


@each_family
def test_noise_starts_on_any_latent(comfy, family):
    image = {"samples": torch.zeros(toy_dit.shape(family))}
    assert round_trip_error(comfy, family, 20, image, **OFF) < 0.05


def test_saved_inversion_is_the_noise(comfy):
    """At sigma 1 the noise is x itself; loaded, it starts the same run."""
    model, latent = model_of(comfy, "wan"), picture("wan")
    made, noise = inverted(comfy, model, "wan", latent)
    assert relative_error(made["samples"], noise.generate_noise(latent)) < 1e-6
    (saved,) = _save(comfy, made)
    loaded, again, _ = node(comfy, "EBCALoadInversion").execute(file=saved, model=model)
    assert torch.equal(loaded["samples"], made["samples"])
    assert torch.equal(again.generate_noise(latent), noise.generate_noise(latent))


def _save(comfy, made):
    """The names, as EBCA Load Inversion knows them, of the files that saving wrote."""
    folder = Path(folder_paths.get_output_directory())
    before = set(folder.rglob("*.latent"))
    node(comfy, "EBCASaveInversion").execute(latent=made, filename_prefix="flow")
    return [f"{path.relative_to(folder).as_posix()} [output]" for path in set(folder.rglob("*.latent")) - before]


def test_part_of_the_way(comfy):
    """From a sigma below 1 the noise and the latent that it starts on both matter."""
    model, latent = model_of(comfy, "wan"), picture("wan")
    sigmas = sigmas_of(comfy, model, 20)[8:]
    _, noise = inverted(comfy, model, "wan", latent, sigmas=sigmas, **OFF)
    for image in (latent, {"samples": torch.zeros_like(latent["samples"])}):
        back = sampled(comfy, model, "wan", noise, image, sigmas)
        assert relative_distance(back, latent["samples"]) < 0.05


# --- regularisation --------------------------------------------------------------------------------------------------


@each_family
def test_regularised_noise_is_whiter(comfy, family):
    model, shape = model_of(comfy, family), (1, 16, 2, 24, 24)
    image = torch.linspace(-2, 2, 24).expand(shape) + 0.3 * toy.noise(*shape)
    latent = {"samples": model.get_model_object("latent_format").process_out(image)}

    def losses(**settings):
        _, noise = inverted(comfy, model, family, latent, steps=20, **settings)
        frames = rearrange(noise.generate_noise(latent), "b c t h w -> (b t) c h w")
        shifts = draw_shifts(frames, (20,), torch.Generator().manual_seed(0))
        return sum(auto_correlation_loss(frames, shift).mean() for shift in shifts) / 20, kl_loss(frames).mean()

    plain, white = losses(**OFF), losses()
    assert white[0] < 0.9 * plain[0]
    assert white[1] < 0.9 * plain[1]


@each_family
def test_images_of_a_batch_are_inverted_as_alone(comfy, family):
    model, latent = model_of(comfy, family), picture(family, batch=2, frames=2)
    together = inverted(comfy, model, family, latent)[0]["samples"]
    alone = [inverted(comfy, model, family, {"samples": image[None]})[0]["samples"] for image in latent["samples"]]
    assert relative_error(together, torch.cat(alone)) < 1e-3


# --- what is said ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 16, 8), (1, 4, 1, 8, 8), (0, 16, 1, 8, 8)], ids=str)
def test_latent_of_another_shape_is_refused(comfy, shape):
    with pytest.raises(ValueError, match=r"latent (is|has)"):
        inverted(comfy, toy_dit.model("wan"), "wan", {"samples": torch.ones(shape)})


def test_latent_of_an_image_becomes_a_video_of_one_frame(comfy):
    latent = {"samples": picture("wan")["samples"][:, :, 0]}
    assert list(inverted(comfy, toy_dit.model("wan"), "wan", latent)[0]["samples"].shape) == toy_dit.shape("wan")


def test_run_that_does_not_start_from_the_noise_says_so(comfy, pack):
    model, latent = model_of(comfy, "wan"), picture("wan")
    made, noise = inverted(comfy, model, "wan", latent)
    mismatches = partial(
        pack.comfyui_binding.samplers.inversion_record.run_mismatches,
        latent_image=made["samples"], sampler=comfy_samplers.sampler_object("euler"), sigmas=sigmas_of(comfy, model),
    )  # fmt: skip
    (said,) = mismatches(torch.zeros_like(made["samples"]))
    assert "does not start from the inverted noise" in said
    assert "noise output" in said
    assert not mismatches(noise.generate_noise(latent))


@pytest.mark.parametrize(
    ("sampler", "is_said"),
    [
        ({"class_type": "KSamplerAdvanced", "inputs": {"latent_image": ["invert", 0], "sampler_name": "euler",
                                                       "add_noise": "disable"}}, True),
        ({"class_type": "SamplerCustomAdvanced", "inputs": {"latent_image": ["invert", 0], "sampler": ["euler", 0],
                                                            "noise": ["random", 0]}}, True),
        ({"class_type": "SamplerCustomAdvanced", "inputs": {"latent_image": ["invert", 0], "sampler": ["euler", 0],
                                                            "noise": ["invert", 1]}}, False),
    ],
    ids=["latent alone", "other noise", "noise"],
)  # fmt: skip
def test_graph_that_does_not_start_from_the_noise_says_so(comfy, pack, sampler, is_said):
    made, _ = inverted(comfy, toy_dit.model("wan"), "wan", picture("wan"))
    prompt = {
        "invert": {"class_type": "EBCAInvert", "inputs": {}},
        "euler": {"class_type": "KSamplerSelect", "inputs": {"sampler_name": "euler"}},
        "random": {"class_type": "RandomNoise", "inputs": {"noise_seed": 1}},
        "sampler": sampler,
    }
    module = pack.comfyui_binding.samplers.inversion_record
    found = module.mismatches(made["ebca_inversion"].record, prompt, "invert")
    assert len(found) == is_said
    assert all("does not start from the inverted noise" in problem for problem in found)


@each_family
def test_caption_of_another_width_is_refused_with_both_widths(comfy, family):
    text, extra = toy_dit.conditioning(family)[0]
    inputs = {"model": model_of(comfy, family), "latent": picture(family), "caption": [[text[..., 1:], extra]]}
    with pytest.raises(ValueError, match=rf"width {text.shape[-1] - 1}, but .* width {text.shape[-1]}\. Encode it"):
        node(comfy, "EBCAInvert").execute(**inputs, steps=1)
