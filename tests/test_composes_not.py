"""Neighbours with which EBCA cannot act, or not in full: one warning, and the image without what is left out."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import pytest
import torch

from support import oracle, other_packs, toy
from support.host import node
from support.log_messages import messages
from support.other_packs import Scene
from support.sampling import relative_error


class Row(NamedTuple):
    wire: Callable[..., Scene]
    asks: str
    warns: str


#: In tier 1, the oldest ComfyUI has one of the orders.
in_both_orders = pytest.mark.parametrize(
    "neighbour_first",
    [pytest.param(True, id="neighbour first"), pytest.param(False, id="EBCA first", marks=pytest.mark.interface)],
)
REPLACED = "whose forward pass another node has replaced"
NOT_THERE = "EBCA had no effect"
UNREAD = "ignores the prompt it is given"
COUPLE = other_packs.attention_couple()
TABLE = {
    # what                                          neighbour                  EBCA asks for   a part of the warning
    "attn2 replaced, update": Row(other_packs.replaced_attn2(), "update", REPLACED),
    "attn2 replaced, edit": Row(other_packs.replaced_attn2(), "edit", REPLACED),
    "grown context, update": Row(other_packs.grown_context, "update", "3 prompts for 2 images"),
    "grown context, edit": Row(other_packs.grown_context, "edit", "3 prompts for 2 images"),
    "bypassing function, update": Row(other_packs.bypassing_function, "update", NOT_THERE),
    "bypassing function, edit": Row(other_packs.bypassing_function, "edit", NOT_THERE),
    "regions, positive only": Row(COUPLE, "positive", "regions"),
    "regions, token weights": Row(COUPLE, "words", "regions"),
    "regions, mask": Row(COUPLE, "mask", "regions"),
    "regions, edit": Row(COUPLE, "edit", "regions"),
    "tiles at once, words": Row(other_packs.tiles(at_once=True), "words", "tiles"),
    "tiles at once, edit": Row(other_packs.tiles(at_once=True), "edit", "tiles"),
    "tiles one by one, words": Row(other_packs.tiles(at_once=False), "words", "tiles"),
    "tiles one by one, edit": Row(other_packs.tiles(at_once=False), "edit", "tiles"),
    "appended tokens, words": Row(other_packs.appended_tokens(4), "words", "changes the prompt's length"),
    "appended prompt, words": Row(other_packs.appended_tokens(77), "words", "changes the prompt's length"),
    "own text, update": Row(other_packs.own_text, "update", UNREAD),
    "own text, edit": Row(other_packs.own_text, "edit", UNREAD),
    "own text in an override, update": Row(other_packs.override_with_its_own_text, "update", UNREAD),
    "own text in an override, edit": Row(other_packs.override_with_its_own_text, "edit", UNREAD),
    "frames unsaid, words": Row(other_packs.animatediff_windows("unknown"), "words", "some images of the batch"),
    "frames unsaid, edit": Row(other_packs.animatediff_windows("unknown"), "edit", "some images of the batch"),
    "merged tokens, mask": Row(other_packs.merged_tokens, "mask", "merges image tokens"),
}


def with_ebca(comfy, pack, scene: Scene, asks: str, **window: float) -> Scene:
    if asks == "edit":
        window = {"start_percent": 0.0, "gamma_start_percent": 0.0, **window}
        edit = node(comfy, "EBCAEditContext").execute(conditioning=toy.conditioning(8), gamma_attn=0.004, **window)[0]
        return replace(scene, model=node(comfy, "EBCACompose").execute(model=scene.model, edits={"edit0": edit})[0])
    options = {
        "update": {},
        "positive": {"apply_to": "positive"},
        "words": {"token_weights": pack.comfyui_binding.text.token_weights.TokenWeights(torch.full((77,), 2.0))},
        "mask": {"mask": torch.full((1, 16, 16), 0.5)},
    }[asks]
    return replace(scene, model=node(comfy, "EBCAContextUpdate").execute(model=scene.model, **options)[0])


def sampled_with_warnings(comfy, caplog, scene: Scene) -> tuple[torch.Tensor, list[str]]:
    caplog.clear()
    samples = scene.sampled(comfy)
    return samples, messages(caplog)


@in_both_orders
@pytest.mark.parametrize("name", TABLE)
def test_left_out_with_one_warning(comfy, pack, caplog, name, neighbour_first):
    row, scene = TABLE[name], other_packs.scene()
    alone = row.wire(comfy, scene).sampled(comfy)
    if neighbour_first:
        scene = with_ebca(comfy, pack, row.wire(comfy, scene), row.asks)
    else:
        scene = row.wire(comfy, with_ebca(comfy, pack, scene, row.asks))

    together, warnings = sampled_with_warnings(comfy, caplog, scene)

    assert torch.equal(together, alone)
    assert len(warnings) == 1, warnings
    assert row.warns in warnings[0]


@pytest.mark.interface
def test_update_of_the_negative_prompt_ends_with_the_edits_where_prompts_run_apart(comfy, pack, caplog):
    """With hooks, or with little memory, ComfyUI calls the model for each prompt alone, the negative prompt first.

    In the first step nothing tells that the edits will be left out. From the second step on, the update of the negative
    prompt is disabled too.
    """
    scene = other_packs.scene(fresh=True)
    scene.model.model.memory_required = lambda shape, *args, **kwargs: 1e30 if shape[0] > 1 else 1.0
    first_step = COUPLE(comfy, with_ebca(comfy, pack, scene, "edit", end_percent=0.1, gamma_end_percent=0.1))
    expected = first_step.sampled(comfy)
    together, warnings = sampled_with_warnings(comfy, caplog, COUPLE(comfy, with_ebca(comfy, pack, scene, "edit")))
    assert torch.equal(together, expected)
    assert len(warnings) == 1, warnings


@in_both_orders
@pytest.mark.parametrize("asks", ["update", "edit"])
def test_one_replaced_layer_leaves_the_others_at_work(comfy, pack, caplog, asks, neighbour_first):
    key, scene = ("middle", 0, 0), other_packs.scene()
    wire = other_packs.replaced_attn2(only=key)
    if neighbour_first:
        got = with_ebca(comfy, pack, wire(comfy, scene), asks)
    else:
        got = wire(comfy, with_ebca(comfy, pack, scene, asks))
    asked = {"update": dict(updates=[oracle.Update(0.01, 0.02)]),
             "edit": dict(edits=[oracle.Edit(toy.conditioning(8)[0][0][0], 0.7, 0.004, 0.0005)])}[asks]
    sampling = scene.model.get_model_object("model_sampling")
    with oracle.applied(oracle.Ebca(sampling, scene.prompts(), **asked, untouched=[key]), scene.model):
        expected = scene.sampled(comfy)

    together, warnings = sampled_with_warnings(comfy, caplog, got)

    assert relative_error(together, expected) < 1e-5
    assert len(warnings) == 1, warnings
    assert REPLACED in warnings[0]


@in_both_orders
@pytest.mark.parametrize("asks", ["update", "edit"])
def test_forward_pass_replaced_on_the_class(comfy, pack, caplog, monkeypatch, asks, neighbour_first):
    """ComfyUI would call a replacement of the attention in place of it."""
    scene = other_packs.scene()
    plain = scene.sampled(comfy)
    if neighbour_first:
        other_packs.replace_forward_of_class(monkeypatch)
        with_both = with_ebca(comfy, pack, scene, asks)
    else:
        with_both = with_ebca(comfy, pack, scene, asks)
        other_packs.replace_forward_of_class(monkeypatch)
    alone = scene.sampled(comfy)

    together, warnings = sampled_with_warnings(comfy, caplog, with_both)

    assert torch.equal(together, alone)
    assert relative_error(alone, plain) > 1e-3
    assert len(warnings) == 1, warnings
    assert REPLACED in warnings[0]


@pytest.mark.parametrize("name", ["attn2 replaced, update", "grown context, update", "bypassing function, update"])
def test_a_neighbour_that_is_gone_leaves_nothing(comfy, pack, caplog, name):
    wire, scene = TABLE[name].wire, other_packs.scene()
    expected = with_ebca(comfy, pack, other_packs.scene(fresh=True), "update").sampled(comfy)
    wire(comfy, scene).sampled(comfy)

    together, warnings = sampled_with_warnings(comfy, caplog, with_ebca(comfy, pack, scene, "update"))

    assert torch.equal(together, expected)
    assert not warnings


@pytest.mark.parametrize("wire", [other_packs.grown_context, COUPLE])
def test_the_neighbour_is_felt(comfy, wire):
    """The other two compute what the model does, by a way of their own."""
    scene = other_packs.scene()
    assert relative_error(wire(comfy, scene).sampled(comfy), scene.sampled(comfy)) > 1e-3


def test_edits_without_a_mask_act_where_the_masks_of_others_do_not_fit(comfy, pack, caplog):
    def composed(*masks):
        edits = {
            f"edit{i}": node(comfy, "EBCAEditContext").execute(
                conditioning=toy.conditioning(8 + i), gamma_attn=0.0, gamma_norm=0.0, start_percent=0.0, mask=mask)[0]
            for i, mask in enumerate(masks)
        }  # fmt: skip
        scene = other_packs.scene()
        model = node(comfy, "EBCACompose").execute(model=scene.model, edits=edits)[0]
        return other_packs.merged_tokens(comfy, replace(scene, model=model))

    half = torch.zeros(1, 16, 16)
    half[..., 8:] = 1
    caplog.clear()
    expected = composed(None).sampled(comfy)
    together, warnings = sampled_with_warnings(comfy, caplog, composed(None, half))
    assert len(warnings) == 1, warnings
    assert "merges image tokens, so their masks do not fit" in warnings[0]
    assert torch.equal(together, expected)
    assert not torch.equal(composed(None).sampled(comfy), composed(half).sampled(comfy))
