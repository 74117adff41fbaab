"""EBCA Trace: what it records is what the layers had, it changes nothing, and it says so when there is nothing."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from comfy.ldm.modules.attention import attention_basic
from comfy.model_management import InterruptProcessingException
from comfy.sample import sample_custom
from comfy.samplers import KSAMPLER

from ebca_core import attention_energy, norm_energy
from support import other_packs, toy
from support.host import node
from support.log_messages import messages, refused
from support.probes import watched
from support.sampling import relative_error, sample

ACTIVE = dict(gamma_attn=0.02, gamma_norm=0.02)
SMALL = dict(latent=toy.latent(1, 8, 8))
BLOCKS = ["d0.0", "d1.0", "m0.0", "u0.0", "u1.0"]  # of toy.model("sd1")


def updated(comfy, model, **inputs):
    return node(comfy, "EBCAContextUpdate").execute(model=model, **{**ACTIVE, **inputs})[0]


def composed(comfy, model, **inputs):
    windows = dict(start_percent=0.0, gamma_start_percent=0.0)
    edit = node(comfy, "EBCAEditContext").execute(conditioning=toy.conditioning(7), **windows, **inputs)[0]
    return node(comfy, "EBCACompose").execute(model=model, edits={"edit0": edit})[0]


def traced(comfy, model, attention_maps=False):
    return node(comfy, "EBCATrace").execute(model=model, attention_maps=attention_maps)


def filled(values):
    """NaN compares unequal to itself."""
    return values.nan_to_num(-1.0)


def run(model, positive=None, **options):
    return sample(model, positive or toy.conditioning(1), **{**SMALL, **options})


def watched_run(comfy, model, **options):
    """The record of a run of the model, and what a layer really had: [step][layer] of `watched`."""
    model, trace = traced(comfy, model, attention_maps=True)
    with watched(model) as seen:
        run(model, **options)
    seen = [call for call in seen if len(call.context) == 2]  # both prompts; an edit's text is read by itself
    return trace.record, [seen[i : i + len(BLOCKS)] for i in range(0, len(seen), len(BLOCKS))]


# --- the energies ----------------------------------------------------------------------------------------------------


def probabilities(query, key):
    """softmax over the keys of beta q.k, one head: ComfyUI's basic attention over the values 1, 0, ...; 0, 1, ...

    query [1, i, d], key [1, j, d] -> [i, j]. Its heads are as wide as the values, so both are filled up with zeros.
    """
    width, wide = query.shape[-1], max(query.shape[-1], key.shape[1])
    padded = (torch.nn.functional.pad(part, (0, wide - width)) for part in (query * (wide / width) ** 0.5, key))
    values = torch.eye(key.shape[1], wide, dtype=query.dtype)[None]
    return attention_basic(*padded, values, heads=1)[0, :, : key.shape[1]]


def energies_by_basic_attention(call, row):
    """E(K|Q), summed over tokens, and E(K) of a row: p_n = exp(beta q_n.k) / sum, so log sum = beta q_n.k - log p_n."""
    attention = 0.0
    keys, queries = call.keys[row], call.queries[row]
    for k, q in zip(keys.chunk(call.heads, dim=-1), queries.chunk(call.heads, dim=-1), strict=True):
        beta = k.shape[-1] ** -0.5
        logsumexp = beta * (k @ q[0]) - probabilities(k[None], q[None])[:, 0].log()
        attention -= float(logsumexp.sum()) / beta
    # one head as wide as k with the key k: softmax(||k_t||^2) is basic attention from a token that sees its own norm
    squares = keys.square().sum(dim=-1)
    share = probabilities(torch.ones(1, 1, 1, dtype=keys.dtype), squares[None, :, None])[0]
    return attention, 0.5 * float(squares[0] - share[0].log())


@pytest.mark.parametrize("nodes", [lambda comfy, model: model, updated], ids=["plain", "with an update"])
def test_energies_are_those_of_basic_attention(comfy, nodes):
    record, steps = watched_run(comfy, nodes(comfy, toy.model()), steps=3)
    assert record.roles == ("positive", "negative")
    assert list(record.layers) == BLOCKS
    assert record.values.shape == (4, 3, len(BLOCKS), 2)
    for step, layers in enumerate(steps):
        for layer, call in enumerate(layers):
            for row in range(2):
                attention, norm = energies_by_basic_attention(call, row)
                # ComfyUI puts the negative prompt first
                found = record.values[:, step, layer, 1 - row].double()
                assert found[0] == pytest.approx(attention, rel=1e-5)
                assert found[1] == pytest.approx(norm, rel=1e-5)
                assert found[2] == pytest.approx(attention + norm, rel=1e-5)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("gammas", [(1e-3, 0.0), (0.0, 1e-3), (5e-4, 1e-3), (2e-3, 1e-4)])
def test_every_layer_steps_down_its_energy(comfy, seed, gammas):
    attn, norm = gammas
    model = updated(comfy, toy.model(seed=seed), gamma_attn=attn, gamma_norm=norm)
    _, steps = watched_run(comfy, model, steps=2, seed=seed)

    def energy(call, context):
        keys = context @ call.w_k.T
        attention = attention_energy(keys, call.queries, call.heads).sum(dim=1)
        return attn * attention + norm * norm_energy(keys)

    for layers in steps:
        for call, following in pairwise(layers):
            assert (energy(call, following.context) < energy(call, call.context)).all()


def test_another_energy_moves_prompts_and_edits_and_is_recorded(comfy, pack):
    """One with terms of twice and three times the size is the default with such gammas."""
    energies = pack.ebca_core.energy
    larger = energies.ContextEnergy(
        lambda *given: 2 * energies.attention_energy(*given),
        lambda *given: 2 * energies.attention_term(*given),
        lambda *given: 3 * energies.norm_energy(*given),
        lambda *given: 3 * energies.norm_term(*given),
    )

    def recorded(attn, norm, **settings):
        gammas = dict(gamma_attn=attn, gamma_norm=norm)
        model, trace = traced(comfy, composed(comfy, updated(comfy, toy.model(), **gammas), **gammas))
        options = model.model_options["transformer_options"]
        options["ebca"] = replace(options["ebca"], **settings)
        return run(model), trace.record

    samples, record = recorded(0.01, 0.005, energy=larger)
    expected, other = recorded(0.02, 0.015)
    assert relative_error(samples, expected) < 1e-5
    assert relative_error(samples, recorded(0.01, 0.005)[0]) > 1e-3
    assert "edit0" in record.roles
    for number, factor in enumerate((2, 3)):
        assert relative_error(record.values[number], factor * other.values[number]) < 1e-5


def test_update_size_is_how_far_the_layer_moves_the_context(comfy):
    record, steps = watched_run(comfy, updated(comfy, toy.model()), steps=2)
    for step, layers in enumerate(steps):
        prompt = layers[0].context
        for layer, (call, following) in enumerate(pairwise(layers)):
            expected = (following.context - call.context).flatten(1).norm(dim=1) / prompt.flatten(1).norm(dim=1)
            assert relative_error(record.values[3, step, layer].flip(0), expected) < 1e-3
        assert record.values[3, step, -1].isnan().all()  # nothing would read the last layer's update


def test_edits_are_recorded_beside_the_prompts(comfy):
    edit = dict(alpha=0.5, gamma_attn=0.0, gamma_norm=0.0)
    record, steps = watched_run(comfy, composed(comfy, toy.model(), **edit), steps=2)
    assert record.roles == ("positive", "negative", "edit0")
    text = toy.conditioning(7)[0][0].double()
    for step, layers in enumerate(steps):
        for layer, call in enumerate(layers):
            moved = call._replace(context=text, queries=call.queries[1:])
            assert record.values[0, step, layer, 2] == pytest.approx(energies_by_basic_attention(moved, 0)[0], rel=1e-5)
    moving, trace = traced(comfy, composed(comfy, toy.model(), alpha=0.0, gamma_attn=0.01, gamma_norm=0.01))
    run(moving, steps=2)
    assert (trace.record.values[3, :, :, 2] > 0).all()
    assert (record.values[3, :, :-1] == 0).all()
    assert (record.values[3, :, -1, 2] == 0).all()


def test_prompt_of_norm_zero_has_no_relative_update(comfy):
    model, trace = traced(comfy, updated(comfy, toy.model()))
    run(model, negative=[[torch.zeros(1, 77, toy.WIDTH), {"pooled_output": torch.zeros(1, toy.POOLED)}]])
    assert trace.record.values[3, ..., 1].isnan().all()
    assert trace.record.values[3, :, :-1, 0].isfinite().all()
    assert trace.record.values[:3].isfinite().all()


def test_batches_are_means_over_their_images(comfy):
    def recorded(latent, positive):
        model, trace = traced(comfy, updated(comfy, toy.model()))
        run(model, positive, latent=latent)
        return trace.record.values

    pair = recorded({**toy.latent(2, 8, 8), "batch_index": [0, 1]}, toy.conditioning(1))
    one, other = (recorded({**toy.latent(1, 8, 8), "batch_index": [i]}, toy.conditioning(1)) for i in (0, 1))
    assert relative_error(filled(pair), filled((one + other) / 2)) < 1e-5


def test_prompts_of_other_lengths_are_read_as_if_alone(comfy):
    """ComfyUI repeats the shorter one's tokens; under cfg 1 it is alone."""

    def recorded(cfg):
        model, trace = traced(comfy, toy.model(), attention_maps=True)
        run(model, toy.conditioning(1), negative=toy.conditioning(99, tokens=154), cfg=cfg, steps=1)
        return trace.record

    together, alone = recorded(4.0), recorded(1.0)
    assert relative_error(filled(together.values[..., 0]), filled(alone.values[..., 0])) < 1e-5
    for both, one in zip(together.maps[0].by_grid, alone.maps[0].by_grid, strict=True):
        assert both.shape == one.shape
        assert relative_error(both, one) < 1e-5


