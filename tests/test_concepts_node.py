"""EBCA Concepts: equal to its chain of core nodes and EBCA Compose, and off where it must be."""
from __future__ import annotations

import comfy.hooks as comfy_hooks
import pytest
import torch

from support import toy
from support.host import node
from support.log_messages import refused
from support.sampling import relative_error, sample

PROMPT = "a bear, a red balloon and a blue bench"
CONCEPTS = ("a bear", "a red balloon", "a blue bench")


@pytest.fixture(scope="module", params=["sd1", "sdxl"])
def family(request):
    return request.param


def encoded(comfy, clip, text):
    return node(comfy, "CLIPTextEncode").execute(clip=clip, text=text)[0]


def chain(comfy, model, clip, concepts, strengths, empty_prompt=0.2, end_percent=0.5):
    """What the note of EBCA 01 says: one edit for each concept, and the empty prompt removed."""
    off = dict(start_percent=0.0, end_percent=end_percent, gamma_attn=0.0, gamma_norm=0.0)
    texts = [*((text, "add", alpha) for text, alpha in zip(concepts, strengths)), ("", "remove", empty_prompt)]
    edits = {
        f"edit{i}": node(comfy, "EBCAEditContext").execute(
            conditioning=encoded(comfy, clip, text), direction=direction, alpha=alpha, **off
        )[0]
        for i, (text, direction, alpha) in enumerate(texts)
    }
    return node(comfy, "EBCACompose").execute(model=model, edits=edits)[0]


def concepts_node(comfy, model, clip, **inputs):
    return node(comfy, "EBCAConcepts").execute(model=model, clip=clip, **{"prompt": PROMPT, **inputs})


def test_clip_with_a_schedule_is_refused(comfy):
    """ComfyUI's hooks on a CLIP: it encodes the prompt once for each keyframe."""
    hooks, keyframes = comfy_hooks.create_hook_lora({}, 1.0, 1.0), comfy_hooks.HookKeyframeGroup()
    for strength, start in ((1.0, 0.0), (0.5, 0.5)):
        keyframes.add(comfy_hooks.HookKeyframe(strength=strength, start_percent=start))
    hooks.set_keyframes_on_hooks(keyframes)
    clip = node(comfy, "SetClipHooks").execute(clip=toy.clip(), apply_to_conds=True, schedule_clip=True, hooks=hooks)[0]
    refused(lambda: concepts_node(comfy, toy.model(), clip), "clip encodes a prompt once for each", "CLIP from before")


@pytest.mark.parametrize(("inputs", "concepts", "strengths", "options"), [
    ({}, CONCEPTS, (0.1, 0.1, 0.1), {}),
    ({"concepts": "a bear = 0.3\na blue bench"}, ("a bear", "a blue bench"), (0.3, 0.1), {}),
    ({"strength": 0.2, "empty_prompt": 0.0, "end_percent": 0.8}, CONCEPTS, (0.2, 0.2, 0.2),
     {"empty_prompt": 0.0, "end_percent": 0.8}),
    ({"concepts": "\n".join("abcdef")}, tuple("abcdef"), (0.1 * (3 / 6),) * 6, {}),
], ids=["found", "from the box", "other values", "six share out the strength of three"])  # fmt: skip
def test_equals_the_chain_bit_for_bit(comfy, family, inputs, concepts, strengths, options):
    model, clip, negative = toy.model(family), toy.clip(family), encoded(comfy, toy.clip(family), "")
    got, positive, found = concepts_node(comfy, model, clip, **inputs)
    expected = chain(comfy, model, clip, concepts, strengths, **options)
    whole = encoded(comfy, clip, PROMPT)
    assert torch.equal(positive[0][0], whole[0][0])
    assert [line.split(maxsplit=1)[1] for line in found.splitlines()[1:]] == list(concepts)
    samples = sample(got, positive, negative)
    assert torch.equal(samples, sample(expected, whole, negative))
    assert relative_error(samples, sample(model, whole, negative)) > 1e-4


@pytest.mark.parametrize("inputs", [{"strength": 0.0}, {"end_percent": 0.0}, {"concepts": "a bear = 0"}])
def test_off_gives_the_model_itself(comfy, inputs):
    model = toy.model()
    assert concepts_node(comfy, model, toy.clip(), **inputs)[0] is model


def test_a_window_before_the_second_step_is_off_after_it(comfy):
    """A window that no step lies in is bit-identical to the plain model."""
    model, clip = toy.model(), toy.clip()
    got, positive, _ = concepts_node(comfy, model, clip, end_percent=0.001)
    sigmas = torch.tensor([5.0, 2.0, 0.5, 0.0])
    assert torch.equal(*(sample(one, positive, sigmas=sigmas) for one in (got, model)))


def test_schedule_multiplies_the_strengths(comfy):
    half = node(comfy, "EBCASchedule").execute(shape="constant", start_factor=0.5)[0]
    model, clip = toy.model(), toy.clip()
    got, positive, _ = concepts_node(comfy, model, clip, schedule=half)
    expected = chain(comfy, model, clip, CONCEPTS, (0.05, 0.05, 0.05), empty_prompt=0.1)
    assert torch.equal(sample(got, positive), sample(expected, positive))


def test_the_box_is_asked_for_where_the_prompt_cannot_be_split(comfy):
    tags = "masterpiece, best quality, 1girl, red hair, blue dress"
    refused(lambda: concepts_node(comfy, toy.model(), toy.clip(), prompt=tags), "list of tags", "concepts")
    assert "list of tags" in node(comfy, "EBCAConcepts").cls.validate_inputs(
        prompt=tags, concepts="", strength=0.1, empty_prompt=0.2, end_percent=0.5
    )


# --- EBCA Edit Context with a text ----------------------------------------------------------------------------------


def test_edit_of_a_text_is_the_edit_of_its_conditioning(comfy):
    clip = toy.clip()
    own = node(comfy, "EBCAEditContext").execute(clip=clip, text="a blue bench")[0]
    other = node(comfy, "EBCAEditContext").execute(conditioning=encoded(comfy, clip, "a blue bench"))[0]
    assert torch.equal(own.context, other.context)


def test_edit_without_a_prompt_or_with_two_is_refused(comfy):
    edit, clip = node(comfy, "EBCAEditContext"), toy.clip()
    refused(lambda: edit.execute(), "has no prompt", "clip")
    refused(lambda: edit.execute(text="a dog"), "has no prompt")
    refused(lambda: edit.execute(conditioning=toy.conditioning(1), clip=clip, text="a dog"), "two prompts")
