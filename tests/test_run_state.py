"""No state outlives a sampling run, none is shared between threads, and no layer makes the host wait."""

from __future__ import annotations

import gc
import itertools
import logging
import math
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import comfy.sample
import comfy.samplers
import pytest
import torch
from comfy.model_management import InterruptProcessingException
from torch.utils._python_dispatch import TorchDispatchMode

from ebca_core import Window
from support import oracle, other_packs, toy
from support.host import node
from support.log_messages import messages
from support.sampling import relative_error, sample
from support.wiring import Ebca, text


def edited(comfy):
    """A toy MODEL with a context update and an edit whose context is carried through the run."""
    model = node(comfy, "EBCAContextUpdate").execute(model=toy.model(), gamma_attn=0.02, gamma_norm=0.01)[0]
    edit = node(comfy, "EBCAEditContext").execute(
        conditioning=toy.conditioning(7), alpha=0.6, start_percent=0.0, gamma_attn=0.004, gamma_norm=0.003,
        gamma_start_percent=0.0,
    )  # fmt: skip
    return node(comfy, "EBCACompose").execute(model=model, edits={"edit0": edit[0]})[0]


def interrupted(step, *_):
    if step == 1:
        raise InterruptProcessingException()


def failing(executor, *args, **kwargs):
    executor(*args, **kwargs)
    raise RuntimeError("out of memory")


def live_runs(pack):
    gc.collect()
    return [thing for thing in gc.get_objects() if isinstance(thing, pack.comfyui_binding.runtime.sampling_run.Run)]


def test_interrupted_run_leaves_nothing_behind(comfy, pack):
    model, fresh = edited(comfy), sample(edited(comfy), toy.conditioning(1))
    with pytest.raises(InterruptProcessingException):
        sample(model, toy.conditioning(1), callback=interrupted)
    assert live_runs(pack) == []
    assert torch.equal(sample(model, toy.conditioning(1)), fresh)


def test_failed_call_leaves_nothing_behind(comfy, pack):
    model, fresh = edited(comfy), sample(edited(comfy), toy.conditioning(1))
    broken = model.clone()
    broken.add_wrapper_with_key("diffusion_model", "broken", failing)
    with pytest.raises(RuntimeError, match="out of memory"):
        sample(broken, toy.conditioning(1))
    assert live_runs(pack) == []
    assert torch.equal(sample(model, toy.conditioning(1)), fresh)


def test_second_run_begins_as_the_first_did(comfy):
    model = edited(comfy)
    first = sample(model, toy.conditioning(1))
    sample(model, toy.conditioning(2), seed=5)
    assert torch.equal(sample(model, toy.conditioning(1)), first)


def test_many_runs_leave_nothing_behind(comfy, pack):
    def tensors() -> int:
        gc.collect()
        return sum(isinstance(thing, torch.Tensor) for thing in gc.get_objects())

    model, positive, negative = edited(comfy), toy.conditioning(1), toy.conditioning(99)
    for _ in range(3):
        sample(model, positive, negative)
    before = tensors()
    for _ in range(5):
        sample(model, positive, negative)
    assert tensors() <= before
    assert live_runs(pack) == []


def split_run(model, run_both) -> torch.Tensor:
    """A run whose prompts go through the model apart, as on two devices; run_both(function, roles) -> both outputs."""

    def euler(denoiser, x, sigmas, extra_args, callback, disable):
        guider, options = denoiser.inner_model, extra_args["model_options"]

        def output(role: str) -> torch.Tensor:
            with torch.inference_mode():
                cond = [guider.conds[role]]
                return comfy.samplers.calc_cond_batch(guider.inner_model, cond, x, sigma.expand(len(x)), options)[0]

        for sigma, following in itertools.pairwise(sigmas):
            positive, negative = run_both(output, ("positive", "negative"))
            denoised = negative + 4.0 * (positive - negative)
            x = x + (x - denoised) / sigma * (following - sigma)
        return x

    sigmas, noise = torch.tensor([10.0, 6.0, 3.0, 1.0, 0.0]), toy.noise(2, 4, 16, 16)
    with torch.inference_mode():
        return comfy.sample.sample_custom(
            model, noise, 4.0, comfy.samplers.KSAMPLER(euler), sigmas, toy.conditioning(1), toy.conditioning(99),
            torch.zeros_like(noise), disable_pbar=True,
        )  # fmt: skip


@pytest.mark.parametrize("runs", [4, pytest.param(6, marks=pytest.mark.nightly)])
def test_denoiser_calls_in_two_threads_do_not_mix(comfy, runs):
    """As ComfyUI's split over several devices makes them: one thread for each prompt, at the same sigma."""
    model = edited(comfy)
    expected = split_run(model, map)
    with ThreadPoolExecutor(2) as pool:
        assert all(torch.equal(split_run(model, pool.map), expected) for _ in range(runs))
    assert not torch.equal(split_run(toy.model(), map), expected)


