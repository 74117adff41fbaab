"""Composition in joint attention next to other packs, and what is refused there."""

from __future__ import annotations

import functools
import types

import comfy.ldm.modules.attention as host
import pytest
import torch
from comfy.ldm.flux import math as flux_math
from comfy_api.torch_helpers import set_torch_compile_wrapper

from support import joint_oracle, joint_parts, oracle, toy, toy_joint
from support.host import node
from support.joint_runs import composed, edits, run
from support.log_messages import messages, refused
from support.other_packs import in_threads
from support.sampling import relative_error

TOLERANCE = 1e-5

each_kind = pytest.mark.parametrize("family", toy_joint.KINDS)
both_orders = pytest.mark.parametrize("order", ["neighbour first", "EBCA first"])


def wired(comfy, pack, order, neighbour, model, family):
    """The MODEL with both; neighbour: MODEL -> MODEL."""
    if order == "neighbour first":
        return composed(comfy, pack, neighbour(model), edits(family))
    return neighbour(composed(comfy, pack, model, edits(family)))


# --- other packs that compose ----------------------------------------------------------------------------------------


def sharpened(model):
    """As packs with a faster attention do it: a function of their own in the options, here with larger queries."""

    def override(func, q, k, v, heads, mask=None, **kwargs):
        return host.attention_pytorch(1.5 * q, k, v, heads, mask=mask, **kwargs)

    model = model.clone()
    model.model_options["transformer_options"]["optimized_attention_override"] = override
    return model


@both_orders
@each_kind
def test_attention_override_computes_edits_too(comfy, pack, monkeypatch, family, order):
    model = toy_joint.model(family)
    got = run(wired(comfy, pack, order, sharpened, model, family), family)
    monkeypatch.setattr(joint_parts, "attention", lambda q, k, v, heads: oracle.attention(1.5 * q, k, v, heads))
    with joint_oracle.applied(family, model, edits(family)):
        expected = run(model, family)
    assert relative_error(got, expected) < TOLERANCE
    assert relative_error(run(composed(comfy, pack, model, edits(family)), family), got) > 100 * TOLERANCE


@pytest.mark.parametrize("shared", [False, True])
def test_flux_kv_cache_gives_what_there_is_without_it(comfy, pack, caplog, shared):
    """ComfyUI's node keeps keys and values of reference images, which in the first layer are those of every call."""
    model, more = toy_joint.model("qwen"), {"shared_attention": shared}
    network = model.model.diffusion_model
    network.transformer_blocks = network.transformer_blocks[:1]
    with_cache, without = node(comfy, "FluxKVCache").execute(model=model)[0], model.clone()
    without.add_object_patch("diffusion_model.default_ref_method", "index_timestep_zero")
    references = [toy.noise(*shape, seed=5) for shape in toy_joint.TOYS["qwen"].references[:1]]
    prompts = [toy_joint.conditioning("qwen", seed, reference_latents=references) for seed in (1, 2)]
    both = [composed(comfy, pack, one, edits("qwen"), **more) for one in (with_cache, without)]
    got, expected = (run(one, "qwen", *prompts, steps=3) for one in both)
    assert relative_error(got, expected) < TOLERANCE
    assert not messages(caplog)
    assert relative_error(run(with_cache, "qwen", *prompts, steps=3), got) > 100 * TOLERANCE


def test_edit_equal_to_the_prompt_changes_nothing_beside_flux_kv_cache(comfy, pack, caplog):
    references = [toy.noise(*shape, seed=5) for shape in toy_joint.TOYS["qwen"].references[:1]]
    prompts = [toy_joint.conditioning("qwen", seed, reference_latents=references) for seed in (1, 2)]

    def sampled(*case):
        model = node(comfy, "FluxKVCache").execute(model=toy_joint.model("qwen"))[0]
        return run(composed(comfy, pack, model, case) if case else model, "qwen", *prompts, steps=3)

    plain, text = sampled(), toy_joint.conditioning("qwen", 1)
    assert torch.equal(sampled(oracle.Edit(text, 0.7)), plain)
    assert relative_error(sampled(*edits("qwen")), plain) > 100 * TOLERANCE
    assert not messages(caplog)