def test_long_negative_prompt_does_not_hide_whose_prompt_it_was(comfy):
    model, trace = traced(comfy, toy.model())
    run(model, toy.conditioning(1), negative=toy.conditioning(99, tokens=154), steps=1)
    together = trace.record.prompts
    run(model, toy.conditioning(1), cfg=1.0, steps=1)
    assert [prompt.shape for prompt in together] == [prompt.shape for prompt in trace.record.prompts]
    assert torch.equal(together[0], trace.record.prompts[0])


def first_layer_of_calls(model, **options):
    with watched(model) as seen:
        run(model, **options)
    return [seen[i] for i in range(0, len(seen), len(BLOCKS))]


def test_of_calls_in_a_row_at_one_sigma_the_first_counts(comfy):
    """heun calls the model at the sigma of the next step, and there once more: sigmas 0, 1, 1."""
    model, trace = traced(comfy, toy.model(), attention_maps=True)
    calls = first_layer_of_calls(model, sampler="heun", steps=2)
    expected = [energies_by_basic_attention(call, 1)[0] for call in calls]
    assert len(calls) == 3
    assert trace.record.values[0, :, 0, 0].tolist() == pytest.approx(expected[:2], rel=1e-5)
    weights = trace.record.maps[0].weights
    run(model, steps=1)
    assert weights == [2 * weight for weight in trace.record.maps[0].weights]


