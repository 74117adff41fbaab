"""Off is bit-identical, nothing is left behind, and nodes add up in any order."""
from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from support import oracle, toy
from support.host import node
from support.probes import described, watched
from support.sampling import relative_error, sample, sample_sigmas

SMALL = dict(steps=2, latent=toy.latent(1, 8, 8))
ACTIVE = dict(gamma_attn=0.02, gamma_norm=0.02)
ZERO = dict(gamma_attn=0.0, gamma_norm=0.0)
EDIT = dict(alpha=0.7, start_percent=0.0, gamma_attn=0.002, gamma_norm=0.001, gamma_start_percent=0.0)
ZERO_EDIT = {**EDIT, **ZERO, "alpha": 0.0}


def run(model, positive=None, **options):
    return sample(model, positive or toy.conditioning(1), **{**SMALL, **options})


def updated(comfy, model, **inputs):
    return node(comfy, "EBCAContextUpdate").execute(model=model, **{**ACTIVE, **inputs})[0]


def an_edit(comfy, seed=2, **inputs):
    return node(comfy, "EBCAEditContext").execute(conditioning=toy.conditioning(seed), **{**EDIT, **inputs})[0]


def composed(comfy, model, *edits):
    return node(comfy, "EBCACompose").execute(model=model, edits={f"edit{i}": edit for i, edit in enumerate(edits)})[0]


#: (comfy, model) -> the model with a node that is off throughout
ZEROS = {
    "update without gammas": lambda comfy, model: updated(comfy, model, **ZERO),
    "two updates without gammas": lambda comfy, model: updated(comfy, updated(comfy, model, **ZERO), **ZERO),
    "edit without alpha and gammas": lambda comfy, model: composed(comfy, model, an_edit(comfy, **ZERO_EDIT)),
    "two such edits": lambda comfy, model: composed(
        comfy, model, an_edit(comfy, **ZERO_EDIT), an_edit(comfy, 3, **ZERO_EDIT, direction="remove")
    ),
    "update and edit": lambda comfy, model: composed(comfy, updated(comfy, model, **ZERO), an_edit(comfy, **ZERO_EDIT)),
}
#: (comfy, model) -> the model with a node that is installed and does nothing
NOTHINGS = {
    "update under an empty mask": lambda comfy, model: updated(
        comfy, model, gamma_norm=0.0, mask=torch.zeros(1, 64, 64)
    ),
    "edit under an empty mask": lambda comfy, model: composed(
        comfy, model, an_edit(comfy, **ZERO, mask=torch.zeros(1, 64, 64))
    ),
    "edit without alpha in its window": lambda comfy, model: composed(comfy, model, an_edit(comfy, alpha=0.0)),
}


# --- zero is off -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
@pytest.mark.parametrize("zero", ZEROS)
def test_zero_strengths_are_bit_identical(comfy, zero, family):
    model = toy.model(family)
    assert torch.equal(run(ZEROS[zero](comfy, model)), run(model))


@pytest.mark.parametrize("zero", ZEROS)
def test_zero_strengths_install_nothing(comfy, zero):
    model = toy.model()
    assert described(ZEROS[zero](comfy, model)) == described(model)


@pytest.mark.parametrize("nothing", NOTHINGS)
def test_what_has_no_effect_is_bit_identical(comfy, nothing):
    model = toy.model()
    assert torch.equal(run(NOTHINGS[nothing](comfy, model)), run(model))


def test_active_nodes_do_have_an_effect(comfy):
    plain = run(toy.model())
    assert relative_error(run(updated(comfy, toy.model())), plain) > 1e-4
    assert relative_error(run(composed(comfy, toy.model(), an_edit(comfy))), plain) > 1e-3


# --- outside its window ----------------------------------------------------------------------------------------------


def with_window(comfy, model, start, end, kind):
    if kind == "update":
        return updated(comfy, model, start_percent=start, end_percent=end)
    windows = dict(start_percent=start, end_percent=end, gamma_start_percent=start, gamma_end_percent=end)
    return composed(comfy, model, an_edit(comfy, **windows))