@both_orders
@pytest.mark.parametrize("family", ["qwen", "flux", "zimage"])
def test_edit_of_a_length_that_a_packs_attention_does_not_take(comfy, pack, caplog, monkeypatch, family, order):
    """The prompt keeps the pack's attention, and the edits have ComfyUI's."""
    model, lengths, is_learning = toy_joint.model(family), set(), [True]

    def override(func, q, k, v, heads, mask=None, **kwargs):
        tokens = k.shape[2 if kwargs.get("skip_reshape") else 1]
        if is_learning:
            lengths.add(tokens)
        if tokens not in lengths:
            raise ValueError("the weights are for a prompt of another length")
        return func(1.5 * q, k, v, heads, mask=mask, **kwargs)

    def with_override(model):
        model = model.clone()
        model.model_options["transformer_options"]["optimized_attention_override"] = override
        return model

    run(with_override(model), family)
    is_learning.clear()
    long = edits(family, (40, 72))  # Z-Image pads texts to 32
    if order == "neighbour first":
        together = composed(comfy, pack, with_override(model), long)
    else:
        together = with_override(composed(comfy, pack, model, long))
    got = run(together, family)
    (message,) = messages(caplog)
    assert "does not take a text of the edit's length" in message
    monkeypatch.setattr(
        joint_parts, "attention",
        lambda q, k, v, heads: oracle.attention(1.5 * q if len(k) in lengths else q, k, v, heads),
    )  # fmt: skip
    with joint_oracle.applied(family, model, long):
        expected = run(model, family)
    assert relative_error(got, expected) < TOLERANCE


@both_orders
@pytest.mark.parametrize("family", ["qwen", "flux", "sd35"])
def test_a_block_that_another_pack_skips_is_skipped(comfy, pack, family, order):
    def neighbour(model):
        model = model.clone()
        model.set_model_patch_replace(lambda args, extra: {"img": args["img"], "txt": args["txt"]}, "dit",
                                      "double_block", 1)  # fmt: skip
        return model

    model = toy_joint.model(family)
    got = run(wired(comfy, pack, order, neighbour, model, family), family)
    skipped = toy_joint.model(family)
    del toy_joint.double_blocks(family, skipped)[1]
    with joint_oracle.applied(family, skipped, edits(family)):
        expected = run(skipped, family)
    assert relative_error(got, expected) < TOLERANCE


@both_orders
@pytest.mark.parametrize("family", ["qwen", "flux", "zimage"])
def test_steps_that_easy_cache_skips(comfy, pack, family, order):
    def cached(model):
        return node(comfy, "EasyCache").execute(
            model=model, reuse_threshold=3.0, start_percent=0.0, end_percent=1.0, verbose=False
        )[0]

    model, steps, calls = toy_joint.model(family), 5, []
    (block, *_) = toy_joint.blocks(family, model)
    counter = block.register_forward_hook(lambda *_: calls.append(1))
    got = run(wired(comfy, pack, order, cached, model, family), family, steps=steps, cfg=1.0)
    counter.remove()
    assert 0 < len(calls) < steps
    with joint_oracle.applied(family, model, edits(family)):
        expected = run(cached(model), family, steps=steps, cfg=1.0)
    assert relative_error(got, expected) < TOLERANCE


@each_kind
def test_threads_that_share_a_network_do_not_mix(comfy, pack, family):
    model = composed(comfy, pack, toy_joint.model(family), edits(family))
    expected = run(model, family, batch=2)
    for _ in range(3):
        assert relative_error(run(in_threads(model), family, batch=2), expected) < TOLERANCE


@both_orders
@each_kind
def test_compiled_code_rests(comfy, pack, caplog, family, order):
    """A backend that gives zeros: any output of compiled code would be felt."""

    def zeros(graph, inputs):
        return lambda *args: tuple(torch.zeros_like(out) for out in graph(*args))

    def compiled(model):
        model = model.clone()
        set_torch_compile_wrapper(model=model, backend=zeros)
        return model

    model = toy_joint.model(family)
    expected = run(composed(comfy, pack, model, edits(family)), family, steps=1)
    got = run(wired(comfy, pack, order, compiled, model, family), family, steps=1)
    assert torch.equal(got, expected)
    assert [message for message in messages(caplog) if "torch.compile" in message] == messages(caplog)