def test_calls_between_two_sigmas_belong_to_the_step_that_has_begun(comfy):
    """dpm_2 calls the model at each step's start and at its middle."""
    model, trace = traced(comfy, toy.model())
    calls = first_layer_of_calls(model, sampler="dpm_2", steps=3)
    expected = [energies_by_basic_attention(call, 1)[0] for call in calls]
    assert len(calls) == 5  # the last step ends at 0 and is euler's
    means = [(expected[0] + expected[1]) / 2, (expected[2] + expected[3]) / 2, expected[4]]
    assert trace.record.values[0, :, 0, 0].tolist() == pytest.approx(means, rel=1e-5)


def test_perturbed_passes_are_not_recorded(comfy):
    """PAG runs the positive prompt once more, with another self-attention: no part of what the prompt itself is."""
    model, trace = traced(comfy, updated(comfy, toy.model()), attention_maps=True)
    run(model, steps=1)
    alone = trace.record
    pag = node(comfy, "PerturbedAttentionGuidance").execute(model=model, scale=3.0)[0]
    run(pag, steps=1)
    assert relative_error(trace.record.values[..., :-1, :], alone.values[..., :-1, :]) < 1e-6
    assert torch.equal(trace.record.maps[0].by_grid[0], alone.maps[0].by_grid[0])


@pytest.mark.parametrize("anchored", [False, True])
def test_context_windows_are_recorded_as_the_whole_batch(comfy, anchored):
    """Windows come one after the other at one sigma, and some images twice. No image of the batch feels another."""

    def recorded(wire):
        scene = other_packs.scene(latent=toy.latent(4, 8, 8))
        model, trace = traced(comfy, updated(comfy, scene.model), attention_maps=True)
        wire(comfy, replace(scene, model=model)).sampled(comfy)
        return trace.record

    windows = other_packs.context_windows(anchored)
    whole = recorded(lambda comfy, scene: scene)
    apart = recorded(lambda comfy, scene: replace(windows(comfy, scene), latent=scene.latent))
    assert relative_error(filled(apart.values), filled(whole.values)) < 1e-5
    assert apart.maps[0].weights == whole.maps[0].weights
    for one, other in zip(apart.maps[0].by_grid, whole.maps[0].by_grid, strict=True):
        assert relative_error(one, other) < 1e-5


