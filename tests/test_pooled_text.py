"""mix_pooled of EBCA Compose: the edits' pooled texts are mixed into the prompt's by the same weights."""

from __future__ import annotations

import inspect
from dataclasses import replace

import pytest
import torch
from comfy.model_base import Flux

from support import joint_oracle, oracle, toy, toy_joint
from support.host import node
from support.joint_runs import composed, edits, run
from support.log_messages import messages, refused
from support.sampling import relative_error

TOLERANCE = 1e-5

each_pooled = pytest.mark.parametrize("family", [name for name in toy_joint.FAMILIES if toy_joint.TOYS[name].pooled])


@each_pooled
@pytest.mark.parametrize("batch", [1, 2])
def test_run_equals_the_loop(comfy, pack, family, batch):
    model, case = toy_joint.model(family), edits(family)
    with joint_oracle.applied(family, model, case, mix_pooled=True):
        expected = run(model, family, batch=batch)
    got = run(composed(comfy, pack, model, case, mix_pooled=True), family, batch=batch)
    assert relative_error(got, expected) < TOLERANCE
    assert relative_error(run(composed(comfy, pack, model, case), family, batch=batch), got) > 100 * TOLERANCE


@each_pooled
def test_windows_and_texts_of_each_image_equal_the_loop(comfy, pack, family):
    model, (_, removed) = toy_joint.model(family), edits(family)
    texts = toy_joint.conditioning(family, 21, 9, batch=2)
    case = [oracle.Edit(texts, 0.75, window=(0.0, 0.6)), replace(removed, window=(0.4, 1.0))]
    with joint_oracle.applied(family, model, case, mix_pooled=True):
        expected = run(model, family, batch=2, steps=4)
    got = run(composed(comfy, pack, model, case, mix_pooled=True), family, batch=2, steps=4)
    assert relative_error(got, expected) < TOLERANCE


@each_pooled
def test_an_edit_with_a_mask_is_left_out(comfy, pack, family):
    """A pooled text acts on the whole image."""
    model, masks = toy_joint.model(family), [torch.ones(1, 8, 8).tril(), None]
    weights = [mask if mask is None else mask.new_zeros(1, 16) for mask in masks]
    black = [None if mask is None else torch.zeros_like(mask) for mask in masks]
    with joint_oracle.applied(family, model, edits(family), weights, mix_pooled=True):
        expected = run(model, family)
    got = run(composed(comfy, pack, model, edits(family), black, mix_pooled=True), family)
    assert relative_error(got, expected) < TOLERANCE


@each_pooled
def test_an_edit_equal_to_the_prompt_changes_nothing(comfy, pack, family):
    model, prompt = toy_joint.model(family), toy_joint.conditioning(family, 1)
    case = [oracle.Edit(prompt, 0.75), oracle.Edit(prompt, -0.5)]
    got = run(composed(comfy, pack, model, case, mix_pooled=True), family, cfg=4.0)
    assert torch.equal(got, run(model, family, cfg=4.0))


@pytest.mark.parametrize("model", [
    toy.model, lambda: toy.model("sdxl"), lambda: toy_joint.model("qwen"), lambda: toy_joint.model("flux2"),
    lambda: toy_joint.model("chroma"),
], ids=["sd1", "sdxl", "qwen", "flux2", "chroma"])  # fmt: skip
def test_models_without_a_pooled_text_are_refused(comfy, model):
    edit = node(comfy, "EBCAEditContext").execute(conditioning=toy.conditioning(2, width=model_width(model())))[0]
    refused(lambda: node(comfy, "EBCACompose").execute(model=model(), edits={"edit0": edit}, mix_pooled=True),
            "mix_pooled is on, but EBCA mixes no pooled text in", "Switch mix_pooled off")  # fmt: skip


def model_width(model) -> int:
    return toy.WIDTH if hasattr(model.model.diffusion_model, "input_blocks") else toy_joint.WIDTH


def test_an_edit_without_a_pooled_text_is_refused(comfy):
    ((text, _),) = toy_joint.conditioning("flux", 2)
    (edit,) = node(comfy, "EBCAEditContext").execute(conditioning=[[text, {}]])
    model = toy_joint.model("flux")
    refused(lambda: node(comfy, "EBCACompose").execute(model=model, edits={"edit0": edit}, mix_pooled=True),
            "an edit has no pooled text")  # fmt: skip


def test_a_prompt_without_a_pooled_text_is_left_alone(comfy, pack, caplog):
    """Flux takes zeros for it, where ComfyUI lets it."""
    if '["pooled_output"]' in inspect.getsource(Flux.encode_adm):
        pytest.skip("this ComfyUI needs one")
    prompts = {
        name: [[toy_joint.conditioning("flux", seed)[0][0], {}]] for name, seed in (("positive", 1), ("negative", 2))
    }
    model = toy_joint.model("flux")
    got = run(composed(comfy, pack, model, edits("flux"), mix_pooled=True), "flux", **prompts)
    assert torch.equal(got, run(model, "flux", **prompts))
    (message,) = messages(caplog)
    assert "mix_pooled is on, and the prompt has no pooled text" in message


def test_pooled_texts_of_removals_are_added_up(comfy):
    """Even where the edits are mixed into different blocks."""
    model = toy_joint.model("flux")
    for number, blocks in enumerate(["b0", "b1"]):
        edit = node(comfy, "EBCAEditContext").execute(
            conditioning=toy_joint.conditioning("flux", 21 + number), direction="remove", alpha=0.6
        )[0]
        arguments = dict(model=model, edits={"edit0": edit}, blocks=blocks, mix_pooled=True)
        if number == 0:
            (model,) = node(comfy, "EBCACompose").execute(**arguments)
    refused(lambda: node(comfy, "EBCACompose").execute(**arguments), "can reach -0.2")