@pytest.mark.parametrize("kind", ["update", "edit"])
@pytest.mark.parametrize(("window", "options"), [
    ((0.0, 0.3), dict(denoise=0.3)),
    ((0.9, 1.0), dict(last_step=1, force_full_denoise=True)),
    ((0.6, 1.0), dict(steps=6, last_step=2)),
    ((0.05, 0.10), dict(steps=2)),
], ids=["before a run that starts late", "after a run that ends early", "after its last step", "between two steps"])
def test_window_that_the_run_does_not_meet_is_bit_identical(comfy, window, options, kind):
    model = toy.model()
    assert torch.equal(run(with_window(comfy, model, *window, kind), **options), run(model, **options))


def runs_at(comfy, model, sigma, **options):
    """Whether EBCA does something in a model call at sigma."""
    def step(model):
        return sample_sigmas(model, toy.noise(1, 4, 8, 8), torch.tensor([sigma, 0.0]), toy.conditioning(1),
                             toy.conditioning(99), 4.0)  # fmt: skip
    return not torch.equal(step(model), step(toy.model()))


def test_a_run_outside_every_window_says_so(comfy, caplog):
    caplog.set_level("INFO", logger="ebca")
    run(updated(comfy, toy.model(), start_percent=0.1, end_percent=0.11))
    assert [r.getMessage() for r in caplog.records if r.name == "ebca" and "EBCA was off in this run" in r.getMessage()]


@pytest.mark.parametrize("kind", ["update", "edit"])
def test_window_holds_from_its_start_to_just_before_its_end(comfy, kind):
    model = toy.model()
    start, end = (model.get_model_object("model_sampling").percent_to_sigma(p) for p in (0.25, 0.5))
    windowed = with_window(comfy, model, 0.25, 0.5, kind)
    found = [runs_at(comfy, windowed, s) for s in (start * 1.001, start, (start + end) / 2, end * 1.001, end, end / 2)]
    assert found == [False, True, True, True, False, False]


@pytest.mark.parametrize("kind", ["update", "edit"])
def test_whole_window_holds_at_every_sigma(comfy, kind):
    model = toy.model()
    sampling = model.get_model_object("model_sampling")
    windowed = with_window(comfy, model, 0.0, 1.0, kind)
    assert runs_at(comfy, windowed, float(sampling.sigma_max) * 1.5)
    assert runs_at(comfy, windowed, float(sampling.sigma_min))


def test_alpha_that_is_off_does_not_stop_the_update_of_the_edit(comfy):
    """Until alpha begins the image is the plain one, and the edit that begins then has moved."""
    late = dict(start_percent=0.5, **ACTIVE)
    moved = composed(comfy, toy.model(), an_edit(comfy, **late, gamma_start_percent=0.0))
    fresh = composed(comfy, toy.model(), an_edit(comfy, **late, gamma_start_percent=0.5))
    assert torch.equal(run(moved, steps=6, last_step=2), run(toy.model(), steps=6, last_step=2))
    assert relative_error(run(moved, steps=6), run(fresh, steps=6)) > 1e-4


# --- other models ----------------------------------------------------------------------------------------------------


BOTH = {"update": lambda comfy, model: updated(comfy, model),
        "edit": lambda comfy, model: composed(comfy, model, an_edit(comfy))}  # fmt: skip


@pytest.mark.parametrize("kind", BOTH)
def test_nodes_leave_their_input_model_as_it_was(comfy, kind):
    model = toy.model()
    before = described(model)
    once = BOTH[kind](comfy, model)
    assert described(model) == before
    before = described(once)
    twice = BOTH[kind](comfy, once)
    assert described(once) == before
    assert described(twice) != before


