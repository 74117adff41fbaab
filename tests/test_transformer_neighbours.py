"""EBCA in transformers next to other packs, in both orders: each gives the numbers of an independent computation."""

from __future__ import annotations

import functools
import inspect
import types

import comfy.ldm.modules.attention as host
import pytest
import torch
from comfy.ldm.cosmos import predict2
from comfy.ldm.wan import model as wan

from support import oracle, toy, toy_dit, transformer_oracle
from support.log_messages import messages, refused
from support.other_packs import in_threads
from support.sampling import relative_error
from support.transformer_runs import Ebca, ebca, edits, run, update

TOLERANCE = 1e-5

each_family = pytest.mark.parametrize("family", toy_dit.FAMILIES)
both_orders = pytest.mark.parametrize("order", ["neighbour first", "EBCA first"])


def wired(comfy, pack, order, neighbour, case, model):
    """The MODEL with both; neighbour: MODEL -> MODEL."""
    if order == "neighbour first":
        return case.on(comfy, pack, neighbour(model))
    return neighbour(case.on(comfy, pack, model))


def cross_attention(model, family):
    return transformer_oracle.modules(family, model.model.diffusion_model)


# --- attention functions ---------------------------------------------------------------------------------------------


def sharpened(model):
    """As packs with a faster attention do it: a function of their own in the options, here with larger queries."""

    def override(func, q, k, v, heads, mask=None, attn_precision=None, skip_reshape=False, **kwargs):
        return host.attention_pytorch(
            1.5 * q, k, v, heads, mask=mask, attn_precision=attn_precision, skip_reshape=skip_reshape, **kwargs
        )

    model = model.clone()
    model.model_options["transformer_options"]["optimized_attention_override"] = override
    return model


@both_orders
@pytest.mark.parametrize("family", ["wan", "wan_vace", "predict2", "ltxv", "kandinsky5"])
def test_attention_override_computes_edits_too(comfy, pack, family, order):
    model, case = toy_dit.model(family), ebca(family)
    with case.applied(family, model, attend=lambda q, k, v, heads: oracle.attention(1.5 * q, k, v, heads)):
        expected = run(sharpened(model), family, steps=2)
    got = run(wired(comfy, pack, order, sharpened, case, model), family, steps=2)
    assert relative_error(got, expected) < TOLERANCE
    assert relative_error(run(case.on(comfy, pack, model), family, steps=2), got) > 100 * TOLERANCE


@both_orders
@pytest.mark.parametrize("family", ["pixart", "hydit"])
def test_attention_override_of_layers_without_options(comfy, pack, family, order):
    """Their attention never gets it."""
    model, case = toy_dit.model(family), ebca(family)
    got = run(wired(comfy, pack, order, sharpened, case, model), family, steps=1)
    assert torch.equal(got, run(case.on(comfy, pack, model), family, steps=1))


#: Tokens of an edit's text: no prompt and no image of these tests has so many.
SHORT = 10


def sharpened_for_the_prompt(model):
    """An override that takes no text of an edit's length, as packs have it that weigh the tokens of the prompt."""

    def override(func, q, k, v, heads, **kwargs):
        if k.shape[1] == SHORT:
            raise ValueError("the weights are for a prompt of another length")
        return func(1.5 * q, k, v, heads, **kwargs)

    model = model.clone()
    model.model_options["transformer_options"]["optimized_attention_override"] = override
    return model


@both_orders
@pytest.mark.parametrize("family", ["wan", "predict2"])
def test_edit_of_a_length_that_a_packs_attention_does_not_take(comfy, pack, caplog, family, order):
    """The prompt keeps the pack's attention, and the edits have ComfyUI's."""

    def attend(q, k, v, heads):
        return oracle.attention(q if len(k) == SHORT else 1.5 * q, k, v, heads)

    model, case = toy_dit.model(family), Ebca([update(family)], edits(family, (SHORT, 12)))
    with case.applied(family, model, attend=attend):
        expected = run(sharpened_for_the_prompt(model), family, steps=2)
    got = run(wired(comfy, pack, order, sharpened_for_the_prompt, case, model), family, steps=2)
    assert relative_error(got, expected) < TOLERANCE
    (message,) = messages(caplog)
    assert "does not take a text of the edit's length" in message
    assert relative_error(run(case.on(comfy, pack, sharpened(model)), family, steps=2), got) > 100 * TOLERANCE