@pytest.mark.parametrize("family", [kind for kind in toy_joint.KINDS if kind != "hidream"])
def test_concepts_are_composed(comfy, pack, family):
    """The node on its own, as the templates use it, against the loop over its texts.

    Not in HiDream, which needs the text of an encoder of its own beside this one.
    """
    clip, prompt = toy.clip("sd1"), "a bear and a red balloon"
    model = toy_joint.model(family, width=toy.WIDTH, pooled=toy.WIDTH)

    def text(words):
        return node(comfy, "CLIPTextEncode").execute(clip=clip, text=words)[0]

    wired, positive, _ = node(comfy, "EBCAConcepts").execute(
        model=model, clip=clip, prompt=prompt, strength=0.3, end_percent=1.0
    )
    case = [oracle.Edit(text(words), weight) for words, weight in (("a bear", 0.3), ("a red balloon", 0.3), ("", -0.2))]
    with joint_oracle.applied(family, model, case):
        expected = run(model, family, positive, text(""), cfg=1.0)
    assert relative_error(run(wired, family, positive, text(""), cfg=1.0), expected) < TOLERANCE


# --- other packs that do not: the run goes on without edits, and a line says why -------------------------------------


def replaced(path):
    """A pack that gives a module a forward pass of its own."""

    def wire(model):
        model = model.clone()
        module = model.get_model_object(f"diffusion_model.{path}" if path else "diffusion_model")

        def forward(self, *args, **kwargs):
            return type(self).forward(self, *args, **kwargs)

        name = f"diffusion_model.{path}.forward" if path else "diffusion_model.forward"
        model.add_object_patch(name, types.MethodType(forward, module))
        return model

    return wire


@both_orders
@pytest.mark.parametrize("place", ["the network", "a layer"])
@each_kind
def test_a_replaced_forward_pass_is_left_alone(comfy, pack, caplog, family, order, place):
    model = toy_joint.model(family)
    neighbour = replaced("" if place == "the network" else toy_joint.TOYS[family].layer)
    got = run(wired(comfy, pack, order, neighbour, model, family), family)
    assert torch.equal(got, run(neighbour(model), family))
    (message,) = messages(caplog)
    assert "edits skipped: another node has replaced a forward pass" in message


@both_orders
def test_a_forward_pass_replaced_on_the_class_is_left_alone(comfy, pack, caplog, monkeypatch, order):
    """By a pack that changes the model for all workflows: the log names the pack."""
    model = toy_joint.model("flux")
    kind = type(model.model.diffusion_model)
    own = kind.forward_orig

    @functools.wraps(own)
    def forward(self, *args, **kwargs):
        return 1.5 * own(self, *args, **kwargs)

    wired_before = composed(comfy, pack, model, edits("flux"))
    monkeypatch.setattr(kind, "forward_orig", forward)
    wired_model = wired_before if order == "EBCA first" else composed(comfy, pack, model, edits("flux"))
    assert torch.equal(run(wired_model, "flux"), run(model, "flux"))
    (message,) = messages(caplog)
    assert f"edits skipped: '{__name__}' has replaced a forward pass" in message


@both_orders
def test_an_attention_function_replaced_in_the_networks_module_is_left_alone(comfy, pack, caplog, monkeypatch, order):
    """It does not ask for overrides, as ComfyUI's functions do."""

    def attention(q, k, v, heads, mask=None, **kwargs):
        return host.attention_pytorch(1.5 * q, k, v, heads, mask=mask, skip_reshape=True)

    model = toy_joint.model("flux")
    wired_before = composed(comfy, pack, model, edits("flux"))
    monkeypatch.setattr(flux_math, "optimized_attention", attention)
    wired_model = wired_before if order == "EBCA first" else composed(comfy, pack, model, edits("flux"))
    assert torch.equal(run(wired_model, "flux"), run(model, "flux"))
    (message,) = messages(caplog)
    assert "edits skipped: another node has replaced the attention function" in message


