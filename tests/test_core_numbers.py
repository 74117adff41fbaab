"""The update in half precision with keys as large as real models have, and the memory it takes."""
from __future__ import annotations

import importlib

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ebca_core import attention_term, key_step, norm_term
from support import toy
from support.host import node
from support.sampling import relative_error, sample

HALVES = [(torch.float16, 4e-3), (torch.bfloat16, 3e-2)]
HALF_IDS = ["fp16", "bf16"]


def attention(query, key, value, heads):
    def split(x):
        return x.unflatten(-1, (heads, -1)).transpose(1, 2)

    out = torch.nn.functional.scaled_dot_product_attention(split(query), split(key), split(value))
    return out.transpose(1, 2).flatten(2)


def keys_and_queries(width, size, dtype, tokens=77, pixels=256):
    """Keys of entries around `size` and queries around 1, rounded to dtype."""
    return (size * toy.noise(2, tokens, width, seed=1)).to(dtype), toy.noise(2, pixels, width, seed=2).to(dtype)


# --- half precision --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "tolerance"), HALVES, ids=HALF_IDS)
@pytest.mark.parametrize(("width", "size"), [(320, 1.0), (320, 15.0), (640, 30.0), (1280, 60.0)])
@pytest.mark.parametrize("gammas", [(0.01, 0.02), (1e-4, 1e-4), (0.0, 1e-4), (1e-4, 0.0)], ids=str)
def test_half_precision_step_is_close_to_float64(width, size, gammas, dtype, tolerance):
    keys, queries = keys_and_queries(width, size, dtype)
    step = key_step(keys, queries, 8, attention, *gammas)
    expected = key_step(keys.double(), queries.double(), 8, attention, *gammas)
    assert step.dtype == dtype
    assert relative_error(step, expected) < tolerance


@pytest.mark.parametrize(("dtype", "tolerance"), HALVES, ids=HALF_IDS)
def test_norms_beyond_fp16_stay_finite(dtype, tolerance):
    keys = torch.full((1, 77, 320), 15.0, dtype=dtype)  # ||k||^2 = 72000, fp16 ends at 65504
    assert relative_error(norm_term(keys), keys.double() / 77) < tolerance


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=HALF_IDS)
def test_mask_and_token_weights_keep_the_type(dtype):
    keys, queries = keys_and_queries(64, 1.0, dtype)
    mask, token_weights = torch.ones(1, 256, 1, dtype=dtype), torch.ones(1, 77, 1, dtype=dtype)
    assert key_step(keys, queries, 4, attention, 0.01, 0.02, token_weights, mask).dtype == dtype


# --- half precision in a model ---------------------------------------------------------------------------------------


def large_keys(model, size):
    """Keys `size` times as large and queries as much smaller, so that attention stays as soft as it was."""
    with torch.no_grad():
        for name, weight in model.model.diffusion_model.named_parameters():
            if name.endswith("attn2.to_k.weight"):
                weight.mul_(size)
            if name.endswith("attn2.to_q.weight"):
                weight.div_(size)
    return model


def in_type(model, dtype):
    """The model, stored and computed in dtype."""
    config = model.model.model_config
    config.set_inference_dtype(dtype, None)
    base = config.get_model({}, device=torch.device("cpu"))
    base.diffusion_model.load_state_dict(model.model.diffusion_model.state_dict())
    return toy.patcher(base.eval())


def contexts_read(model, positive=None, **options):
    """Every text that a layer takes its values from, in order, in a run on the positive prompt alone."""
    positive = positive or toy.conditioning(1)
    read = []
    layers = [module.attn2 for module in model.model.diffusion_model.modules() if hasattr(module, "attn2")]
    hooks = [layer.to_v.register_forward_pre_hook(lambda _, args: read.append(args[0].double())) for layer in layers]
    try:
        latent = sample(model, positive, cfg=1.0, latent=toy.latent(1, 8, 8), **options)
    finally:
        for hook in hooks:
            hook.remove()
    assert torch.isfinite(latent).all()
    return read


def change_error(half, single):
    """How far a change of a context in half precision is off, less the rounding of the context itself."""
    (start, end), (start_single, end_single) = [(read[0].double(), read[-1].double()) for read in (half, single)]
    error = ((end - start) - (end_single - start_single)).abs()
    return float(error.max()), float((end_single - start_single).abs().max())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=HALF_IDS)
@pytest.mark.parametrize("gammas", [(1e-4, 1e-4), (0.0, 1e-4)], ids=str)
def test_update_in_a_half_precision_model_is_that_of_float32(comfy, gammas, dtype):
    read = []
    for type_ in (dtype, torch.float32):
        # 64 entries of 60: ||k||^2 is far beyond fp16.
        model = in_type(large_keys(toy.model("sd1"), 60.0), type_)
        (model,) = node(comfy, "EBCAContextUpdate").execute(model=model, gamma_attn=gammas[0], gamma_norm=gammas[1])
        read.append(contexts_read(model, steps=1))
    error, change = change_error(*read)
    assert change > 1.0
    assert error < 8 * torch.finfo(dtype).eps  # contexts of up to 4, rounded twice


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=HALF_IDS)
def test_half_precision_holds_where_the_model_asks_for_float32_attention(comfy, dtype):
    read = []
    for type_ in (dtype, torch.float32):
        (model,) = node(comfy, "EBCAContextUpdate").execute(model=in_type(toy.model("sd2"), type_), gamma_attn=0.05)
        read.append(contexts_read(model, steps=1))
    error, change = change_error(*read)
    assert error < 0.05 * change + 2 * torch.finfo(dtype).eps