@both_orders
def test_attention_function_replaced_in_the_networks_module(comfy, pack, caplog, monkeypatch, order):
    """It does not ask for overrides, as ComfyUI's functions do, so that EBCA cannot see it."""

    def attention(q, k, v, heads, **kwargs):
        return host.attention_pytorch(1.5 * q, k, v, heads)

    model, case = toy_dit.model("wan"), ebca("wan")
    wired_before = case.on(comfy, pack, model)
    monkeypatch.setattr(wan, "optimized_attention", attention)
    wired_model = wired_before if order == "EBCA first" else case.on(comfy, pack, model)
    assert torch.equal(run(wired_model, "wan", steps=1), run(model, "wan", steps=1))
    (message,) = messages(caplog)
    assert "EBCA had no effect" in message
    assert "attention function" in message


# --- replaced and hooked modules -------------------------------------------------------------------------------------


def negative_attention(family):
    """As packs for negative attention guidance do it: every cross-attention module has a forward pass of theirs."""

    def forward(self, x, *args, **kwargs):
        out = type(self).forward(self, x, *args, **kwargs)
        if isinstance(out, tuple):
            return (1.5 * out[0],)
        return 1.5 * out

    def wire(model):
        model = model.clone()
        for path, module in cross_attention(model, family).items():
            model.add_object_patch(f"diffusion_model.{path}.forward", types.MethodType(forward, module))
        return model

    return wire


@both_orders
@each_family
def test_layers_with_a_replaced_forward_are_left_out(comfy, pack, caplog, family, order):
    model, neighbour = toy_dit.model(family), negative_attention(family)
    theirs = run(neighbour(model), family, steps=2)
    got = run(wired(comfy, pack, order, neighbour, ebca(family), model), family, steps=2)
    assert torch.equal(got, theirs)
    (message,) = messages(caplog)
    assert "forward pass another node has replaced" in message
    assert not torch.equal(theirs, run(model, family, steps=2))


@both_orders
@pytest.mark.parametrize("family", ["wan", "pixart"])
def test_layers_with_a_forward_replaced_on_their_class_are_left_out(comfy, pack, caplog, monkeypatch, family, order):
    model, case = toy_dit.model(family), ebca(family)
    plain, wired_before = run(model, family, steps=1), case.on(comfy, pack, model)
    for cls in {type(module) for module in cross_attention(model, family).values()}:

        @functools.wraps(cls.forward)
        def forward(self, *args, original=cls.forward, **kwargs):
            return 1.5 * original(self, *args, **kwargs)

        monkeypatch.setattr(cls, "forward", forward)
    theirs = run(model, family, steps=1)
    wired_model = wired_before if order == "EBCA first" else case.on(comfy, pack, model)
    assert torch.equal(run(wired_model, family, steps=1), theirs)
    (message,) = messages(caplog)
    assert "forward pass another node has replaced" in message
    assert not torch.equal(theirs, plain)


def scaled_texts(model, family):
    """Another pack's pre-hooks: every layer reads its text at 0.8 of its size."""

    def scale(module, args, kwargs):
        if "context" in kwargs:
            return args, {**kwargs, "context": 0.8 * kwargs["context"]}
        return (args[0], 0.8 * args[1], *args[2:]), kwargs

    return [m.register_forward_pre_hook(scale, with_kwargs=True) for m in cross_attention(model, family).values()]


@each_family
def test_update_reads_what_the_pre_hook_of_another_pack_gives_the_layer(comfy, pack, family):
    model, case = toy_dit.model(family), Ebca([update(family)])
    before = run(model, family, steps=2)
    scaled_texts(model, family)
    with case.applied(family, model):
        expected = run(model, family, steps=2)
    assert relative_error(run(case.on(comfy, pack, model), family, steps=2), expected) < TOLERANCE
    assert relative_error(run(model, family, steps=2), before) > 100 * TOLERANCE