@pytest.mark.parametrize("families", [("sdxl", "koala"), ("koala", "sdxl")])
def test_second_unet_of_a_guider_is_recorded_too(comfy, families):
    """DualModelGuider has the negative prompt on a model with other layers: KOALA has none in the middle."""
    first, second = map(toy.model, families)
    model, trace = traced(comfy, first)
    prompts = [toy.conditioning(seed) for seed in (1, 2)]
    guider = node(comfy, "DualModelGuider").execute(
        model=model, model_negative=second, positive=prompts[0], negative=prompts[1], cfg=4.0
    )[0]
    other_packs.sampled_with_guider(comfy, other_packs.Scene(model, *prompts, latent=toy.latent(1, 8, 8)), guider)
    record = trace.record
    read = ~record.values[0, 0].isnan()
    by_role = [{name for name, seen in zip(record.layers, read[:, role]) if seen} for role in (0, 1)]
    sdxl, koala = by_role if families[0] == "sdxl" else by_role[::-1]
    assert sdxl - koala == {"m0.0", "m0.1"}
    assert koala < sdxl
    assert [name[0] for name in record.layers] == sorted(name[0] for name in record.layers)  # down, middle, up
    assert record.is_complete


# --- the attention maps ----------------------------------------------------------------------------------------------


def test_maps_are_means_of_basic_attention(comfy):
    record, steps = watched_run(comfy, updated(comfy, toy.model()), steps=2)
    by_side = {}
    for layers in steps:
        for call in layers:
            keys, queries = (part[1].chunk(call.heads, dim=-1) for part in (call.keys, call.queries))
            heads = [probabilities(q[None], k[None]) for q, k in zip(queries, keys, strict=True)]
            side = math.isqrt(call.queries.shape[1])
            by_side.setdefault(side, []).append((sum(heads) / len(heads)).T.unflatten(1, (side, side)))
    (maps,) = record.maps
    assert [grid.shape for grid in maps.by_grid] == [(1, 77, side, side) for side in sorted(by_side)]
    assert maps.weights == [len(by_side[side]) for side in sorted(by_side)]
    for grid, side in zip(maps.by_grid, sorted(by_side), strict=True):
        assert relative_error(grid[0], sum(by_side[side]) / len(by_side[side])) < 1e-5


def test_maps_of_large_images_are_pooled(comfy):
    model, trace = traced(comfy, toy.model(), attention_maps=True)
    run(model, latent=toy.latent(1, 48, 80), steps=1)
    (maps,) = trace.record.maps
    assert [tuple(grid.shape[-2:]) for grid in maps.by_grid] == [(19, 32), (19, 32)]  # of 24 x 40 and of 48 x 80
    for grid in maps.by_grid:
        assert torch.allclose(grid.sum(dim=1), torch.ones_like(grid.sum(dim=1)), atol=1e-5)


def test_large_layers_are_read_in_parts(comfy, pack, monkeypatch):
    def recorded():
        model, trace = traced(comfy, updated(comfy, toy.model()), attention_maps=True)
        run(model, latent=toy.latent(3, 8, 8), steps=2)
        return trace.record

    whole = recorded()
    monkeypatch.setattr(pack.comfyui_binding.trace.recorder, "MATRIX_ENTRIES", 1)
    parts = recorded()
    assert relative_error(filled(parts.values), filled(whole.values)) < 1e-6
    assert all(relative_error(p, w) < 1e-6 for p, w in zip(parts.maps[0].by_grid, whole.maps[0].by_grid, strict=True))


# --- off the hot path ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention_maps", [False, True])
@pytest.mark.parametrize("nodes", [lambda comfy, model: model, updated, composed], ids=["plain", "update", "edit"])
@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_traced_picture_is_bit_identical(comfy, family, nodes, attention_maps):
    model = nodes(comfy, toy.model(family))
    assert torch.equal(run(traced(comfy, model, attention_maps)[0]), run(model))


def test_tracing_node_leaves_its_input_model_alone(comfy):
    model = toy.model()
    wrappers = {kind: dict(entries) for kind, entries in model.wrappers.items()}
    traced(comfy, model)
    assert model.wrappers == wrappers
    assert "ebca" not in model.model_options["transformer_options"]