@pytest.mark.parametrize("kind", BOTH)
def test_original_is_unchanged_while_a_clone_has_the_node(comfy, kind):
    model = toy.model()
    plain = run(model)
    patched = BOTH[kind](comfy, model)
    assert torch.equal(run(model), plain)
    with_node = run(patched)
    assert torch.equal(run(model), plain)  # the clone has run, and stays loaded
    assert torch.equal(run(patched), with_node)
    assert torch.equal(run(model.clone()), plain)


@pytest.mark.parametrize("kind", BOTH)
def test_removed_node_leaves_nothing(comfy, kind):
    model = toy.model()
    plain, patched = run(model), BOTH[kind](comfy, model)
    run(patched)
    del patched
    assert torch.equal(run(model), plain)


@pytest.mark.parametrize("kind", BOTH)
def test_run_leaves_nothing_on_the_model(comfy, kind):
    model = BOTH[kind](comfy, toy.model())
    before = described(model)
    first = run(model)
    assert described(model) == before
    assert torch.equal(run(model), first)


# --- nodes add up ----------------------------------------------------------------------------------------------------


def test_zero_compose_beside_an_update_is_the_update_alone(comfy):
    alone = updated(comfy, toy.model())
    for model in (ZEROS["edit without alpha and gammas"](comfy, alone),
                  updated(comfy, composed(comfy, toy.model(), an_edit(comfy, **ZERO_EDIT)))):  # fmt: skip
        assert torch.equal(run(model), run(alone))


def test_zero_update_beside_a_compose_is_the_compose_alone(comfy):
    alone = composed(comfy, toy.model(), an_edit(comfy))
    for model in (updated(comfy, alone, **ZERO), composed(comfy, updated(comfy, toy.model(), **ZERO), an_edit(comfy))):
        assert torch.equal(run(model), run(alone))


def test_zero_edit_beside_another_is_the_other_alone(comfy):
    alone = composed(comfy, toy.model(), an_edit(comfy))
    beside = composed(comfy, toy.model(), an_edit(comfy, 3, **ZERO_EDIT), an_edit(comfy))
    assert torch.equal(run(beside), run(alone))


def test_updates_agree_in_either_order(comfy):
    first, second = dict(ACTIVE, end_percent=0.6), dict(gamma_attn=0.01, gamma_norm=0.0, blocks="d0-m0")
    one = run(updated(comfy, updated(comfy, toy.model(), **first), **second))
    other = run(updated(comfy, updated(comfy, toy.model(), **second), **first))
    assert relative_error(one, other) < 1e-5
    assert relative_error(one, run(updated(comfy, toy.model(), **first))) > 1e-4


def test_two_halves_are_one_update(comfy):
    half = dict(gamma_attn=0.01, gamma_norm=0.01)
    halves = updated(comfy, updated(comfy, toy.model(), **half), **half)
    assert relative_error(run(halves), run(updated(comfy, toy.model()))) < 1e-5


def test_two_composes_are_one_with_both_edits(comfy):
    dog, cat = an_edit(comfy, 2), an_edit(comfy, 3, direction="remove", alpha=0.5)
    one = run(composed(comfy, toy.model(), dog, cat))
    assert torch.equal(run(composed(comfy, composed(comfy, toy.model(), dog), cat)), one)
    assert relative_error(run(composed(comfy, composed(comfy, toy.model(), cat), dog)), one) < 1e-5


def test_one_edit_wired_twice_is_two_edits(comfy):
    edit = an_edit(comfy, alpha=0.3)
    twice, two = composed(comfy, toy.model(), edit, edit), composed(comfy, toy.model(), edit, an_edit(comfy, alpha=0.3))
    assert relative_error(run(twice), run(two)) < 1e-5
    assert relative_error(run(composed(comfy, composed(comfy, toy.model(), edit), edit)), run(two)) < 1e-5


def test_update_and_compose_agree_in_either_order(comfy):
    edit = an_edit(comfy)
    one, other = updated(comfy, composed(comfy, toy.model(), edit)), composed(comfy, updated(comfy, toy.model()), edit)
    assert torch.equal(run(one), run(other))


# --- the positive half alone -----------------------------------------------------------------------------------------


