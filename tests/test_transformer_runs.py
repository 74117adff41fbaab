"""Whole runs of transformers with an update and edits equal explicit loops over texts, whatever is batched together."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from support import oracle, toy, toy_dit
from support.host import node
from support.probes import rows_of_calls
from support.sampling import relative_error
from support.transformer_runs import Ebca, ebca, edits, run, update

TOLERANCE = 1e-5
interface = pytest.mark.interface

each_family = pytest.mark.parametrize("family", toy_dit.FAMILIES)


def equals_the_loop(comfy, pack, model, family, case, **options):
    """The nodes on a MODEL against the hand-made run of the same MODEL; the final latent."""
    with case.applied(family, model):
        expected = run(model, family, **options)
    got = run(case.on(comfy, pack, model), family, **options)
    assert relative_error(got, expected) < TOLERANCE
    return got


# --- one prompt each -------------------------------------------------------------------------------------------------

CASES = {
    "update": lambda family: Ebca([update(family)]),
    "edits": lambda family: Ebca(edits=edits(family)),
    "both": ebca,
}


@each_family
@pytest.mark.parametrize("name", ["update", "edits", pytest.param("both", marks=interface)])
def test_run_equals_the_loop_over_texts(comfy, pack, family, name):
    model = toy_dit.model(family)
    got = equals_the_loop(comfy, pack, model, family, CASES[name](family))
    assert relative_error(got, run(model, family)) > 100 * TOLERANCE


@each_family
def test_two_evaluations_a_step_equal_the_loop(comfy, pack, family):
    """heun has two noise levels a step, and edits carry their change from each of them."""
    equals_the_loop(comfy, pack, toy_dit.model(family), family, ebca(family), sampler="heun", steps=2, denoise=0.5)


@each_family
def test_windows_and_gammas_of_their_own_equal_the_loop(comfy, pack, family):
    added, removed = edits(family)
    case = Ebca(
        [update(family, window=(0.0, 0.9))],
        [replace(added, window=(0.6, 1.0), gamma_window=(0.0, 0.9)), replace(removed, gamma_window=(0.6, 1.0))],
    )
    equals_the_loop(comfy, pack, toy_dit.model(family), family, case)


# --- rows of a batch -------------------------------------------------------------------------------------------------


@interface
@each_family
def test_positive_and_negative_in_one_call_or_apart(comfy, pack, monkeypatch, family):
    model = ebca(family).on(comfy, pack, toy_dit.model(family))
    rows = rows_of_calls(model)
    together = run(model, family, batch=2)
    monkeypatch.setattr(model.model, "memory_required", lambda *args, **kwargs: float("inf"))
    apart = run(model, family, batch=2)
    assert rows == [4, 4, 4, 2, 2, 2, 2, 2, 2]
    assert relative_error(apart, together) < TOLERANCE


@each_family
def test_image_of_a_batch_equals_the_image_alone(comfy, pack, family):
    model = ebca(family).on(comfy, pack, toy_dit.model(family))
    noise = toy.noise(*toy_dit.shape(family, 3), seed=3)
    together = run(model, family, latent={"samples": noise})
    alone = run(model, family, latent={"samples": noise[2:], "batch_index": [2]})
    assert relative_error(together[2:], alone) < TOLERANCE
    assert relative_error(together[:1], alone) > 100 * TOLERANCE


@interface
@each_family
def test_prompts_of_unequal_length_equal_the_loop(comfy, pack, family):
    positive, negative = toy_dit.conditioning(family, 1, 19), toy_dit.conditioning(family, 2, 15)
    equals_the_loop(
        comfy, pack, toy_dit.model(family), family, ebca(family), positive=positive, negative=negative, steps=2
    )


@pytest.mark.parametrize("family", ["wan", "ltxv", "pixart"])
def test_an_edit_with_a_text_for_each_image_equals_the_loop(comfy, pack, family):
    case = Ebca(edits=[oracle.Edit(toy_dit.conditioning(family, 21, 9, batch=2), 0.75, 0.05, 0.0)])
    equals_the_loop(comfy, pack, toy_dit.model(family), family, case, batch=2, steps=2)


@interface
@pytest.mark.parametrize("family", ["kandinsky5", "hydit", "pixart"])
def test_prompts_with_areas_equal_the_loop(comfy, pack, family):
    height, width = toy_dit.shape(family)[-2:]
    (text, options), size = toy_dit.conditioning(family, 5)[0], (height, width // 2)
    # PixArt's position embedding cannot do with less width
    area = (height, width, 0, 0) if family == "pixart" else (*size, 0, width // 4)
    positive = [*toy_dit.conditioning(family, 1), [text, {**options, "area": area, "strength": 0.7}]]
    equals_the_loop(comfy, pack, toy_dit.model(family), family, ebca(family), positive=positive, steps=2)


@interface
@pytest.mark.parametrize("family", ["wan", "predict2", "ltxv"])
def test_area_of_a_video_equals_the_loop(comfy, pack, family):
    (area,) = node(comfy, "ConditioningSetAreaPercentageVideo").execute(
        conditioning=toy_dit.conditioning(family, 5), width=0.5, height=1.0, temporal=1.0, x=0.5, y=0.0, z=0.0,
        strength=0.7,
    )  # fmt: skip
    positive = toy_dit.conditioning(family, 1) + area
    equals_the_loop(comfy, pack, toy_dit.model(family), family, ebca(family), positive=positive, frames=2, steps=2)


# --- several calls a step, several runs a picture --------------------------------------------------------------------


@interface
@pytest.mark.parametrize("family", ["wan", "predict2", "ltxv"])
def test_context_windows_over_frames_equal_the_loop(comfy, pack, family):
    (model,) = node(comfy, "ContextWindowsManual").execute(
        model=toy_dit.model(family), context_length=2, context_overlap=1, dim=2
    )
    rows = rows_of_calls(model)
    equals_the_loop(comfy, pack, model, family, ebca(family), frames=3, steps=2)
    assert len(rows) > 2 * 2


@pytest.mark.parametrize(
    "layers", [pytest.param("1", id="a block"), pytest.param("0", id="the first block", marks=interface)]
)
@pytest.mark.parametrize("family", ["wan", "wan_vace", "ltxv", "hydit"])
def test_skip_layer_guidance_in_both_orders_equals_the_loop(comfy, pack, family, layers):
    """It calls the model twice at one noise level, and blocks are left out in the second call."""

    def guided(model):
        inputs = dict(double_layers=layers, single_layers="", scale=2.0, start_percent=0.0, end_percent=1.0)
        return node(comfy, "SkipLayerGuidanceDiT").execute(model=model, **inputs)[0]

    model, case = toy_dit.model(family), ebca(family)
    got = equals_the_loop(comfy, pack, guided(model), family, case, steps=2)
    assert relative_error(run(guided(case.on(comfy, pack, model)), family, steps=2), got) < TOLERANCE
    assert relative_error(run(case.on(comfy, pack, model), family, steps=2), got) > 100 * TOLERANCE


@each_family
def test_two_stages_are_two_runs(comfy, pack, family):
    plain, case = toy_dit.model(family), ebca(family)

    def stage(model, latent=None, **options):
        return run(model, family, latent=latent, steps=4, **options)

    first, second = dict(last_step=2), dict(start_step=2, disable_noise=True, force_full_denoise=True)
    with case.applied(family, plain):
        middle = stage(plain, **first)
    with case.applied(family, plain):
        expected = stage(plain, {"samples": middle}, **second)
    model = case.on(comfy, pack, plain)
    got = stage(model, {"samples": stage(model, **first)}, **second)
    assert relative_error(got, expected) < TOLERANCE


@interface
def test_pooled_text_beside_an_edit_is_the_prompts(comfy, pack):
    """Kandinsky 5 modulates the text of an edit by it: what the edit's CLIP has pooled changes nothing."""
    model, (added, removed) = toy_dit.model("kandinsky5"), edits("kandinsky5")
    ((text, options),) = added.text
    other = replace(added, text=[[text, {**options, "pooled_output": toy.noise(1, toy_dit.POOLED, seed=77)}]])
    plain, changed = (
        run(Ebca(edits=[one, removed]).on(comfy, pack, model), "kandinsky5", steps=2) for one in (added, other)
    )
    assert torch.equal(plain, changed)


def test_each_prompt_has_its_own_pooled_text_beside_an_edit(comfy, pack):
    """The edit equals the second of two prompts, so that it changes nothing beside that."""
    model = toy_dit.model("kandinsky5")
    first, second = toy_dit.conditioning("kandinsky5", 1), toy_dit.conditioning("kandinsky5", 3)
    case = Ebca(edits=[oracle.Edit(second, 0.75)])
    both = run(case.on(comfy, pack, model), "kandinsky5", [*first, *second], steps=1, cfg=1.0)
    alone = [run(case.on(comfy, pack, model), "kandinsky5", one, steps=1, cfg=1.0) for one in (first, second)]
    assert relative_error(both, (alone[0] + alone[1]) / 2) < TOLERANCE
    assert relative_error(alone[1], run(model, "kandinsky5", second, steps=1, cfg=1.0)) < TOLERANCE