def test_maps_take_no_more_memory_in_longer_runs(comfy, pack):
    """While the run goes on there is one map for each prompt, image and size of grid."""
    import gc

    readings, held = pack.comfyui_binding.trace.recorder.RunRecorder, []

    def note(*_):
        (own,) = [thing for thing in gc.get_objects() if isinstance(thing, readings)]
        held.append(sum(one.total.numel() for one in own._maps.values()))

    model, _ = traced(comfy, toy.model(), attention_maps=True)
    run(model, steps=6, callback=note)
    assert held == [77 * (4 * 4 + 8 * 8)] * 6


def test_traced_picture_is_bit_identical_beside_other_packs(comfy, caplog):
    """Also where the maps cannot be read, which is said in the log."""
    wires = {
        "NegPip": other_packs.negpip, "token merging": other_packs.merged_tokens, "PAG": other_packs.on_the_model(
            "PerturbedAttentionGuidance", scale=3.0), "reference only": other_packs.reference_only,
        "areas": other_packs.area, "attention couple": other_packs.attention_couple(),
    }  # fmt: skip
    for name, wire in wires.items():
        scene = other_packs.scene(fresh=True)
        for model in (scene.model, updated(comfy, scene.model)):
            plain = wire(comfy, replace(scene, model=model)).sampled(comfy)
            before, trace = traced(comfy, model, attention_maps=True)
            assert torch.equal(wire(comfy, replace(scene, model=before)).sampled(comfy), plain), name
            wired = wire(comfy, replace(scene, model=model))
            after, _ = traced(comfy, wired.model, attention_maps=True)
            assert torch.equal(replace(wired, model=after).sampled(comfy), plain), name
            assert trace.record.roles or any("layers not read" in said for said in messages(caplog)), name


def test_each_run_clears_the_trace(comfy, pack):
    model, trace = traced(comfy, updated(comfy, toy.model()))
    run(model, steps=3)
    first = trace.record
    run(model, steps=2)
    assert trace.record is not first
    assert len(trace.record.sigmas) == 2
    weights = pack.comfyui_binding.text.token_weights.TokenWeights(torch.ones(5))
    refused_model = updated(comfy, model, token_weights=weights)
    refused(lambda: run(refused_model), "token weights")
    assert trace.record.roles == ()


def test_two_samplers_with_a_trace_each_do_not_mix(comfy):
    model = updated(comfy, toy.model())
    (one, trace), (other, trace_b) = traced(comfy, model), traced(comfy, model)
    run(one, steps=3)
    before = filled(trace.record.values)
    run(other, toy.conditioning(2), steps=2, seed=5)
    assert torch.equal(filled(trace.record.values), before)
    alone, trace_c = traced(comfy, model)
    run(alone, toy.conditioning(2), steps=2, seed=5)
    assert torch.equal(filled(trace_b.record.values), filled(trace_c.record.values))


def test_prompts_that_ComfyUI_runs_apart_are_recorded_alike(comfy):
    """With little memory ComfyUI calls the model for each prompt alone."""
    model, trace = traced(comfy, updated(comfy, toy.model()), attention_maps=True)
    run(model)
    together, calls = trace.record, []
    required = model.model.memory_required

    def memory_required(input_shape, *args, **kwargs):
        return required(input_shape, *args, **kwargs) * (1e20 if input_shape[0] > 1 else 1)

    def count(executor, *args, **kwargs):
        calls.append(args[0].shape[0])
        return executor(*args, **kwargs)

    model.model.memory_required = memory_required
    model.add_wrapper_with_key("diffusion_model", "count", count)
    run(model)
    assert set(calls) == {1}
    assert relative_error(filled(trace.record.values), filled(together.values)) < 1e-5
    assert relative_error(trace.record.maps[0].by_grid[0], together.maps[0].by_grid[0]) < 1e-5


# --- partial and empty traces ----------------------------------------------------------------------------------------


def test_interrupted_run_gives_the_steps_that_it_had(comfy):
    def interrupted(step, *_):
        if step == 1:
            raise InterruptProcessingException()

    model, trace = traced(comfy, updated(comfy, toy.model()))
    run(model, steps=5)
    whole = trace.record
    with pytest.raises(InterruptProcessingException):
        run(model, steps=5, callback=interrupted)
    record = trace.record
    assert (record.is_complete, whole.is_complete) == (False, True)
    assert torch.equal(filled(record.values[:, :2]), filled(whole.values[:, :2]))
    assert record.values[:, 2:].isnan().all()
    node(comfy, "EBCAEnergyPlot").execute(trace=trace, latent=toy.latent())  # there is no latent of that run


