"""Composition in joint attention equals explicit loops with a text stream for each context, in whole runs."""

from __future__ import annotations

import inspect
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch.nn.functional import interpolate

from support import joint_oracle, oracle, toy, toy_joint
from support.host import node
from support.joint_runs import composed, edits, run
from support.log_messages import messages
from support.probes import rows_of_calls
from support.sampling import relative_error

TOLERANCE = 1e-5
interface = pytest.mark.interface

each_family = pytest.mark.parametrize("family", toy_joint.FAMILIES)
each_form = pytest.mark.parametrize("shared", [False, True], ids=["plain form", "shared form"])
each_kind = pytest.mark.parametrize("family", toy_joint.KINDS)


def by_hand(model, family: str, case, tokens=None, **options) -> torch.Tensor:
    """The hand-made run of a MODEL -> the final latent. tokens: the masks of the edits on image tokens."""
    with joint_oracle.applied(family, model, case, tokens):
        return run(model, family, **options)


def equals_the_loop(comfy, pack, model, family, case, masks=(), tokens=None, **options):
    """The nodes on a MODEL against the hand-made run of the same MODEL. masks: of the edits, for the nodes."""
    got = run(composed(comfy, pack, model, case, masks), family, **options)
    assert relative_error(got, by_hand(model, family, case, tokens, **options)) < TOLERANCE


# --- one prompt each -------------------------------------------------------------------------------------------------