def test_trace_of_calls_in_two_threads_is_that_of_calls_in_turn(comfy):
    model, trace = node(comfy, "EBCATrace").execute(model=edited(comfy), attention_maps=True)
    split_run(model, map)
    expected = trace.record
    with ThreadPoolExecutor(2) as pool:
        split_run(model, pool.map)
    assert torch.equal(trace.record.values.nan_to_num(), expected.values.nan_to_num())  # NaN in the last layer
    assert trace.record.roles == ("positive", "negative", "edit0")
    assert all(map(torch.equal, trace.record.maps[0].by_grid, expected.maps[0].by_grid))


class Watch(TorchDispatchMode):
    """Notes operators that wait for a device: those whose result the host must read to go on."""

    WAITING = ("item", "_local_scalar_dense", "nonzero", "masked_select", "equal", "unique", "is_nonzero")

    def __init__(self):
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name.startswith(self.WAITING):
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


def waits(model) -> list[str]:
    """What is seen inside the calls of the model's U-Net."""
    watch = Watch()

    def watched(executor, *args, **kwargs):
        with watch:
            return executor(*args, **kwargs)

    model = model.clone()
    model.add_wrapper_with_key("diffusion_model", "watch", watched)
    sample(model, toy.conditioning(1), toy.conditioning(99, 154))
    return watch.seen


def test_no_layer_makes_the_host_wait_for_the_device(comfy, pack):
    mask = (toy.noise(1, 16, 16, seed=7) > 0).float()
    everything = Ebca(
        [oracle.Update(0.02, 0.01, torch.linspace(0.5, 2.0, 77), mask, window=(0.0, 0.7))],
        [oracle.Edit(text(21), 0.8, 0.004, 0.003, gamma_window=(0.2, 0.9)), oracle.Edit(text(22), -0.5)],
        [mask, None],
    )
    model = everything.on(comfy, pack, toy.model())
    assert waits(model) == []
    assert waits(node(comfy, "EBCATrace").execute(model=model, attention_maps=True)[0]) == []


@pytest.mark.parametrize(("window", "waiting"), [({}, False), (dict(end_percent=0.5), True)])
def test_traced_run_waits_only_where_a_window_has_to_know_sigma(comfy, window, waiting):
    """What is read stays on the device until the run ends."""
    watch = Watch()

    def watched(executor, *args, **kwargs):
        with watch:
            return executor(*args, **kwargs)

    model = toy.model()
    model.add_wrapper_with_key("apply_model", "watch", watched)  # added first, it is around EBCA's own
    model = node(comfy, "EBCAContextUpdate").execute(model=model, **window)[0]
    model, trace = node(comfy, "EBCATrace").execute(model=model, attention_maps=True)
    sample(model, toy.conditioning(1))
    assert bool(watch.seen) == waiting
    assert trace.record.roles


def test_the_watch_sees_a_wait(comfy):
    def waiting(n, context, value, options):
        return n * n.amax().item(), context, value

    model = toy.model()
    model.set_model_attn2_patch(waiting)
    assert waits(model)


# --- what other packs change from step to step -----------------------------------------------------------------------


@pytest.mark.parametrize("above", [2.0, math.inf], ids=["from some step on", "from the first step on"])
def test_values_that_a_pack_changes_late_stay_changed(comfy, caplog, above):
    """An update that is too small to be seen leaves the pack's picture as it is."""
    wire, scene = other_packs.values_apart(above), other_packs.scene(fresh=True)
    alone = wire(comfy, scene).sampled(comfy)
    assert relative_error(alone, scene.sampled(comfy)) > 1e-3
    updated = node(comfy, "EBCAContextUpdate").execute(model=scene.model, gamma_attn=1e-6, gamma_norm=0.0)[0]
    assert relative_error(wire(comfy, replace(scene, model=updated)).sampled(comfy), alone) < 1e-4
    (message,) = messages(caplog)
    assert "changes the keys only" in message


def test_values_of_equal_texts_follow_the_update(comfy, caplog):
    """As long as values are made of a copy of the keys' text, the update changes both."""
    scene = other_packs.scene(fresh=True)
    updated = replace(scene, model=edited(comfy))
    assert torch.equal(other_packs.values_apart(-1.0)(comfy, updated).sampled(comfy), updated.sampled(comfy))
    assert not messages(caplog)


def test_layer_whose_text_another_node_stops_replacing_is_updated_from_then_on(comfy, caplog):
    scene = other_packs.scene(fresh=True)
    wire = other_packs.own_text_until(3.0)
    updated = replace(scene, model=edited(comfy))
    alone, together = wire(comfy, scene).sampled(comfy), wire(comfy, updated).sampled(comfy)
    assert relative_error(together, alone) > 1e-3
    assert any("ignores the prompt it is given" in message for message in messages(caplog))


def test_host_does_not_wait_for_values_apart(comfy):
    model = edited(comfy)
    model.set_model_attn2_patch(lambda n, context, value, options: (n, context, value.clone()))
    assert waits(model) == []


# --- the stages of one image -----------------------------------------------------------------------------------------

CONTINUES = "the edits start this stage of the image with their prompts as encoded"