def unet_outputs(model, **options):
    """role -> what the U-Net gave for it in the first model call; roles as in `cond_or_uncond`: 0 is positive."""
    seen = {}

    def record(executor, *args, **kwargs):
        out = executor(*args, **kwargs)
        for role, rows in zip(args[5]["cond_or_uncond"], out.chunk(len(args[5]["cond_or_uncond"])), strict=True):
            seen.setdefault(role, rows.clone())
        return out

    model = model.clone()
    model.add_wrapper_with_key("diffusion_model", "record", record)
    run(model, **options)
    return seen


@pytest.mark.parametrize("latent", [toy.latent(1, 8, 8), toy.latent(3, 8, 8)], ids=["one image", "three images"])
@pytest.mark.parametrize("inputs", [
    {}, dict(gamma_norm=0.0), dict(mask=torch.full((1, 8, 8), 0.5)), dict(blocks="d1,u0")
], ids=["all", "attention term", "mask", "blocks"])
def test_update_of_the_positive_half_leaves_the_negative_one(comfy, inputs, latent):
    plain = unet_outputs(toy.model(), latent=latent)
    both = unet_outputs(updated(comfy, toy.model(), **inputs), latent=latent)
    positive = unet_outputs(updated(comfy, toy.model(), apply_to="positive", **inputs), latent=latent)
    assert torch.equal(positive[1], plain[1])
    assert not torch.equal(positive[0], plain[0])
    assert relative_error(positive[0], both[0]) < 1e-5
    assert not torch.equal(both[1], plain[1])


def test_token_weights_leave_the_negative_half(comfy, pack):
    weights = pack.comfyui_binding.text.token_weights.TokenWeights(torch.linspace(0, 3, 77))
    weighted = unet_outputs(updated(comfy, toy.model(), token_weights=weights))
    unweighted = unet_outputs(updated(comfy, toy.model()))
    assert relative_error(weighted[1], unweighted[1]) < 1e-6
    assert relative_error(weighted[0], unweighted[0]) > 1e-4


# --- layers that are left out ----------------------------------------------------------------------------------------


def layers_at_work(model):
    """What every layer gets in a run on the positive prompt alone, in order."""
    with watched(model) as seen:
        run(model, steps=1, cfg=1.0)
    return seen


def change_by_hand(context, queries, w_k, heads, gamma_attn, gamma_norm):
    """G W_k of one layer, row by row."""
    rows = zip(context @ w_k.T, queries, strict=True)
    return torch.stack([oracle.step(k, q, heads, gamma_attn, gamma_norm) for k, q in rows]) @ w_k


BLOCKS = ["d0", "d1", "m0", "u0", "u1"]  # of toy.model("sd1"), one layer each


@pytest.mark.parametrize("block", BLOCKS[:-1])  # nothing would read the last one's
def test_layers_after_the_chosen_one_read_its_update_and_make_none(comfy, block):
    seen = layers_at_work(updated(comfy, toy.model(), blocks=block))
    chosen = BLOCKS.index(block)
    contexts = [context for context, *_ in seen]
    expected = change_by_hand(*seen[chosen], **ACTIVE)
    assert len(seen) == len(BLOCKS)
    assert all(torch.equal(context, contexts[0]) for context in contexts[: chosen + 1])
    assert all(relative_error(context - contexts[0], expected) < 1e-3 for context in contexts[chosen + 1 :])


def test_every_layer_adds_its_own_update(comfy):
    seen = layers_at_work(updated(comfy, toy.model()))
    for (context, *rest), (following, *_) in pairwise(seen):
        assert relative_error(following - context, change_by_hand(context, *rest, **ACTIVE)) < 1e-3


def test_blocks_that_are_all_named_are_all(comfy):
    named = updated(comfy, toy.model(), blocks=", ".join(BLOCKS))
    assert torch.equal(run(named), run(updated(comfy, toy.model())))
    assert torch.equal(run(updated(comfy, toy.model(), blocks="d0-u1")), run(named))