def mixed_by_hand(args):
    """What all tokens of a block read in one softmax of their own."""
    names = [name for name in ("txt", "img") if name in args]
    tokens = torch.cat([args[name] for name in names], dim=1)
    out = torch.softmax(tokens @ tokens.mT / tokens.shape[-1] ** 0.5, dim=-1) @ tokens
    return dict(zip(names, out.split([args[name].shape[1] for name in names], dim=1), strict=True))


def written_into(args):
    """The same, in the tensors of the block."""
    return {name: args[name].copy_(out) for name, out in mixed_by_hand(args).items()}


@both_orders
@pytest.mark.parametrize("patch", [mixed_by_hand, written_into])
@pytest.mark.parametrize(("family", "place"), [
    ("qwen", ("double_block", 1)), ("flux", ("double_block", 1)), ("flux", ("single_block", 0)),
    ("sd35", ("double_block", 1)), ("lens", ("double_block", 1)), ("joyimage", ("double_block", 1)),
])  # fmt: skip
def test_a_block_with_an_attention_of_another_pack_is_left_alone(comfy, pack, caplog, family, place, patch, order):
    """It does not ask for the attention that EBCA's hooks see, in which the texts are kept apart."""
    if family not in toy_joint.FAMILIES:
        pytest.skip("not in this ComfyUI")

    def neighbour(model):
        model = model.clone()
        model.set_model_patch_replace(lambda args, extra: patch(args), "dit", *place)
        return model

    model = toy_joint.model(family)
    got = run(wired(comfy, pack, order, neighbour, model, family), family)
    assert torch.equal(got, run(neighbour(model), family))
    (message,) = messages(caplog)
    assert "edits skipped: another node computes a block of the model's network itself" in message


@both_orders
@pytest.mark.parametrize("family", ["qwen", "flux", "sd35"])
def test_a_patch_that_runs_the_block_itself_composes(comfy, pack, family, order):
    """With what it adds to the picture, as packs for reference faces do."""

    def neighbour(model):
        def patch(args, extra):
            out = extra["original_block"](args)
            return {**out, "img": out["img"] + 0.1 * out["img"].mean(dim=1, keepdim=True)}

        model = model.clone()
        model.set_model_patch_replace(patch, "dit", "double_block", 1)
        return model

    model = toy_joint.model(family)
    got = run(wired(comfy, pack, order, neighbour, model, family), family)
    without = run(composed(comfy, pack, model, edits(family)), family)
    theirs = run(neighbour(model), family)
    assert min(relative_error(got, other) for other in (without, theirs)) > 100 * TOLERANCE
    prompt = [oracle.Edit(toy_joint.conditioning(family, 1), 0.75)]
    assert torch.equal(run(composed(comfy, pack, neighbour(model), prompt), family, cfg=4.0),
                       run(neighbour(model), family, cfg=4.0))  # fmt: skip


@each_kind
def test_text_that_grows_inside_the_network_is_left_alone(comfy, pack, caplog, family):
    """As packs for style images do it: tokens of the image in front of the text's, and positions for them."""
    if not toy_joint.has_input_patches(family):
        pytest.skip("this network has no patches of its input")

    def grow(args):
        text, ids = args["txt"], args["txt_ids"]
        more = toy.noise(1, 3, text.shape[-1], seed=9).expand(len(text), -1, -1)
        return {**args, "txt": torch.cat([more, text], 1), "txt_ids": torch.cat([ids[:, :3], ids], 1)}

    model = toy_joint.model(family)
    model.set_model_patch(grow, "post_input")
    theirs = run(model, family)
    assert torch.equal(run(composed(comfy, pack, model, edits(family)), family), theirs)
    (message,) = messages(caplog)
    assert "edits skipped: another node changes which tokens" in message


