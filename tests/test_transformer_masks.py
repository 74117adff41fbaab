"""Masks, blocks, schedules and token weights on transformers equal explicit loops over texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import interpolate

from support import toy, toy_dit
from support.host import node
from support.log_messages import messages
from support.sampling import relative_error
from support.transformer_runs import Ebca, ebca, edits, run, update

TOLERANCE = 1e-5

each_family = pytest.mark.parametrize("family", toy_dit.FAMILIES)
videos = pytest.mark.parametrize("family", ["wan", "predict2", "ltxv"])


def masks_of(family, count=1):
    """Masks [count, height, width] of the size of the latents: an update's and those of two edits."""
    size = toy_dit.shape(family)[-2:]
    return [(toy.noise(count, *size, seed=seed) > 0).float() for seed in (31, 32, 33)]


def on_tokens(masks: torch.Tensor, family: str, before: int = 0, after: int = 0) -> torch.Tensor:
    """Masks [frames, height, width] -> [n]; 0 for tokens before and after those of the frames."""
    patch = 1 if family == "ltxv" else 2
    grid = [side // patch for side in masks.shape[-2:]]
    tokens = [interpolate(mask[None, None], size=grid, mode="bilinear", align_corners=True).flatten() for mask in masks]
    return torch.cat([torch.zeros(before), *tokens, torch.zeros(after)])


def equals_the_loop(
    comfy, pack, model, family, masks: Sequence[torch.Tensor], tokens: Sequence[torch.Tensor], **options
):
    """masks: for the nodes; tokens: the same on image tokens; the difference that they make is felt."""
    plain = ebca(family)
    case = Ebca([update(family, mask=masks[0])], edits(family), masks[1:])
    by_hand = Ebca([update(family, mask=tokens[0])], edits(family))
    with by_hand.applied(family, model, edit_masks=tokens[1:]):
        expected = run(model, family, steps=2, **options)
    got = run(case.on(comfy, pack, model), family, steps=2, **options)
    assert relative_error(got, expected) < TOLERANCE
    assert relative_error(run(plain.on(comfy, pack, model), family, steps=2, **options), got) > 100 * TOLERANCE


# --- masks -----------------------------------------------------------------------------------------------------------


@each_family
def test_masks_equal_the_loop(comfy, pack, family):
    masks = masks_of(family)
    tokens = [on_tokens(mask, family) for mask in masks]
    equals_the_loop(comfy, pack, toy_dit.model(family), family, masks, tokens)


@videos
def test_a_mask_for_each_frame_equals_the_loop(comfy, pack, family):
    masks = masks_of(family, count=3)
    tokens = [on_tokens(mask, family) for mask in masks]
    equals_the_loop(comfy, pack, toy_dit.model(family), family, masks, tokens, frames=3, batch=2)


@videos
def test_one_mask_holds_for_all_frames(comfy, pack, family):
    masks = masks_of(family)
    tokens = [on_tokens(mask.expand(3, -1, -1), family) for mask in masks]
    equals_the_loop(comfy, pack, toy_dit.model(family), family, masks, tokens, frames=3)


@videos
def test_masks_of_frames_in_context_windows_equal_the_loop(comfy, pack, family):
    """Each frame has its mask in every window that it is in."""
    masks = masks_of(family, count=3)
    inputs = dict(context_length=2, context_overlap=1, dim=2)
    (model,) = node(comfy, "ContextWindowsManual").execute(model=toy_dit.model(family), **inputs)
    by_frame = [[on_tokens(frame[None], family) for frame in mask] for mask in masks]

    def tokens(mask, window):
        anchor = getattr(window, "causal_anchor_index", None)
        return torch.cat([mask[i] for i in ([] if anchor is None else [anchor]) + list(window.index_list)])

    windowed = [lambda window, mask=mask: tokens(mask, window) for mask in by_frame]
    equals_the_loop(comfy, pack, model, family, masks, windowed, frames=3)


@pytest.mark.parametrize("windows", [False, True])
def test_masks_of_frames_follow_an_area_in_time(comfy, pack, windows):
    """A prompt for the last two of four frames is under their masks; core applies an area inside each window."""
    model = toy_dit.model("wan")
    if windows:
        inputs = dict(context_length=3, context_overlap=2, dim=2, context_schedule="standard_static")
        (model,) = node(comfy, "ContextWindowsManual").execute(model=model, **inputs)
    area = dict(width=1.0, height=1.0, temporal=0.5, x=0.0, y=0.0, z=0.5, strength=1.0)
    positive = node(comfy, "ConditioningSetAreaPercentageVideo").execute(
        conditioning=toy_dit.conditioning("wan", 1), **area
    )[0]

    def sampled(order):
        masks = [mask[order] for mask in masks_of("wan", count=6)]
        case = Ebca([update("wan", mask=masks[0])], edits("wan"), masks[1:])
        return run(case.on(comfy, pack, model), "wan", positive, frames=4, steps=2, cfg=1.0)

    expected = sampled([0, 1, 2, 3])
    assert torch.equal(sampled([4, 5, 2, 3]), expected)
    for order in ([0, 1, 4, 3], [0, 1, 2, 4], [2, 3, 0, 1]):
        assert relative_error(sampled(order), expected) > 10 * TOLERANCE


def test_tokens_of_a_reference_image_have_weight_zero(comfy, pack):
    """Wan's fun models put them in front of those of the frames."""
    reference = toy.noise(1, 16, 1, 8, 8, seed=41)
    positive, negative = (toy_dit.conditioning("wan", seed, reference_latents=[reference]) for seed in (1, 2))
    masks = masks_of("wan")
    tokens = [on_tokens(mask.expand(2, -1, -1), "wan", before=4 * 4) for mask in masks]
    model = toy_dit.model("wan", in_dim_ref_conv=16)
    equals_the_loop(comfy, pack, model, "wan", masks, tokens, positive=positive, negative=negative, frames=2)


def test_frames_put_behind_have_weight_zero(comfy, pack):
    appended = toy.noise(1, 16, 1, 8, 8, seed=42)
    positive, negative = (toy_dit.conditioning("wan", seed, time_dim_concat=appended) for seed in (1, 2))
    masks = masks_of("wan")
    tokens = [on_tokens(mask.expand(2, -1, -1), "wan", after=4 * 4) for mask in masks]
    model = toy_dit.model("wan")
    equals_the_loop(comfy, pack, model, "wan", masks, tokens, positive=positive, negative=negative, frames=2)


@pytest.mark.parametrize(("frames", "count"), [(1, 1), (3, 1), (3, 3)])
def test_noise_mask_of_a_latent_is_the_wired_mask(comfy, pack, frames, count):
    mask, *_ = masks_of("wan", count)
    latent = {"samples": torch.zeros(toy_dit.shape("wan", 2, frames)), "noise_mask": mask}
    model = toy_dit.model("wan")
    wired = Ebca([update("wan", mask=mask)]).on(comfy, pack, model)
    unwired = Ebca([update("wan")]).on(comfy, pack, model, use_noise_mask=True)
    got, expected = (run(one, "wan", latent=latent, steps=2) for one in (unwired, wired))
    assert relative_error(got, expected) < TOLERANCE
    without = Ebca([update("wan")]).on(comfy, pack, model)
    assert relative_error(run(without, "wan", latent=latent, steps=2), expected) > 10 * TOLERANCE


@pytest.mark.parametrize("family", ["kandinsky5", "hydit"])
def test_masks_of_two_images_equal_the_image_alone(comfy, pack, family):
    model, noise = toy_dit.model(family), toy.noise(*toy_dit.shape(family, 2), seed=3)
    masks = masks_of(family, count=2)

    def one(images):
        case = Ebca([update(family, mask=masks[0][images])], edits(family), [mask[images] for mask in masks[1:]])
        latent = {"samples": noise[images], "batch_index": list(range(2))[images]}
        return run(case.on(comfy, pack, model), family, latent=latent)

    assert relative_error(one(slice(0, 2))[1:], one(slice(1, 2))) < TOLERANCE


# --- what of the prompts is updated, and how much --------------------------------------------------------------------


@each_family
def test_update_of_the_positive_prompt_alone_equals_the_loop(comfy, pack, family):
    model, case = toy_dit.model(family), ebca(family)
    with case.applied(family, model, positive_only=True):
        expected = run(model, family, steps=2)
    got = run(case.on(comfy, pack, model, apply_to="positive"), family, steps=2)
    assert relative_error(got, expected) < TOLERANCE


@pytest.mark.parametrize(
    ("family", "blocks", "names"),
    [
        ("hydit", "b0", ["b0"]),
        ("hydit", "b1-b2", ["b1", "b2"]),
        ("wan_vace", "b1-b2", ["b1", "b2"]),
        ("wan_vace", "v0,b1", ["v0", "b1"]),
    ],
)
def test_chosen_blocks_equal_the_loop(comfy, pack, family, blocks, names):
    model, case = toy_dit.model(family), Ebca([update(family)])
    with case.applied(family, model, blocks=names):
        expected = run(model, family, steps=2)
    got = run(case.on(comfy, pack, model, blocks=blocks), family, steps=2)
    assert relative_error(got, expected) < TOLERANCE


@each_family
def test_schedule_equals_the_loop(comfy, pack, family):
    model, case = toy_dit.model(family), ebca(family)
    schedule, _ = node(comfy, "EBCASchedule").execute(shape="linear", start_factor=1.0, end_factor=0.2)
    sampling = model.get_model_object("model_sampling")

    def factor(sigma):
        """1 at the start of the noise schedule, 0.2 at its end; the share by bisection of percent_to_sigma."""
        low, high = 0.0, 1.0
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if sampling.percent_to_sigma(middle) > sigma else (low, middle)
        return 1.0 - 0.8 * low

    with case.applied(family, model, factor=factor):
        expected = run(model, family)
    assert relative_error(run(case.on(comfy, pack, model, schedule=schedule), family), expected) < TOLERANCE


@each_family
def test_token_weights_equal_the_loop(comfy, pack, family):
    weights = torch.linspace(0.0, 3.0, toy_dit.TOKENS)
    model, case = toy_dit.model(family), Ebca([update(family, token_weights=weights)])
    with case.applied(family, model):
        expected = run(model, family, steps=2)
    assert relative_error(run(case.on(comfy, pack, model), family, steps=2), expected) < TOLERANCE


def test_token_weights_of_another_length_are_left_out_with_a_line(comfy, pack, caplog):
    for tokens in (5, 24):
        caplog.clear()
        weighted = Ebca([update("wan", token_weights=torch.ones(tokens).index_fill(0, torch.tensor([1]), 2.0))])
        run(weighted.on(comfy, pack, toy_dit.model("wan")), "wan")
        (message,) = messages(caplog)
        assert "token weights" in message


# --- the text --------------------------------------------------------------------------------------------------------


def test_an_image_wired_to_a_text_to_video_model_is_no_part_of_the_text(comfy, pack):
    """Wan 2.2's image-to-video models read no CLIP image, but their cross-attention is told how long one is."""
    states = toy_dit.conditioning("wan_i2v", 7)[0][1]["clip_vision_output"]
    positive, negative = (toy_dit.conditioning("wan", seed, clip_vision_output=states) for seed in (1, 2))
    model, case = toy_dit.model("wan"), ebca("wan")
    prompts = dict(positive=positive, negative=negative, steps=2)
    with case.applied("wan", model):
        expected = run(model, "wan", **prompts)
    assert relative_error(run(case.on(comfy, pack, model), "wan", **prompts), expected) < TOLERANCE


def test_masked_tokens_of_prompts_and_edits_are_not_read(comfy, pack):
    def masked(seed, tokens, hidden):
        ((text, options),) = toy_dit.conditioning("ltxv", seed, tokens)
        options["attention_mask"][:, -hidden:] = 0
        return [[text, options]]

    model = toy_dit.model("ltxv")
    added, removed = edits("ltxv")
    case = Ebca([update("ltxv")], [replace(added, text=masked(21, 9, 3)), replace(removed, text=masked(22, 15, 6))])
    prompts = dict(positive=masked(1, 12, 4), negative=masked(2, 12, 2), steps=2)
    with case.applied("ltxv", model):
        expected = run(model, "ltxv", **prompts)
    assert relative_error(run(case.on(comfy, pack, model), "ltxv", **prompts), expected) < TOLERANCE


def test_edit_without_a_mask_beside_a_prompt_with_one(comfy, pack):
    """It is not given the prompt's, which has another length."""
    model = toy_dit.model("ltxv")
    (text, _), *_ = toy_dit.conditioning("ltxv", 21, 9)
    case, full = (
        Ebca(edits=[replace(edits("ltxv")[0], text=[[text, options]])])
        for options in ({}, {"attention_mask": torch.ones(1, 9, dtype=torch.long)})
    )
    got, expected = (run(one.on(comfy, pack, model), "ltxv", steps=2) for one in (case, full))
    assert relative_error(got, expected) < TOLERANCE
