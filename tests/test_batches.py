"""What stands next to an image in a call of the U-Net makes no difference to it."""

from __future__ import annotations

import pytest
import torch

from support import oracle, toy
from support.marks import with_mark
from support.sampling import relative_error, sample, sample_sigmas
from support.wiring import Ebca, text

TOLERANCE = 1e-5  # batched and single products of matrices round differently
SIGMAS = torch.tensor([10.0, 4.0, 1.0, 0.0])
WORDS = torch.ones(77).index_fill(0, torch.tensor([2, 5, 6]), 2.5)
MASKS = (toy.noise(5, 8, 8, seed=7) > 0).float()  # one for each image
EDITS = (oracle.Edit(text(21), 0.8, 0.004, 0.003), oracle.Edit(text(22), -0.5, 0.002, 0.001))
TEXT_OF_EACH_IMAGE = oracle.Edit(toy.noise(5, 77, toy.WIDTH, seed=1021), 0.8, 0.004, 0.003)
UPDATE = Ebca([oracle.Update(0.01, 0.02)])
COMPOSE = Ebca(edits=EDITS)
CASES = {
    "update": UPDATE,
    "update with words and masks": Ebca([oracle.Update(0.02, 0.01, WORDS, MASKS)]),
    "two updates": Ebca([oracle.Update(0.01, 0.02), oracle.Update(0.02, 0.0, WORDS)]),
    "edits without update": Ebca(edits=[oracle.Edit(text(21), 0.8), oracle.Edit(text(22), -0.5)]),
    "carried edits": COMPOSE,
    "carried edits with masks": Ebca(edits=EDITS, edit_masks=[MASKS, 1 - MASKS]),
    "an edit for each image": Ebca(edits=[TEXT_OF_EACH_IMAGE]),
    "update and carried edits": Ebca(UPDATE.updates, EDITS),
}


#: The one that tier 1 tries on the oldest ComfyUI too.
FULLEST = "update and carried edits"
each_case = pytest.mark.parametrize("name", with_mark(CASES, pytest.mark.interface, [FULLEST]))


def alone(case: Ebca, image: int) -> Ebca:
    """The case with what belongs to one image of the batch."""

    def its(mask):
        return None if mask is None else mask[image : image + 1]

    updates = [oracle.Update(u.gamma_attn, u.gamma_norm, u.token_weights, its(u.mask)) for u in case.updates]
    edits = [
        oracle.Edit(e.text[image] if e.text.ndim == 3 else e.text, e.weight, e.gamma_attn, e.gamma_norm)
        for e in case.edits
    ]
    return Ebca(updates, edits, [its(mask) for mask in case.edit_masks])


def run(model, images: slice = slice(0, 5), positive=None, negative=None, cfg=4.0):
    noise = toy.noise(5, 4, 8, 8)[images]
    positive, negative = positive or toy.conditioning(1), negative or toy.conditioning(99)
    return sample_sigmas(model, noise, SIGMAS, positive, negative, cfg)


def batch_sizes(model) -> list[int]:
    """Filled with the number of rows of each call of the model's U-Net."""
    sizes = []

    def record(executor, x, *args, **kwargs):
        sizes.append(x.shape[0])
        return executor(x, *args, **kwargs)

    model.add_wrapper_with_key("diffusion_model", "record", record)
    return sizes


@pytest.fixture
def little_memory(monkeypatch):
    """A function: from then on the model's prompts run one after the other, as where memory is short."""

    def starve(model):
        monkeypatch.setattr(model.model, "memory_required", lambda *args, **kwargs: float("inf"))
        return model

    return starve


@pytest.mark.parametrize(
    ("name", "count"),
    [*((name, 2) for name in CASES if name != FULLEST), pytest.param(FULLEST, 5, marks=pytest.mark.interface)],
)
def test_image_of_a_batch_equals_the_image_alone(comfy, pack, name, count):
    model, case = toy.model(), CASES[name]
    together = run(case.on(comfy, pack, model), slice(0, count))
    for image in (0, count - 1):
        by_itself = run(alone(case, image).on(comfy, pack, model), slice(image, image + 1))
        assert relative_error(together[image : image + 1], by_itself) < TOLERANCE
    assert relative_error(together, run(model, slice(0, count))) > 100 * TOLERANCE


@pytest.mark.interface
def test_every_image_of_a_batch_has_its_own_prompt(comfy, pack):
    model = Ebca(UPDATE.updates, EDITS).on(comfy, pack, toy.model())
    prompts = toy.conditioning(1, batch=3)
    together = run(model, slice(0, 3), prompts)
    for image in range(3):
        prompt = [[prompts[0][0][image : image + 1], {"pooled_output": prompts[0][1]["pooled_output"][image:][:1]}]]
        assert relative_error(together[image : image + 1], run(model, slice(image, image + 1), prompt)) < TOLERANCE


@each_case
def test_positive_and_negative_in_one_call_or_apart(comfy, pack, little_memory, name):
    model = CASES[name].on(comfy, pack, toy.model())
    sizes = batch_sizes(model)
    together = run(model, slice(0, 2))
    apart = run(little_memory(model), slice(0, 2))
    assert sizes == [4, 4, 4, 2, 2, 2, 2, 2, 2]
    assert relative_error(apart, together) < TOLERANCE