def in_two_stages(comfy, model, add_noise_again="disable", start=2):
    stage = node(comfy, "KSamplerAdvanced")
    common = dict(
        model=model, noise_seed=0, steps=4, cfg=4.0, sampler_name="euler", scheduler="normal",
        positive=toy.conditioning(1), negative=toy.conditioning(99),
    )  # fmt: skip
    (first,) = stage.execute(
        **common, add_noise="enable", latent_image=toy.latent(), start_at_step=0, end_at_step=start,
        return_with_leftover_noise="enable",
    )  # fmt: skip
    return stage.execute(
        **common, add_noise=add_noise_again, latent_image=first, start_at_step=start, end_at_step=10000,
        return_with_leftover_noise="disable",
    )[0]["samples"]  # fmt: skip


def test_second_stage_says_that_edits_begin_afresh(comfy, caplog):
    caplog.set_level(logging.INFO, "ebca")
    in_two_stages(comfy, edited(comfy))
    assert sum(CONTINUES in message for message in messages(caplog)) == 1


def test_stages_of_anything_else_say_nothing(comfy, caplog):
    caplog.set_level(logging.INFO, "ebca")
    update = node(comfy, "EBCAContextUpdate").execute(model=toy.model())[0]
    still = node(comfy, "EBCAEditContext").execute(conditioning=toy.conditioning(7), gamma_attn=0.0, gamma_norm=0.0)
    in_two_stages(comfy, update)
    in_two_stages(comfy, node(comfy, "EBCACompose").execute(model=toy.model(), edits={"edit0": still[0]})[0])
    sample(edited(comfy), toy.conditioning(1))
    sample(edited(comfy), toy.conditioning(1), latent={"samples": toy.noise(1, 4, 16, 16)}, denoise=0.5)
    assert not any(CONTINUES in message for message in messages(caplog))


# --- packs that throw away what others have set ----------------------------------------------------------------------


@pytest.mark.parametrize("kinds", [("apply_model",), ("apply_model", "outer_sample"), ("diffusion_model",), (
    "outer_sample", "sampler_sample", "apply_model", "diffusion_model")], ids="-".join)
def test_line_says_what_helps_where_wrappers_are_thrown_away(comfy, caplog, kinds):
    scene, wire = other_packs.scene(fresh=True), other_packs.throws_wrappers_away(*kinds)
    plain, updated = scene.sampled(comfy), replace(scene, model=edited(comfy))
    assert torch.equal(wire(comfy, updated).sampled(comfy), plain)
    (message,) = messages(caplog)
    assert "Place EBCA's nodes after that node" in message
    behind = wire(comfy, scene)
    behind = replace(behind, model=node(comfy, "EBCAContextUpdate").execute(model=behind.model)[0])
    assert not torch.equal(behind.sampled(comfy), plain)
    assert len(messages(caplog)) == 1


def test_line_says_what_helps_where_the_options_are_thrown_away(comfy, caplog):
    scene = other_packs.scene(fresh=True)
    model = edited(comfy)
    model.model_options["transformer_options"].pop("ebca")
    assert torch.equal(replace(scene, model=model).sampled(comfy), scene.sampled(comfy))
    (message,) = messages(caplog)
    assert "Place EBCA's nodes after that node" in message


@pytest.fixture
def shown(pack, monkeypatch):
    """What the nodes of the graph show: {id: the last text}."""
    texts = {}
    monkeypatch.setattr(pack.comfyui_binding.sampling_hooks, "show_on_node", texts.__setitem__)
    return texts


def test_each_node_shows_what_its_own_update_did(pack, shown):
    """Two updates move one context; the third is never on."""
    def updated(model, node_id, gamma, *window):
        update = pack.comfyui_binding.runtime.settings.ContextUpdate(gamma, 0.0, Window(*window), node_id=node_id)
        return pack.comfyui_binding.model_patch.with_update(model, update)

    model = updated(updated(updated(toy.model(), "1", 0.01), "2", 0.02), "3", 0.01, 0.5, 0.500001)
    sample(model, toy.conditioning(1))
    assert shown["1"] == shown["2"]
    moved = re.fullmatch(r"moved the prompt by ([\d.]+)% in (\d+) layers, (\d+) calls", shown["1"])
    assert float(moved[1]) > 0
    assert "none of its steps lies between" in shown["3"]


def test_a_negative_prompt_of_zeros_has_no_share_in_what_the_node_shows(pack, shown):
    """With little memory ComfyUI calls the model for each prompt alone."""
    update = pack.comfyui_binding.runtime.settings.ContextUpdate(0.01, 0.0, Window(), node_id="1")
    model = pack.comfyui_binding.model_patch.with_update(toy.model(seed=21), update)
    model.model.memory_required = lambda shape, *args, **kwargs: 1e30 if shape[0] > 1 else 1.0
    zeros = [[torch.zeros_like(toy.conditioning(2)[0][0]), {}]]
    sample(model, toy.conditioning(1), zeros)
    assert 0 < float(re.search(r"by ([\d.]+)%", shown["1"])[1]) < 100