def test_error_of_a_run_is_the_one_that_its_user_sees(comfy, pack, monkeypatch):
    def broken(*_):
        raise KeyError("of a sampler")

    def unreadable(*_, **__):
        raise RuntimeError("the device is gone")

    monkeypatch.setattr(pack.comfyui_binding.trace.recorder.RunRecorder, "record", unreadable)
    model, _ = traced(comfy, toy.model())
    with pytest.raises(KeyError, match="of a sampler"):
        run(model, callback=broken)


def test_picture_is_not_lost_with_its_record(comfy, pack, monkeypatch, caplog):
    monkeypatch.setattr(pack.comfyui_binding.trace.recorder.RunRecorder, "record", lambda *_, **__: 1 / 0)
    model, trace = traced(comfy, toy.model())
    assert torch.equal(run(model), run(toy.model()))
    assert trace.record is None
    assert any("could not build its record" in message for message in messages(caplog))


INSTRUMENTS = [
    ("RunRecorder", "call_recorder"), ("RunRecorder", "add"), ("CallRecorder", "begin"),
    ("CallRecorder", "record_prompts"), ("CallRecorder", "record_edit"), ("CallRecorder", "record_maps"),
]  # fmt: skip


@pytest.mark.parametrize("instrument", INSTRUMENTS, ids=".".join)
def test_picture_is_not_lost_with_an_instrument(comfy, pack, monkeypatch, caplog, instrument):
    """Whatever it meets, in whichever call: the run ends with its picture and one line."""
    owner = getattr(pack.comfyui_binding.trace.recorder, instrument[0])
    working, calls = getattr(owner, instrument[1]), []

    def breaks_late(*args, **kwargs):
        calls.append(args)
        if len(calls) > 3:
            raise torch.OutOfMemoryError("of an instrument")
        return working(*args, **kwargs)

    monkeypatch.setattr(owner, instrument[1], breaks_late)
    model = composed(comfy, toy.model())
    traced_model, trace = traced(comfy, model, attention_maps=True)
    assert torch.equal(run(traced_model, steps=5), run(model, steps=5))
    (message,) = messages(caplog)
    assert "the image is not affected" in message
    assert not trace.record.is_complete
    assert trace.record.values[:, -1].isnan().all()


def test_interruption_is_no_failure_of_an_instrument(comfy, pack, monkeypatch):
    def interrupted(*_, **__):
        raise InterruptProcessingException()

    monkeypatch.setattr(pack.comfyui_binding.trace.recorder.CallRecorder, "record_prompts", interrupted)
    model, _ = traced(comfy, toy.model())
    with pytest.raises(InterruptProcessingException):
        run(model)


def test_plot_that_cannot_be_drawn_is_a_sheet_that_says_so(comfy, pack, monkeypatch, caplog):
    model, trace = traced(comfy, toy.model())
    latent = {"samples": run(model)}
    monkeypatch.setattr(pack.nodes.trace_nodes, "energy_plot", lambda records: 1 / 0)
    (image,) = node(comfy, "EBCAEnergyPlot").execute(trace=trace, latent=latent)
    assert image.shape[-1] == 3
    assert any("could not be drawn" in message for message in messages(caplog))


# --- texts and layers that are another pack's ------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [64, 141, 154, 231])
def test_maps_of_a_text_that_is_not_the_prompts_are_left_out(comfy, caplog, tokens):
    """Also where its length is a multiple of the prompt's: what is no repetition is no prompt."""
    scene = other_packs.scene(latent=toy.latent(1, 8, 8), fresh=True)
    model, trace = traced(comfy, scene.model, attention_maps=True)
    swapped = other_packs.swapped_texts(tokens)
    plain, got = swapped(comfy, scene).sampled(comfy), swapped(comfy, replace(scene, model=model)).sampled(comfy)
    assert torch.equal(got, plain)
    assert trace.record.maps == ()
    assert trace.record.values[:3].isfinite().all()
    (message,) = messages(caplog)
    assert "attention maps not read" in message
    ordinary, whole = traced(comfy, other_packs.hand_swapped(tokens)(comfy, scene).model)
    replace(other_packs.hand_swapped(tokens)(comfy, scene), model=ordinary).sampled(comfy)
    assert relative_error(filled(trace.record.values), filled(whole.record.values)) < 1e-6


def test_maps_over_several_texts_are_said_to_be(comfy, caplog):
    scene = other_packs.scene(latent=toy.latent(1, 8, 8), fresh=True)
    model, trace = traced(comfy, scene.model, attention_maps=True)
    other_packs.swapped_texts(77, from_sigma=3.0)(comfy, replace(scene, model=model)).sampled(comfy)
    (message,) = messages(caplog)
    assert "means over several texts" in message
    assert trace.record.maps