@each_kind
def test_rows_of_an_unknown_order_are_left_alone(comfy, pack, caplog, family):
    def halves(apply_model, args):
        latents = args["input"].chunk(2, dim=-2)
        return torch.cat([apply_model(half, args["timestep"], **args["c"]) for half in latents], dim=-2)

    model = toy_joint.model(family)
    model.set_model_unet_function_wrapper(halves)
    plain = run(model, family)
    assert torch.equal(run(composed(comfy, pack, model, edits(family)), family), plain)
    (message,) = messages(caplog)
    assert "edits skipped: another node samples the image in tiles" in message


# --- what the method does not have here ------------------------------------------------------------------------------


@each_kind
def test_context_update_and_trace_are_refused_with_the_reason(comfy, family):
    model, update = toy_joint.model(family), node(comfy, "EBCAContextUpdate")
    refused(lambda: update.execute(model=model), "text and image in one softmax", "use EBCA Compose")
    refused(lambda: node(comfy, "EBCATrace").execute(model=model), "EBCA Trace cannot record", "Remove the node")
    assert update.execute(model=model, gamma_attn=0.0, gamma_norm=0.0)[0] is model


@each_kind
def test_gammas_of_edits_have_no_effect_and_a_line_says_so(comfy, pack, caplog, family):
    """EBCA Edit Context as it is put into a graph has gammas."""
    model, (edit, _) = toy_joint.model(family), edits(family)
    (wired,) = node(comfy, "EBCAEditContext").execute(conditioning=edit.text, alpha=0.75, start_percent=0.0)
    with caplog.at_level("INFO", "ebca"):
        (got,) = node(comfy, "EBCACompose").execute(model=model, edits={"edit0": wired})
    (message,) = messages(caplog)
    assert "gamma_attn and gamma_norm of the edits have no effect" in message
    assert torch.equal(run(got, family), run(composed(comfy, pack, model, [edit]), family))


@each_kind
def test_edit_of_another_width_is_refused(comfy, pack, family):
    ((text, options),) = toy_joint.conditioning(family, 21)
    case = [oracle.Edit([[text[..., :-8], options]], 0.5)]
    refused(lambda: composed(comfy, pack, toy_joint.model(family), case), "32", "40")


@each_kind
def test_a_subclass_of_the_network_is_refused(comfy, pack, family):
    """Another class may order its tokens in another way."""
    model = toy_joint.model(family)
    network = model.model.diffusion_model
    network.__class__ = type("Newer", (type(network),), {"__module__": "comfy.ldm.another"})
    refused(lambda: composed(comfy, pack, model, edits(family)), "has no cross-attention to text that EBCA can reach")


def test_an_edit_without_the_text_of_one_encoder_is_skipped(comfy, pack, caplog):
    """HiDream reads T5 and Llama; a CONDITIONING of another model has no text of Llama."""
    model, (edit, _) = toy_joint.model("hidream"), edits("hidream")
    ((text, options),) = edit.text
    case = [oracle.Edit([[text, {"pooled_output": options["pooled_output"]}]], 0.75)]
    assert torch.equal(run(composed(comfy, pack, model, case), "hidream"), run(model, "hidream"))
    (message,) = messages(caplog)
    assert "edits skipped: an edit lacks the text of one of the model's encoders" in message


def test_calls_outside_a_run_compose_too(comfy, pack):
    """Another node may call the model by itself: its rows are then those of the positive prompt."""
    model = composed(comfy, pack, toy_joint.model("qwen"), edits("qwen"))
    (text, _), *_ = toy_joint.conditioning("qwen", 1)
    x, sigma = toy.noise(*toy_joint.shape("qwen")), torch.ones(1)
    options = {**model.model_options["transformer_options"], "wrappers": model.wrappers, "sigmas": sigma}
    with torch.inference_mode():
        got = model.model.apply_model(x, sigma, c_crossattn=text, transformer_options=dict(options))
        with joint_oracle.applied("qwen", model, edits("qwen")):
            own = {"cond_or_uncond": [0], "sigmas": sigma}
            expected = model.model.apply_model(x, sigma, c_crossattn=text, transformer_options=own)
    assert relative_error(got, expected) < TOLERANCE