def test_small_gamma_in_fp16_keeps_small_queries(comfy):
    """1e-4 times queries of 1e-3 is nothing in fp16; the change that comes of it is not."""
    read, faint = [], [[toy.conditioning(1)[0][0] * 0.001, toy.conditioning(1)[0][1]]]
    for type_ in (torch.float16, torch.float32):
        model = in_type(large_keys(toy.model("sd1"), 300.0), type_)
        (model,) = node(comfy, "EBCAContextUpdate").execute(model=model, gamma_attn=1e-4, gamma_norm=0.0)
        read.append(contexts_read(model, faint, steps=1))
    error, change = change_error(*read)
    assert error < 0.05 * change


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=HALF_IDS)
def test_thousands_of_half_precision_steps_add_up(pack, dtype):
    """50 steps of sampling through 70 layers."""
    layer = importlib.import_module(f"{pack.__name__}.comfyui_binding.runtime.denoiser_call")
    change, expected = None, 0
    for seed in range(3500):
        step = (1 + 0.1 * toy.noise(1, 2, 8, seed=seed)).to(dtype)
        change, expected = layer.accumulate(change, step, 1e-4), expected + 1e-4 * step.double()
    assert relative_error(change, expected) < 1e-4
    assert layer.apply_change(torch.zeros(1, 2, 8, dtype=dtype), change).dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=HALF_IDS)
def test_edit_in_half_precision_adds_up_steps_below_its_resolution(comfy, dtype):
    read = []
    for type_ in (dtype, torch.float32):
        (edit,) = node(comfy, "EBCAEditContext").execute(
            conditioning=toy.conditioning(2), gamma_attn=5e-4, gamma_norm=0.0, start_percent=0.0,
            gamma_start_percent=0.0,
        )
        (model,) = node(comfy, "EBCACompose").execute(model=in_type(toy.model("sd1"), type_), edits={"edit0": edit})
        read.append(contexts_read(model, steps=20)[1:])  # main, edit, main, edit, ...
    single = read[1]
    one_step, (error, change) = float((single[2] - single[0]).abs().max()), change_error(*read)
    assert one_step < torch.finfo(dtype).eps  # half the distance of two numbers from 2 to 4: alone, a step is lost
    assert change > 20 * one_step
    assert error < 0.05 * change + 1.5 * torch.finfo(dtype).eps  # contexts of up to 4, rounded once


# --- memory ----------------------------------------------------------------------------------------------------------


class Shapes(TorchDispatchMode):
    """Records the shape of every tensor that is made."""

    def __init__(self):
        super().__init__()
        self.made: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.made.add(tuple(tensor.shape))
        return out

    def matrices(self, tokens, pixels):
        """Shapes that have both text tokens and image tokens."""
        return {shape for shape in self.made if tokens in shape and pixels & set(shape)}


@pytest.mark.parametrize("masked", [False, True], ids=["plain", "mask"])
def test_step_forms_no_matrix_of_image_and_text_tokens(masked):
    keys, queries = torch.randn(2, 77, 32), torch.randn(2, 1024, 32)
    mask = torch.rand(2, 1024, 1) if masked else None
    with Shapes() as shapes:
        key_step(keys, queries, 4, attention, 0.01, 0.02, torch.ones(1, 77, 1), mask)
    assert not shapes.matrices(77, {1024})
    assert max(torch.Size(shape).numel() for shape in shapes.made) <= queries.numel()


def test_recorder_sees_such_a_matrix():
    keys, queries = torch.randn(1, 77, 32), torch.randn(1, 1024, 32)
    with Shapes() as shapes:
        attention_term(keys, queries, 1, lambda q, k, v, heads: (q @ k.mT).softmax(-1) @ v)
    assert shapes.matrices(77, {1024})


def test_sampling_forms_no_matrix_of_image_and_text_tokens(comfy):
    model, latent, pixels = toy.model("sd1"), toy.latent(height=20, width=12), {240, 60}
    with Shapes() as plain:
        sample(model, toy.conditioning(1), latent=latent, steps=1)
    if plain.matrices(77, pixels):
        pytest.skip("this ComfyUI runs with an attention that forms the matrix itself")
    (edit,) = node(comfy, "EBCAEditContext").execute(
        conditioning=toy.conditioning(2), start_percent=0.0, gamma_start_percent=0.0, mask=torch.rand(1, 160, 96)
    )
    (model,) = node(comfy, "EBCAContextUpdate").execute(model=model, mask=torch.rand(1, 160, 96))
    (model,) = node(comfy, "EBCACompose").execute(model=model, edits={"edit0": edit})
    with Shapes() as shapes:
        sample(model, toy.conditioning(1), latent=latent, steps=1)
    assert (2, 240, 1) in shapes.made  # the mask in the first layer
    assert not shapes.matrices(77, pixels)
