"""The host of the tests itself: the tiny models run, and ComfyUI without the pack computes the reference."""

import types

import comfy.ldm.modules.attention as attention
import comfy.samplers
import pytest
import torch
from comfy.ldm.modules.attention import attention_basic

from support import reference, toy
from support.host import node
from support.sampling import relative_error, sample, sample_sigmas


@pytest.mark.parametrize("family", toy.FAMILIES)
def test_toy_model_samples_a_finite_image(family):
    out = sample(toy.model(family), toy.conditioning(1), latent=toy.latent(1, 16, 16))
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


# --- newer versions of ComfyUI, imitated -----------------------------------------------------------------------------


class PreferredAttention:
    """What newer versions set on attention modules, from a checkpoint or a LoRA; here with sharper queries."""

    def function(self, q, *args, **kwargs):
        return attention_basic(1.4 * q, *args, **kwargs)


@pytest.fixture
def newer_host(monkeypatch):
    """`optimized_attention` as newer versions have it: it runs the function that its caller prefers."""
    plain = attention.optimized_attention

    def optimized_attention(*args, preferred_attention=None, **kwargs):
        return getattr(preferred_attention, "function", plain)(*args, **kwargs)

    monkeypatch.setattr(attention, "optimized_attention", optimized_attention)

    def forward(self, x, context=None, value=None, mask=None, transformer_options=None):
        context = x if context is None else context
        q, k, v = self.to_q(x), self.to_k(context), self.to_v(context if value is None else value)
        options = {"attn_precision": self.attn_precision, "transformer_options": transformer_options or {}}
        preferred = getattr(self, "comfy_attention", None)
        run = globals()["optimized_attention"]
        return self.to_out(run(q, k, v, self.heads, preferred_attention=preferred, **options))

    as_in_the_host = types.FunctionType(forward.__code__, vars(attention), argdefs=forward.__defaults__)
    monkeypatch.setattr(attention.CrossAttention, "forward", as_in_the_host)


def sharp_model():
    model = toy.model()
    for module in model.model.diffusion_model.modules():
        if hasattr(module, "attn2"):
            module.attn2.comfy_attention = PreferredAttention()
    return model


def test_attention_that_a_module_prefers_stays_with_a_trace(comfy, newer_host):
    plain = sample(sharp_model(), toy.conditioning(1))
    assert relative_error(plain, sample(toy.model(), toy.conditioning(1))) > 1e-3
    traced, _ = node(comfy, "EBCATrace").execute(model=sharp_model(), attention_maps=True)
    assert torch.equal(sample(traced, toy.conditioning(1)), plain)


def test_edit_equal_to_the_prompt_keeps_the_attention_that_a_module_prefers(comfy, newer_host):
    edit = node(comfy, "EBCAEditContext").execute(
        conditioning=toy.conditioning(1), start_percent=0.0, gamma_attn=0.0, gamma_norm=0.0
    )[0]
    composed = node(comfy, "EBCACompose").execute(model=sharp_model(), edits={"edit0": edit})[0]
    plain = sample(sharp_model(), toy.conditioning(1))
    assert relative_error(sample(composed, toy.conditioning(1)), plain) < 1e-5


def test_update_asks_for_pytorchs_attention(comfy, monkeypatch):
    """The optimized one may be a kernel of low precision."""
    asked = []

    def pytorch(*args, **kwargs):
        asked.append(kwargs["low_precision_attention"])
        return attention_basic(*args, **kwargs)

    monkeypatch.setitem(attention.REGISTERED_ATTENTION_FUNCTIONS, "pytorch", pytorch)
    model = node(comfy, "EBCAContextUpdate").execute(model=toy.model(), gamma_norm=0.0)[0]
    sample(model, toy.conditioning(1), steps=1)
    assert asked == [False] * 4  # the last of five layers has no update


def test_update_without_a_register_of_attention_functions(comfy, monkeypatch):
    """Older versions have the optimized one alone."""
    update = node(comfy, "EBCAContextUpdate").execute(model=toy.model())[0]
    expected = sample(update, toy.conditioning(1))
    monkeypatch.delattr(attention, "get_attention_function")
    assert relative_error(sample(update, toy.conditioning(1)), expected) < 1e-5
