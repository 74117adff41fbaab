"""EBCA Compose mixes its edits into the chosen blocks alone; elsewhere they change nothing of a layer's output."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from support import joint_oracle, joint_runs, oracle, toy, toy_dit, toy_joint, transformer_runs, wiring
from support.host import node
from support.log_messages import refused
from support.sampling import relative_error, sample

TOLERANCE = 1e-5
SD1 = oracle.Edit(wiring.text(2), 0.75, 0.02, 0.02), oracle.Edit(wiring.text(3), -0.5, 0.03, 0.0)


def in_layers(edits, chosen):
    """The hand-made edits, with the first in the chosen layers."""
    first, second = edits
    return [replace(first, layers=chosen), second]


def on_model(comfy, pack, ebca, edits, model, blocks):
    """A Compose for the first edit with blocks, and one for the second without."""
    first, second = edits
    model = ebca(edits=[first], compose_inputs={"blocks": blocks}).on(comfy, pack, model)
    return ebca(edits=[second]).on(comfy, pack, model)


@pytest.mark.parametrize(("blocks", "places"), [("d0-m0", {0, 1, 2}), ("u1,d1", {1, 4})])
def test_unet_equals_the_formulas(comfy, pack, blocks, places):
    model, positive, negative = toy.model(), toy.conditioning(1), toy.conditioning(0)
    names = [key for place, key in enumerate(oracle.layers(model.model.diffusion_model)) if place in places]
    with wiring.Ebca(edits=in_layers(SD1, names)).by_hand(model, positive, negative):
        expected = sample(model, positive, negative, toy.latent(), steps=2)
    got = sample(on_model(comfy, pack, wiring.Ebca, SD1, model, blocks), positive, negative, toy.latent(), steps=2)
    assert relative_error(got, expected) < TOLERANCE
    everywhere = sample(wiring.Ebca(edits=SD1).on(comfy, pack, model), positive, negative, toy.latent(), steps=2)
    assert relative_error(everywhere, got) > 100 * TOLERANCE


@pytest.mark.parametrize("family", ["wan", "predict2", "pixart"])
def test_transformer_equals_the_loop(comfy, pack, family):
    model, edits = toy_dit.model(family), transformer_runs.edits(family)
    with transformer_runs.Ebca(edits=in_layers(edits, {"b0", "b2"})).applied(family, model):
        expected = transformer_runs.run(model, family)
    got = transformer_runs.run(on_model(comfy, pack, transformer_runs.Ebca, edits, model, "b0,b2"), family)
    assert relative_error(got, expected) < TOLERANCE
    everywhere = transformer_runs.run(transformer_runs.Ebca(edits=edits).on(comfy, pack, model), family)
    assert relative_error(everywhere, got) > 10 * TOLERANCE


@pytest.mark.parametrize("family", toy_joint.KINDS)
def test_joint_attention_equals_the_loop(comfy, pack, family):
    """The texts go on in all blocks."""
    model, edits = toy_joint.model(family), joint_runs.edits(family)
    with joint_oracle.applied(family, model, in_layers(edits, {0, 2})):
        expected = joint_runs.run(model, family)
    got = joint_runs.run(on_model(comfy, pack, wiring.Ebca, edits, model, "b0,b2"), family)
    assert relative_error(got, expected) < TOLERANCE
    everywhere = joint_runs.run(joint_runs.composed(comfy, pack, model, edits), family)
    assert relative_error(everywhere, got) > 100 * TOLERANCE


@pytest.mark.parametrize("family", toy_joint.named(has_text_mask=True))
def test_masked_texts_in_joint_attention_equal_the_loop(comfy, pack, family):
    """In other blocks the edits' texts read the image, and the image does not ask them."""
    mask = torch.tensor([[1] * 6 + [0] * 3])
    first, second = joint_runs.edits(family)
    edits = replace(first, text=toy_joint.conditioning(family, 21, 9, attention_mask=mask)), second
    model = toy_joint.model(family)
    with joint_oracle.applied(family, model, in_layers(edits, {1})):
        expected = joint_runs.run(model, family)
    got = joint_runs.run(on_model(comfy, pack, wiring.Ebca, edits, model, "b1"), family)
    assert relative_error(got, expected) < TOLERANCE


@pytest.mark.parametrize("family", toy_joint.KINDS)
def test_image_asks_the_texts_in_the_chosen_blocks_alone(comfy, pack, family):
    """Queries of all attention calls: in other blocks those of the edit's text are all that an edit costs."""
    model, (edit, _) = toy_joint.model(family), joint_runs.edits(family)

    def asked(blocks):
        queries = []

        def override(func, q, k, v, heads, *args, **kwargs):
            queries.append(q.shape[2 if kwargs.get("skip_reshape") else 1])
            return func(q, k, v, heads, *args, **kwargs)

        wired = joint_runs.composed(comfy, pack, model, [edit], blocks=blocks)
        wired.model_options["transformer_options"]["optimized_attention_override"] = override
        joint_runs.run(wired, family, steps=1, cfg=1.0)
        return sum(queries)

    count = len(toy_joint.blocks(family, model))
    height, width = toy_joint.shape(family)[-2:]
    image = height * width // toy_joint.TOYS[family].patch ** 2 + toy_joint.TOYS[family].after
    assert asked("") - asked("b0") == (count - 1) * image


def test_removals_are_added_up_in_each_block(comfy):
    """Two of 0.6 fit in different blocks; where they meet they take away more than there is."""
    first, second = (
        node(comfy, "EBCAEditContext").execute(conditioning=toy.conditioning(i), direction="remove", alpha=0.6)[0]
        for i in (2, 3)
    )

    def composed(edit, model, blocks):
        return node(comfy, "EBCACompose").execute(model=model, edits={"edit0": edit}, blocks=blocks)[0]

    model = composed(first, toy.model(), "d0-d1")
    assert composed(second, model, "u0-u1") is not model
    refused(lambda: composed(second, model, "d1-u0"), "can reach -0.2", "-0.6, -0.6")


@pytest.mark.parametrize(("model", "blocks", "parts"), [
    (toy.model, "d7", ("no attention block d7", "has d0, d1, m0, u0")),
    (toy.model, "u1-d0", ("ends before it begins",)),
    (lambda: toy_dit.model("wan"), "m0", ("no attention block m0", "has b0, b1, b2")),
    (lambda: toy_joint.model("flux"), "b5", ("no attention block b5", "has b0, b1, b2, b3, b4")),
])  # fmt: skip
def test_blocks_that_the_model_does_not_have_are_refused(comfy, model, blocks, parts):
    edit = node(comfy, "EBCAEditContext").execute(conditioning=toy.conditioning(2))[0]
    refused(lambda: node(comfy, "EBCACompose").execute(model=model(), edits={"edit0": edit}, blocks=blocks), *parts)


def test_malformed_blocks_are_refused_before_the_run(comfy):
    assert "'up' in blocks is not a block" in comfy.NODE_CLASS_MAPPINGS["EBCACompose"].validate_inputs(blocks="d1, up")


def test_all_blocks_are_the_node_without_blocks(comfy, pack):
    model, edits = toy_joint.model("qwen"), joint_runs.edits("qwen")
    named = joint_runs.composed(comfy, pack, model, edits, blocks="b0-b3")
    unnamed = joint_runs.composed(comfy, pack, model, edits)
    assert torch.equal(joint_runs.run(named, "qwen"), joint_runs.run(unnamed, "qwen"))