def test_layers_that_do_not_read_the_prompt_are_not_recorded(comfy, caplog):
    scene = other_packs.scene(latent=toy.latent(1, 8, 8), fresh=True)
    model, trace = traced(comfy, updated(comfy, scene.model))
    wire = other_packs.own_text
    assert torch.equal(wire(comfy, replace(scene, model=model)).sampled(comfy), wire(comfy, scene).sampled(comfy))
    assert trace.record.roles == ()
    (message,) = messages(caplog)
    assert "ignores the prompt it is given" in message


@pytest.mark.parametrize("attention_maps", [False, True])
def test_animatediffs_windows_are_recorded_as_the_whole_batch(comfy, attention_maps):
    def recorded(wire):
        scene = other_packs.scene(fresh=True)
        model, trace = traced(comfy, updated(comfy, scene.model), attention_maps=attention_maps)
        replace(wire(comfy, replace(scene, model=model)), latent=toy.latent(4, 8, 8)).sampled(comfy)
        return trace.record

    apart, whole = recorded(other_packs.animatediff_windows()), recorded(lambda comfy, scene: scene)
    assert relative_error(filled(apart.values), filled(whole.values)) < 1e-5
    for one, other in zip(apart.maps, whole.maps, strict=True):
        assert one.weights == other.weights
        assert all(relative_error(*grids) < 1e-5 for grids in zip(one.by_grid, other.by_grid, strict=True))


def test_run_that_ended_in_nan_can_be_looked_at(comfy):
    model, trace = traced(comfy, toy.model())
    with torch.no_grad():
        model.model.diffusion_model.out[-1].bias.fill_(math.nan)
    latent = {"samples": run(model)}
    assert latent["samples"].isnan().all()
    node(comfy, "EBCAEnergyPlot").execute(trace=trace, latent=latent)
    refused(lambda: node(comfy, "EBCAEnergyPlot").execute(trace=trace, latent=toy.latent()), "another")


def test_run_of_a_single_sigma_is_recorded(comfy):
    def one_call(model, x, sigmas, extra_args, callback, disable):
        return model(x, sigmas[:1].expand(len(x)), **extra_args)

    model, trace = traced(comfy, toy.model())
    with torch.inference_mode():
        sample_custom(
            model, toy.noise(1, 4, 8, 8), 4.0, KSAMPLER(one_call), torch.tensor([2.0]),
            toy.conditioning(1), toy.conditioning(99), torch.zeros(1, 4, 8, 8), disable_pbar=True,
        )  # fmt: skip
    assert trace.record.values.shape[1] == 1
    assert trace.record.roles == ("positive", "negative")


# --- the right run ---------------------------------------------------------------------------------------------------


def test_latent_of_another_run_is_refused(comfy):
    """As when ComfyUI has kept the latent of an earlier run: the trace holds the last one."""
    model, trace = traced(comfy, updated(comfy, toy.model()))
    plot = node(comfy, "EBCAEnergyPlot")
    first, second = ({"samples": run(model, seed=seed)} for seed in (1, 2))
    refused(lambda: plot.execute(trace=trace, latent=first), "another", "Use one EBCA Trace")
    refused(lambda: plot.execute(trace=trace, latent=toy.latent()), "another")
    plot.execute(trace=trace, latent=second)
    plot.execute(trace=trace, latent={"samples": second["samples"].half()})


def test_one_trace_wired_twice_is_refused(comfy):
    model, trace = traced(comfy, toy.model())
    latent = {"samples": run(model)}
    plot = node(comfy, "EBCAEnergyPlot")
    refused(lambda: plot.execute(trace=trace, latent=latent, trace_b=trace, latent_b=latent), "are the same trace")


def test_copied_options_report_to_the_same_trace(comfy):
    import copy

    model, trace = traced(comfy, toy.model())
    model.model_options = copy.deepcopy(model.model_options)
    run(model)
    assert trace.record.roles


EMPTY = ("The trace is empty", "change the seed")


@pytest.mark.parametrize("reader", ["EBCAEnergyPlot", "EBCASaveTrace"])
def test_trace_without_a_run_is_refused(comfy, reader):
    _, trace = traced(comfy, toy.model())
    refused(lambda: node(comfy, reader).execute(trace=trace, latent=toy.latent()), *EMPTY)


