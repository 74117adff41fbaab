"""norm_limit of EBCA Compose: no image token's mixed output leaves the prompt's norm by more than so many times."""

from __future__ import annotations

import pytest
import torch

from support import joint_oracle, joint_runs, oracle, toy, toy_joint, wiring
from support.host import node
from support.log_messages import refused
from support.sampling import relative_error, sample

TOLERANCE = 1e-5
LIMIT = 1.0
REMOVED = [oracle.Edit(wiring.text(2), 0.3), oracle.Edit(wiring.text(3), -0.9)]


def unet(comfy, pack, **inputs):
    model = wiring.Ebca(edits=REMOVED, compose_inputs=inputs).on(comfy, pack, toy.model())
    return sample(model, toy.conditioning(1), toy.conditioning(0), toy.latent(), steps=2)


def test_cross_attention_equals_the_formulas(comfy, pack):
    model, positive, negative = toy.model(), toy.conditioning(1), toy.conditioning(0)
    prompts = [oracle.Prompt(wiring.text(seed), role) for seed, role in ((1, True), (0, False))]
    by_hand = oracle.Ebca(model.get_model_object("model_sampling"), prompts, edits=REMOVED, norm_limit=LIMIT)
    with oracle.applied(by_hand, model):
        expected = sample(model, positive, negative, toy.latent(), steps=2)
    got = unet(comfy, pack, norm_limit=LIMIT)
    assert relative_error(got, expected) < TOLERANCE
    assert relative_error(unet(comfy, pack), got) > 100 * TOLERANCE


@pytest.mark.parametrize("family", toy_joint.KINDS)
def test_joint_attention_equals_the_loop(comfy, pack, family):
    added, removed = joint_runs.edits(family)
    model, case = toy_joint.model(family), [oracle.Edit(added.text, 0.3), oracle.Edit(removed.text, -0.9)]
    with joint_oracle.applied(family, model, case, norm_limit=LIMIT):
        expected = joint_runs.run(model, family)
    got = joint_runs.run(joint_runs.composed(comfy, pack, model, case, norm_limit=LIMIT), family)
    assert relative_error(got, expected) < TOLERANCE
    unlimited = joint_runs.run(joint_runs.composed(comfy, pack, model, case), family)
    if family in ("zimage", "ideogram4"):  # they normalise the output of each attention: its size is not felt
        assert relative_error(unlimited, got) < 10 * TOLERANCE
    else:
        assert relative_error(unlimited, got) > 100 * TOLERANCE


def test_a_limit_that_nothing_reaches_changes_nothing(comfy, pack):
    assert torch.equal(unet(comfy, pack, norm_limit=10.0), unet(comfy, pack))


def test_of_two_composes_the_least_limit_holds(comfy, pack):
    first, second = REMOVED
    model = wiring.Ebca(edits=[first], compose_inputs={"norm_limit": 10.0}).on(comfy, pack, toy.model())
    model = wiring.Ebca(edits=[second], compose_inputs={"norm_limit": LIMIT}).on(comfy, pack, model)
    got = sample(model, toy.conditioning(1), toy.conditioning(0), toy.latent(), steps=2)
    assert torch.equal(got, unet(comfy, pack, norm_limit=LIMIT))


def test_limits_that_would_cut_the_prompt_are_refused(comfy):
    compose = comfy.NODE_CLASS_MAPPINGS["EBCACompose"]
    assert "norm_limit is 0.5, but must be 0" in compose.validate_inputs(norm_limit=0.5)
    edit = node(comfy, "EBCAEditContext").execute(conditioning=toy.conditioning(2))[0]
    refused(lambda: node(comfy, "EBCACompose").execute(model=toy.model(), edits={"edit0": edit}, norm_limit=0.5),
            "norm_limit is 0.5", "from 1 up")  # fmt: skip