@cache
def plain_and_edited(family: str, cfg: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The plain run, which the loop without edits equals, and the loop with edits; both forms have the same."""
    model = toy_joint.model(family)
    plain = run(model, family, cfg=cfg)
    assert relative_error(by_hand(model, family, [], cfg=cfg), plain) < TOLERANCE
    return plain, by_hand(model, family, edits(family), cfg=cfg)


@each_family
@pytest.mark.parametrize(
    ("cfg", "shared"), [(1.0, False), pytest.param(4.0, False, marks=interface), (4.0, True)]
)
def test_run_equals_the_loop_over_texts(comfy, pack, caplog, family, cfg, shared):
    model = composed(comfy, pack, toy_joint.model(family), edits(family), shared_attention=shared)
    plain, edited = plain_and_edited(family, cfg)
    with caplog.at_level("INFO", "ebca"):
        got = run(model, family, cfg=cfg)
    assert relative_error(got, edited) < TOLERANCE
    assert len(messages(caplog)) == (shared and family == "lens")  # which always has a mask, and the plain form then
    assert relative_error(got, plain) > 100 * TOLERANCE


@each_family
@each_form
def test_an_edit_equal_to_the_prompt_changes_nothing(comfy, pack, family, shared):
    """Bit for bit, or up to rounding in the shared form."""
    model, prompt = toy_joint.model(family), toy_joint.conditioning(family, 1)
    plain = run(model, family, cfg=4.0)
    for weights in ([0.75], [0.75, -0.5]):
        case = [oracle.Edit(prompt, weight) for weight in weights]
        got = run(composed(comfy, pack, model, case, shared_attention=shared), family, cfg=4.0)
        assert relative_error(got, plain) < TOLERANCE if shared else torch.equal(got, plain)


@each_kind
def test_windows_equal_the_loop(comfy, pack, family):
    added, removed = edits(family)
    case = [replace(added, window=(0.0, 0.6)), replace(removed, window=(0.4, 1.0))]
    equals_the_loop(comfy, pack, toy_joint.model(family), family, case, steps=4)


@each_kind
def test_a_schedule_multiplies_the_weight(comfy, pack, family):
    model, (edit, _) = toy_joint.model(family), edits(family)
    half = node(comfy, "EBCASchedule").execute(shape="constant", start_factor=0.5)[0]
    (wired,) = node(comfy, "EBCAEditContext").execute(
        conditioning=edit.text, alpha=0.75, start_percent=0.0, gamma_attn=0.0, gamma_norm=0.0, alpha_schedule=half
    )
    (scheduled,) = node(comfy, "EBCACompose").execute(model=model, edits={"edit0": wired})
    expected = run(composed(comfy, pack, model, [replace(edit, weight=0.375)]), family)
    assert torch.equal(run(scheduled, family), expected)


@each_kind
def test_two_compose_nodes_are_one(comfy, pack, family):
    model, (first, second) = toy_joint.model(family), edits(family)
    both = composed(comfy, pack, model, [first, second])
    in_turn = composed(comfy, pack, composed(comfy, pack, model, [first]), [second])
    assert torch.equal(run(in_turn, family), run(both, family))


# --- masks -----------------------------------------------------------------------------------------------------------


def masks_of(family: str, count: int = 1) -> list[torch.Tensor]:
    """Masks [count, height, width] of the size of the latents, for two edits."""
    return [(toy.noise(count, *toy_joint.shape(family)[-2:], seed=seed) > 0).float() for seed in (32, 33)]


def on_tokens(masks: torch.Tensor, family: str, references: int = 0) -> torch.Tensor:
    """Masks [b, height, width] -> [b, n]; 0 for tokens before and behind those of the picture."""
    grid = [side // toy_joint.TOYS[family].patch for side in masks.shape[-2:]]
    small = interpolate(masks[:, None], size=grid, mode="bilinear", align_corners=True).flatten(1)
    toy = toy_joint.TOYS[family]
    before, after = (references, 0) if toy.are_references_first else (0, references)
    zeros = (torch.zeros(len(masks), count) for count in (before, after + toy.after))
    return torch.cat([next(zeros), small, next(zeros)], dim=1)


@cache
def masked_by_hand(family: str, count: int) -> torch.Tensor:
    tokens = [on_tokens(mask, family) for mask in masks_of(family, count)]
    return by_hand(toy_joint.model(family), family, edits(family), tokens, batch=2)


@cache
def without_masks(comfy, pack, family: str) -> torch.Tensor:
    return run(composed(comfy, pack, toy_joint.model(family), edits(family)), family, batch=2)


@each_family
@pytest.mark.parametrize(
    ("count", "shared"), [(1, False), (2, False), pytest.param(2, True, marks=interface)]
)
def test_masks_equal_the_loop(comfy, pack, family, count, shared):
    """One mask for all images of a batch, and one for each."""
    masks = masks_of(family, count)
    model = composed(comfy, pack, toy_joint.model(family), edits(family), masks, shared_attention=shared)
    got = run(model, family, batch=2)
    assert relative_error(got, masked_by_hand(family, count)) < TOLERANCE
    assert relative_error(without_masks(comfy, pack, family), got) > 100 * TOLERANCE


@each_kind
def test_a_black_mask_changes_nothing(comfy, pack, family):
    model, masks = toy_joint.model(family), [torch.zeros(1, 8, 8)] * 2
    assert torch.equal(run(composed(comfy, pack, model, edits(family), masks), family), run(model, family))


# --- rows of a batch -------------------------------------------------------------------------------------------------


@interface
@each_kind
def test_positive_and_negative_in_one_call_or_apart(comfy, pack, monkeypatch, family):
    model = composed(comfy, pack, toy_joint.model(family), edits(family))
    rows = rows_of_calls(model)
    together = run(model, family, batch=2)
    monkeypatch.setattr(model.model, "memory_required", lambda *args, **kwargs: float("inf"))
    apart = run(model, family, batch=2)
    assert rows == [4, 4, 2, 2, 2, 2]
    assert relative_error(apart, together) < TOLERANCE


@each_kind
@each_form
def test_negative_rows_are_the_plain_model_s(comfy, pack, family, shared):
    """Bit for bit, beside positive rows that the edits change."""
    model, seen = toy_joint.model(family), {}

    def output_of(model):
        def keep(executor, x, *args, **kwargs):
            options, out = args[4], executor(x, *args, **kwargs)
            seen.setdefault(options["cond_or_uncond"][-1], []).append(out.chunk(len(options["cond_or_uncond"])))
            return out

        model = model.clone()
        model.add_wrapper_with_key("apply_model", "keep", keep)
        run(model, family, steps=1)
        ((rows,),) = seen.values()
        seen.clear()
        return rows

    plain, changed = (
        output_of(one) for one in (model, composed(comfy, pack, model, edits(family), shared_attention=shared))
    )
    assert len(plain) == 2
    is_same = [torch.equal(a, b) for a, b in zip(plain, changed, strict=True)]
    assert sorted(is_same) == [False, True]


@each_kind
def test_image_of_a_batch_equals_the_image_alone(comfy, pack, family):
    model = composed(comfy, pack, toy_joint.model(family), edits(family))
    noise = toy.noise(*toy_joint.shape(family, 3), seed=3)
    together = run(model, family, latent={"samples": noise})
    alone = run(model, family, latent={"samples": noise[2:], "batch_index": [2]})
    assert relative_error(together[2:], alone) < TOLERANCE
    assert relative_error(together[:1], alone) > 100 * TOLERANCE


@interface
@each_family
def test_prompts_of_unequal_length_equal_the_loop(comfy, pack, family):
    prompts = dict(positive=toy_joint.conditioning(family, 1, 19), negative=toy_joint.conditioning(family, 2, 4))
    equals_the_loop(comfy, pack, toy_joint.model(family), family, edits(family, (5, 11)), **prompts)


@each_kind
def test_an_edit_with_a_text_for_each_image_equals_the_loop(comfy, pack, family):
    case = [oracle.Edit(toy_joint.conditioning(family, 21, 9, batch=2), 0.75)]
    equals_the_loop(comfy, pack, toy_joint.model(family), family, case, batch=2)


# --- masked texts and reference images -------------------------------------------------------------------------------


def masked(family: str, seed: int, tokens: int, hidden: int) -> list:
    mask = torch.ones(1, tokens, dtype=torch.long)
    mask[:, tokens - hidden :] = 0
    return toy_joint.conditioning(family, seed, tokens, attention_mask=mask)


@pytest.mark.parametrize("family", toy_joint.named(has_text_mask=True))
@pytest.mark.parametrize(
    ("of_prompts", "of_edits"), [pytest.param(True, True, marks=interface), (True, False), (False, True)]
)
def test_masked_tokens_are_not_read(comfy, pack, family, of_prompts, of_edits):
    prompts = dict(positive=masked(family, 1, 12, 4), negative=masked(family, 2, 12, 2)) if of_prompts else {}
    added, removed = edits(family)
    if of_edits:
        added, removed = replace(added, text=masked(family, 21, 9, 3)), replace(removed, text=masked(family, 22, 15, 6))
    equals_the_loop(comfy, pack, toy_joint.model(family), family, [added, removed], **prompts)


@interface
def test_a_mask_of_text_and_image_is_the_prompts_alone(comfy, pack):
    """Flux with a style model: a mask that hides words is as if they were not there, since its texts have no places."""
    model = composed(comfy, pack, toy_joint.model("flux"), edits("flux"))
    ((text, options),) = toy_joint.conditioning("flux", 1)
    tokens, image, hidden = text.shape[1], 4 * 4, 3
    mask = torch.zeros(1, tokens + image, tokens + image)
    mask[..., tokens - hidden : tokens] = -1e4
    masked = [[text, {**options, "attention_mask": mask, "attention_mask_img_shape": (4, 4)}]]
    expected = run(model, "flux", [[text[:, : tokens - hidden], options]], cfg=1.0)
    assert relative_error(run(model, "flux", masked, cfg=1.0), expected) < TOLERANCE


@pytest.mark.parametrize("family", [f for f in toy_joint.FAMILIES if toy_joint.TOYS[f].references])
@pytest.mark.parametrize("with_masks", [False, pytest.param(True, marks=interface)])
def test_reference_images_equal_the_loop(comfy, pack, family, with_masks):
    """Weights act on all tokens of the image; masks are those of the picture, and 0 on the references."""
    model = toy_joint.model(family)
    if "ref_latents" not in inspect.signature(model.model.diffusion_model.forward).parameters:
        pytest.skip("this ComfyUI's network has no reference images")
    references = [toy.noise(*shape, seed=seed) for seed, shape in enumerate(toy_joint.TOYS[family].references)]
    prompts = {
        name: toy_joint.conditioning(family, seed, reference_latents=references)
        for name, seed in (("positive", 1), ("negative", 2))
    }
    patch, masks, tokens = toy_joint.TOYS[family].patch, (), None
    if with_masks:
        masks, count = masks_of(family), sum(one.shape[-2] * one.shape[-1] // patch**2 for one in references)
        tokens = [on_tokens(mask, family, count) for mask in masks]
    equals_the_loop(comfy, pack, model, family, edits(family), masks, tokens, **prompts)


# --- HiDream E1: the picture that it edits is beside its own ---------------------------------------------------------


def beside() -> dict[str, list]:
    picture = toy.noise(*toy_joint.shape("hidream"), seed=9)
    return {
        name: toy_joint.conditioning("hidream", seed, concat_latent_image=picture)
        for name, seed in (("positive", 1), ("negative", 2))
    }


@interface
def test_a_picture_beside_the_image_equals_the_loop(comfy, pack):
    equals_the_loop(comfy, pack, toy_joint.model("hidream"), "hidream", edits("hidream"), **beside())


def test_masks_do_not_fit_where_a_picture_is_beside_the_image(comfy, pack, caplog):
    model = toy_joint.model("hidream")
    got = run(composed(comfy, pack, model, edits("hidream"), masks_of("hidream")), "hidream", **beside())
    assert torch.equal(got, run(model, "hidream", **beside()))
    (message,) = messages(caplog)
    assert "an edit has a mask, and this model has another image beside its own" in message