def test_plot_that_would_not_wait_for_the_run_is_refused(comfy):
    model, trace = traced(comfy, toy.model())
    run(model)
    plot = node(comfy, "EBCAEnergyPlot")
    refused(lambda: plot.execute(trace=trace), "latent is not connected")
    (other, trace_b) = traced(comfy, toy.model())
    latent = {"samples": run(other)}
    refused(lambda: plot.execute(trace=trace_b, latent=latent, trace_b=trace), "latent_b is not connected")


def test_call_outside_any_run_says_that_nothing_is_recorded(comfy, caplog):
    model, trace = traced(comfy, toy.model())
    options = model.model_options["transformer_options"] | {"cond_or_uncond": [0], "wrappers": model.wrappers}
    with torch.inference_mode():
        model.model.apply_model(
            toy.noise(1, 4, 8, 8), torch.ones(1), c_crossattn=toy.conditioning(1)[0][0], transformer_options=options
        )
    assert trace.record is None
    assert any("EBCA Trace: nothing is recorded" in message for message in messages(caplog))


@pytest.mark.parametrize("at_once", [True, False])
def test_run_in_tiles_leaves_a_trace_that_says_so(comfy, caplog, at_once):
    scene = other_packs.scene(latent=toy.latent(1, 16, 16))
    model, trace = traced(comfy, scene.model)
    other_packs.tiles(at_once)(comfy, replace(scene, model=model)).sampled(comfy)
    refused(lambda: node(comfy, "EBCAEnergyPlot").execute(trace=trace, latent=toy.latent()), "has no steps", "the log")
    assert any("EBCA Trace: layers not read" in message for message in messages(caplog))


def test_models_without_cross_attention_are_refused(comfy):
    refused(lambda: traced(comfy, toy.model("hunyuan_video")), "HunyuanVideo", "SD 1.x")


# --- settings and files ----------------------------------------------------------------------------------------------


def test_record_holds_what_the_nodes_asked_for(comfy):
    model = updated(comfy, toy.model(), blocks="d1,u0", apply_to="positive", end_percent=0.5)
    model, trace = traced(comfy, composed(comfy, model, alpha=0.4))
    run(model)
    (update,), (edit,) = trace.record.settings["updates"], trace.record.settings["edits"]
    assert (update["gamma_attn"], update["window"]["end_percent"], update["apply_to"]) == (0.02, 0.5, "positive")
    assert update["layers"] == ["d1.0", "u0.0"]
    assert (edit["direction"], edit["alpha"]) == ("add", 0.4)


def test_saved_trace_comes_back(comfy, pack, tmp_path):
    model, trace = traced(comfy, composed(comfy, updated(comfy, toy.model()), alpha=0.4), attention_maps=True)
    latent = {"samples": run(model, latent=toy.latent(2, 8, 8))}
    files, record = pack.comfyui_binding.trace.trace_file, trace.record
    files.save(tmp_path / "x.safetensors", record, {})
    loaded = files.load(tmp_path / "x.safetensors")
    assert torch.equal(filled(loaded.values), filled(record.values))
    assert list(loaded.layers) == list(record.layers)
    assert loaded.settings == record.settings
    assert list(loaded.sigmas) == pytest.approx(record.sigmas)
    assert all(torch.equal(a, b) for a, b in zip(loaded.maps[0].by_grid, record.maps[0].by_grid, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(loaded.prompts, record.prompts, strict=True))
    plot = node(comfy, "EBCAEnergyPlot")
    from_file = type(trace)(True, loaded, is_from_file=True)
    (live,) = plot.execute(trace=trace, latent=latent)
    assert torch.equal(plot.execute(trace=from_file)[0], live)
    (both,) = plot.execute(trace=trace, latent=latent, trace_b=from_file)
    assert both.shape[2] == 2 * live.shape[2]  # with columns for the difference


@pytest.mark.parametrize(
    "metadata", [None, *({"ebca_trace": text} for text in ("{}", "no json", "[]", "3", '{"map_weights": 3}'))]
)
def test_other_files_are_refused(pack, tmp_path, metadata):
    from safetensors.torch import save_file

    path = tmp_path / "other.safetensors"
    save_file({"x": torch.zeros(1)}, path, metadata)
    refused(lambda: pack.comfyui_binding.trace.trace_file.load(path), "EBCA Save Trace", "other.safetensors")
    path.write_bytes(b"nothing of the kind")
    refused(lambda: pack.comfyui_binding.trace.trace_file.load(path), "EBCA Save Trace", "other.safetensors")