@pytest.mark.parametrize(("positive", "negative"), [(77, 154), (154, 77), (154, 231), (77, 308)])
@pytest.mark.parametrize("name", ["update", pytest.param(FULLEST, marks=pytest.mark.interface)])
def test_prompts_of_different_lengths_in_one_call_or_apart(comfy, pack, little_memory, name, positive, negative):
    model = CASES[name].on(comfy, pack, toy.model())
    prompts = dict(positive=toy.conditioning(1, positive), negative=toy.conditioning(99, negative))
    sizes = batch_sizes(model)
    together = run(model, slice(0, 1), **prompts)
    assert sizes == [2, 2, 2]
    assert relative_error(run(little_memory(model), slice(0, 1), **prompts), together) < TOLERANCE


@pytest.mark.parametrize("name", ["update", "update and carried edits"])
def test_longer_prompt_next_to_it_equals_the_computation_by_hand(comfy, pack, name):
    model, case = toy.model(), CASES[name]
    prompts = dict(positive=toy.conditioning(1), negative=toy.conditioning(99, 154))
    with case.by_hand(model, **prompts):
        expected = run(model, slice(0, 2), **prompts)
    assert relative_error(run(case.on(comfy, pack, model), slice(0, 2), **prompts), expected) < TOLERANCE


@pytest.mark.interface
@pytest.mark.parametrize("tokens", [77, 154])
def test_words_are_weighted_in_a_repeated_prompt(comfy, pack, little_memory, tokens):
    """The positive prompt of 77 tokens is repeated next to a negative one of 154; one of 154 is not."""
    weights = torch.ones(tokens).index_fill(0, torch.tensor([3, tokens - 5]), 3.0)
    model = Ebca([oracle.Update(0.02, 0.01, weights)]).on(comfy, pack, toy.model())
    prompts = dict(positive=toy.conditioning(1, tokens), negative=toy.conditioning(99, 231 - tokens))
    together = run(model, slice(0, 1), **prompts)
    assert relative_error(run(little_memory(model), slice(0, 1), **prompts), together) < TOLERANCE


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize(
    "name", ["update with words and masks", "carried edits", pytest.param(FULLEST, marks=pytest.mark.interface)]
)
def test_several_positive_prompts_equal_the_computation_by_hand(comfy, pack, little_memory, name, apart):
    case = alone(CASES[name], 0)
    model, positive = toy.model(), toy.conditioning(1) + toy.conditioning(2, strength=0.5) + toy.conditioning(3)
    if apart:
        little_memory(model)
    with case.by_hand(model, positive, toy.conditioning(99)):
        expected = run(model, slice(0, 2), positive)
    assert relative_error(run(case.on(comfy, pack, model), slice(0, 2), positive), expected) < TOLERANCE


@pytest.mark.parametrize(("height", "width"), [(40, 24), (17, 23), (9, 8), (1, 30)])
@pytest.mark.parametrize("name", ["update with words and masks", "update and carried edits"])
def test_any_latent_size_equals_the_computation_by_hand(comfy, pack, name, height, width):
    model, case = toy.model(), alone(CASES[name], 0)
    mask = (toy.noise(1, height, width, seed=8) > 0).float()
    case = Ebca([oracle.Update(0.02, 0.01, u.token_weights, mask) for u in case.updates], case.edits)
    options = dict(latent=toy.latent(1, height, width), steps=2)
    with case.by_hand(model, toy.conditioning(1), toy.conditioning(99)):
        expected = sample(model, toy.conditioning(1), **options)
    assert relative_error(sample(case.on(comfy, pack, model), toy.conditioning(1), **options), expected) < TOLERANCE


@pytest.mark.parametrize("name", ["update", pytest.param("carried edits", marks=pytest.mark.interface)])
def test_guidance_of_one_equals_the_computation_by_hand(comfy, pack, name):
    """ComfyUI then leaves the negative prompt out."""
    model, case = toy.model(), CASES[name]
    with case.by_hand(model, toy.conditioning(1), toy.conditioning(99)):
        expected = run(model, slice(0, 2), cfg=1.0)
    patched = case.on(comfy, pack, model)
    sizes = batch_sizes(patched)
    assert relative_error(run(patched, slice(0, 2), cfg=1.0), expected) < TOLERANCE
    assert sizes == [2, 2, 2]


@pytest.mark.interface
def test_apply_to_positive_leaves_the_negative_prompt_alone(comfy, pack):
    both = first_rows(UPDATE.on(comfy, pack, toy.model()))
    positive_only = first_rows(UPDATE.on(comfy, pack, toy.model(), apply_to="positive"))
    plain = first_rows(toy.model())
    assert relative_error(positive_only["positive"], both["positive"]) < TOLERANCE
    assert relative_error(positive_only["negative"], plain["negative"]) < TOLERANCE
    assert relative_error(both["negative"], plain["negative"]) > 100 * TOLERANCE


def first_rows(model) -> dict[str, torch.Tensor]:
    """What the first call of the U-Net gives for each prompt."""
    found = {}

    def record(executor, *args, **kwargs):
        out = executor(*args, **kwargs)
        roles = ["negative" if index else "positive" for index in args[5]["cond_or_uncond"]]
        for role, rows in zip(roles, out.chunk(len(roles)), strict=True):
            found.setdefault(role, rows)
        return out

    model = model.clone()
    model.add_wrapper_with_key("diffusion_model", "record", record)
    run(model, slice(0, 2))
    return found
