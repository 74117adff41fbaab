"""The host of the tests itself: the tiny models run, and ComfyUI without the pack computes the reference."""

import comfy.samplers
import pytest
import torch

from support import reference, toy
from support.host import node
from support.sampling import relative_error, sample, sample_sigmas


@pytest.mark.parametrize("family", toy.FAMILIES)
def test_toy_model_samples_a_finite_image(family):
    out = sample(toy.model(family), toy.conditioning(1))
    assert out.shape == (1, 4, 16, 16)
    assert torch.isfinite(out).all()
    assert out.std() > 0.1


@pytest.mark.parametrize("family", toy.REFUSED)
def test_refused_toy_model_is_built(family):
    assert toy.model(family).model.diffusion_model is not None


@pytest.mark.parametrize(("family", "width"), [("sd1", toy.WIDTH), ("sd2", toy.WIDTH), ("sdxl", toy.WIDTH)])
def test_toy_clip_encodes_any_prompt(comfy, family, width):
    (cond,) = node(comfy, "CLIPTextEncode").execute(clip=toy.clip(family), text="a red circle and a (blue:1.2) square")
    assert cond[0][0].shape == (1, 77, width)
    assert torch.isfinite(cond[0][0]).all()


def test_toy_vae_round_trip_has_the_right_shape():
    vae = toy.vae()
    with torch.inference_mode():
        latent = vae.encode(torch.rand(1, 64, 64, 3))
        assert latent.shape == (1, 4, 8, 8)
        assert vae.decode(latent).shape == (1, 64, 64, 3)


def test_plain_reference_run_is_reproduced():
    settings, tensors = reference.load()
    out = sample_sigmas(
        reference.reference_model(), reference.reference_noise(), tensors["sigmas"],
        [[tensors["positive"], {}]], [[tensors["negative"], {}]], settings["cfg"],
    )  # fmt: skip
    # ComfyUI hands out latents in the model's scale of the file format: undo it.
    assert relative_error(out * 0.18215, tensors["plain/latent"]) < 1e-5


def test_ksampler_node_equals_the_helper(comfy):
    model, positive, negative = toy.model(), toy.conditioning(1), toy.conditioning(99)
    (latent,) = node(comfy, "KSampler").execute(
        model=model, positive=positive, negative=negative, latent_image=toy.latent(),
        seed=0, steps=4, cfg=4.0, sampler_name="euler", scheduler="normal",
    )  # fmt: skip
    assert torch.equal(latent["samples"], sample(model, positive))


def test_run_prompt_gives_the_outputs_of_a_graph(run_prompt):
    outputs = run_prompt({
        "1": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 255}},
        "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
    })  # fmt: skip
    assert len(outputs["2"]["images"]) == 1


def test_v_prediction_toy_predicts_v():
    assert isinstance(toy.model("sd2_v").model.model_sampling, comfy.samplers.comfy.model_sampling.V_PREDICTION)
