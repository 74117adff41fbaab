"""EBCA Trace: what it records is what the layers had, it changes nothing, and it says so when there is nothing."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from comfy.ldm.modules.attention import attention_basic
from comfy.model_management import InterruptProcessingException

from ebca_core import attention_energy, norm_energy
from support import neighbours, toy
from support.host import node
from support.said import messages, refused
from support.sampling import relative_error, sample
from support.watching import watched

ACTIVE = dict(gamma_attn=0.02, gamma_norm=0.02)
SMALL = dict(latent=toy.latent(1, 8, 8))
BLOCKS = ["d0.0", "d1.0", "m0.0", "u0.0", "u1.0", "u2.0", "u3.0"]  # of toy.model("sd1")


def updated(comfy, model, **inputs):
    return node(comfy, "EBCAContextUpdate").execute(model=model, **{**ACTIVE, **inputs})[0]


def composed(comfy, model, **inputs):
    windows = dict(start_percent=0.0, gamma_start_percent=0.0)
    edit = node(comfy, "EBCAEditContext").execute(conditioning=toy.conditioning(7), **windows, **inputs)[0]
    return node(comfy, "EBCACompose").execute(model=model, edits={"edit0": edit})[0]


def traced(comfy, model, attention_maps=False):
    return node(comfy, "EBCATrace").execute(model=model, attention_maps=attention_maps)


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


def test_update_size_is_how_far_the_layer_moves_the_context(comfy):
    record, steps = watched_run(comfy, updated(comfy, toy.model()), steps=2)
    for step, layers in enumerate(steps):
        prompt = layers[0].context
        for layer, (call, following) in enumerate(pairwise(layers)):
            expected = (following.context - call.context).flatten(1).norm(dim=1) / prompt.flatten(1).norm(dim=1)
            assert relative_error(record.values[3, step, layer].flip(0), expected) < 1e-3
        assert record.values[3, step, -1].tolist() == [0.0, 0.0]  # nothing would read the last layer's update


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
    assert (record.values[3] == 0).all()


def test_batches_are_means_over_their_images(comfy):
    def recorded(latent, positive):
        model, trace = traced(comfy, updated(comfy, toy.model()))
        run(model, positive, latent=latent)
        return trace.record.values

    pair = recorded({**toy.latent(2, 8, 8), "batch_index": [0, 1]}, toy.conditioning(1))
    one, other = (recorded({**toy.latent(1, 8, 8), "batch_index": [i]}, toy.conditioning(1)) for i in (0, 1))
    assert relative_error(pair, (one + other) / 2) < 1e-5


def test_prompts_of_other_lengths_are_read_as_if_alone(comfy):
    """ComfyUI repeats the shorter one's tokens; under cfg 1 it is alone."""

    def recorded(cfg):
        model, trace = traced(comfy, toy.model(), attention_maps=True)
        run(model, toy.conditioning(1), negative=toy.conditioning(99, tokens=154), cfg=cfg, steps=1)
        return trace.record

    together, alone = recorded(4.0), recorded(1.0)
    assert relative_error(together.values[..., 0], alone.values[..., 0]) < 1e-5
    for both, one in zip(together.maps[0].by_grid, alone.maps[0].by_grid, strict=True):
        assert both.shape == one.shape
        assert relative_error(both, one) < 1e-5


def test_several_calls_in_a_step_are_its_mean(comfy):
    """heun calls the model at the sigma of the next step too, and there twice."""
    model, trace = traced(comfy, toy.model())
    with watched(model) as seen:
        run(model, sampler="heun", steps=2)
    calls = [seen[i] for i in range(0, len(seen), len(BLOCKS))]  # the first layer's: sigmas 0, 1, 1
    expected = [energies_by_basic_attention(call, 1)[0] for call in calls]
    assert len(calls) == 3
    found = trace.record.values[0, :, 0, 0].tolist()
    assert found == pytest.approx([expected[0], (expected[1] + expected[2]) / 2], rel=1e-5)


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
    assert [tuple(grid.shape[-2:]) for grid in maps.by_grid] == [(19, 32)]
    for grid in maps.by_grid:
        assert torch.allclose(grid.sum(dim=1), torch.ones_like(grid.sum(dim=1)), atol=1e-5)


def test_large_layers_are_read_in_parts(comfy, pack, monkeypatch):
    def recorded():
        model, trace = traced(comfy, updated(comfy, toy.model()), attention_maps=True)
        run(model, latent=toy.latent(3, 8, 8), steps=2)
        return trace.record

    whole = recorded()
    monkeypatch.setattr(pack.comfyui_binding.readings, "MATRIX_ENTRIES", 1)
    parts = recorded()
    assert relative_error(parts.values, whole.values) < 1e-6
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