# --- patches ---------------------------------------------------------------------------------------------------------


def patched(patch):
    def wire(model):
        model = model.clone()
        model.set_model_attn2_patch(patch)
        return model

    return wire


@both_orders
@pytest.mark.parametrize("family", ["wan", "wan_i2v", "wan_vace"])
def test_patch_behind_cross_attention_equals_the_loop(comfy, pack, family, order):
    """Wan calls attn2_patch after the layer."""
    model, case = toy_dit.model(family), ebca(family)
    neighbour = patched(lambda args: 1.05 * args["x"])
    with case.applied(family, model):
        expected = run(neighbour(model), family, steps=2)
    got = run(wired(comfy, pack, order, neighbour, case, model), family, steps=2)
    assert relative_error(got, expected) < TOLERANCE
    assert relative_error(run(case.on(comfy, pack, model), family, steps=2), got) > 100 * TOLERANCE


with_patches_inside = pytest.mark.skipif(
    "attn2_patch" not in inspect.getsource(predict2), reason="this ComfyUI's Cosmos-Predict2 has no attn2_patch"
)


@with_patches_inside
@both_orders
def test_patch_of_the_queries_inside_the_layer_equals_the_loop(comfy, pack, order):
    model, case = toy_dit.model("predict2"), ebca("predict2")
    shift = toy.noise(64, seed=51)
    neighbour = patched(lambda q, k, v, **kwargs: {"q": q + shift})
    got = run(wired(comfy, pack, order, neighbour, case, model), "predict2", steps=2)
    without = run(case.on(comfy, pack, model), "predict2", steps=2)
    for module in cross_attention(model, "predict2").values():
        module.register_forward_pre_hook(lambda module, args: (args[0] + shift, *args[1:]))
    with case.applied("predict2", model):
        expected = run(model, "predict2", steps=2)
    assert relative_error(got, expected) < TOLERANCE
    assert relative_error(without, got) > 100 * TOLERANCE


@with_patches_inside
@both_orders
def test_layers_whose_text_grows_inside_are_left_out(comfy, pack, caplog, order):
    """As packs for image prompts do it: tokens that the layer's own text has not."""
    model = toy_dit.model("predict2")

    def grow(q, k, v, **kwargs):
        more = toy.noise(k.shape[0], 2, k.shape[2], seed=52)
        return {"k": torch.cat([k, more], dim=1), "v": torch.cat([v, more], dim=1)}

    neighbour = patched(grow)
    theirs = run(neighbour(model), "predict2", steps=2)
    got = run(wired(comfy, pack, order, neighbour, ebca("predict2"), model), "predict2", steps=2)
    assert torch.equal(got, theirs)
    assert len(messages(caplog)) == 1


# --- threads ---------------------------------------------------------------------------------------------------------


@both_orders
@pytest.mark.parametrize("family", ["wan", "pixart"])
def test_threads_that_share_a_network_do_not_mix(comfy, pack, family, order):
    """The hooks of a call act in its own thread."""
    model, case = toy_dit.model(family), ebca(family)
    expected = run(case.on(comfy, pack, model), family, batch=2)
    for _ in range(3):
        got = run(wired(comfy, pack, order, in_threads, case, model), family, batch=2)
        assert relative_error(got, expected) < TOLERANCE


# --- refusals --------------------------------------------------------------------------------------------------------


@each_family
def test_edit_of_another_width_is_refused(comfy, pack, family):
    ((text, options),) = toy_dit.conditioning(family, 21)
    case = Ebca(edits=[oracle.Edit([[text[..., :-8], options]], 0.5)])
    refused(lambda: case.on(comfy, pack, toy_dit.model(family)), "32", "40")


def test_model_without_text_cross_attention_is_refused(comfy, pack):
    for case in (Ebca([update("wan")]), Ebca(edits=ebca("wan").edits)):
        refused(lambda case=case: case.on(comfy, pack, toy.model("hunyuan_video")), "HunyuanVideo")