@pytest.mark.parametrize("steps", [2, 12])
def test_maps_take_no_more_memory_in_longer_runs(comfy, steps):
    model, trace = traced(comfy, toy.model(), attention_maps=True)
    run(model, steps=steps)
    assert [tuple(grid.shape) for grid in trace.record.maps[0].by_grid] == [(1, 77, 4, 4), (1, 77, 8, 8)]


def test_each_run_clears_the_trace(comfy):
    model, trace = traced(comfy, updated(comfy, toy.model()))
    run(model, steps=3)
    first = trace.record
    run(model, steps=2)
    assert trace.record is not first
    assert len(trace.record.sigmas) == 2


def test_two_samplers_with_a_trace_each_do_not_mix(comfy):
    model = updated(comfy, toy.model())
    (one, trace), (other, trace_b) = traced(comfy, model), traced(comfy, model)
    run(one, steps=3)
    before = trace.record.values.clone()
    run(other, toy.conditioning(2), steps=2, seed=5)
    assert torch.equal(trace.record.values, before)
    alone, trace_c = traced(comfy, model)
    run(alone, toy.conditioning(2), steps=2, seed=5)
    assert torch.equal(trace_b.record.values, trace_c.record.values)


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
    assert relative_error(trace.record.values, together.values) < 1e-5
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
    assert torch.equal(record.values[:, :2], whole.values[:, :2])
    assert record.values[:, 2:].isnan().all()
    node(comfy, "EBCAEnergyPlot").execute(trace=trace, latent=toy.latent())


EMPTY = ("the trace is empty", "change the seed")


@pytest.mark.parametrize("reader", ["EBCAEnergyPlot", "EBCASaveTrace"])
def test_trace_without_a_run_is_refused(comfy, reader):
    _, trace = traced(comfy, toy.model())
    refused(lambda: node(comfy, reader).execute(trace=trace, latent=toy.latent()), *EMPTY)


def test_plot_that_would_not_wait_for_the_run_is_refused(comfy):
    model, trace = traced(comfy, toy.model())
    run(model)
    plot = node(comfy, "EBCAEnergyPlot")
    refused(lambda: plot.execute(trace=trace), "latent is not wired")
    refused(lambda: plot.execute(trace=trace, latent=toy.latent(), trace_b=trace), "latent_b is not wired")


def test_call_outside_any_run_says_that_nothing_is_recorded(comfy, caplog):
    model, trace = traced(comfy, toy.model())
    options = model.model_options["transformer_options"] | {"cond_or_uncond": [0], "wrappers": model.wrappers}
    with torch.inference_mode():
        model.model.apply_model(
            toy.noise(1, 4, 8, 8), torch.ones(1), c_crossattn=toy.conditioning(1)[0][0], transformer_options=options
        )
    assert trace.record is None
    assert any("EBCA Trace records nothing here" in message for message in messages(caplog))


@pytest.mark.parametrize("at_once", [True, False])
def test_run_in_tiles_leaves_a_trace_that_says_so(comfy, caplog, at_once):
    scene = neighbours.scene(latent=toy.latent(1, 16, 16))
    model, trace = traced(comfy, scene.model)
    neighbours.tiles(at_once)(comfy, replace(scene, model=model)).sampled(comfy)
    refused(lambda: node(comfy, "EBCAEnergyPlot").execute(trace=trace, latent=toy.latent()), "could be read", "the log")
    assert any("EBCA Trace leaves out layers" in message for message in messages(caplog))


def test_models_without_cross_attention_are_refused(comfy):
    refused(lambda: traced(comfy, toy.model("flux")), "Flux", "SD 1.x")


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
    run(model, latent=toy.latent(2, 8, 8))
    files, record = pack.comfyui_binding.trace_file, trace.record
    files.save(tmp_path / "x.safetensors", record, {})
    loaded = files.load(tmp_path / "x.safetensors")
    assert torch.equal(loaded.values, record.values)
    assert list(loaded.layers) == list(record.layers)
    assert loaded.settings == record.settings
    assert list(loaded.sigmas) == pytest.approx(record.sigmas)
    assert all(torch.equal(a, b) for a, b in zip(loaded.maps[0].by_grid, record.maps[0].by_grid, strict=True))
    plot = node(comfy, "EBCAEnergyPlot")
    live = plot.execute(trace=trace, latent=toy.latent())[0]
    trace_type = type(trace)
    assert torch.equal(plot.execute(trace=trace_type(True, loaded, is_from_file=True))[0], live)


@pytest.mark.parametrize("metadata", [None, {"ebca_trace": "{}"}, {"ebca_trace": "no json"}])
def test_other_files_are_refused(pack, tmp_path, metadata):
    from safetensors.torch import save_file

    path = tmp_path / "other.safetensors"
    save_file({"x": torch.zeros(1)}, path, metadata)
    refused(lambda: pack.comfyui_binding.trace_file.load(path), "EBCA Save Trace", "other.safetensors")
    path.write_bytes(b"nothing of the kind")
    refused(lambda: pack.comfyui_binding.trace_file.load(path), "EBCA Save Trace", "other.safetensors")
