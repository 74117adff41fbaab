"""What cannot work is refused before sampling: the message says what was expected, what came, and what to do."""
from __future__ import annotations

import functools
import json
import logging
import math

import numpy as np
import pytest
import torch

from support import other_packs, toy
from support.host import PromptError, node
from support.log_messages import messages, refused
from support.sampling import sample

FAMILIES = "EBCA works with models that read text"


def update(comfy, model=None, **inputs):
    return node(comfy, "EBCAContextUpdate").execute(model=model or toy.model(), **inputs)[0]


def an_edit(comfy, conditioning=None, **inputs):
    return node(comfy, "EBCAEditContext").execute(conditioning=conditioning or toy.conditioning(2), **inputs)[0]


def compose(comfy, *edits, model=None):
    edits = {f"edit{i}": edit for i, edit in enumerate(edits)}
    return node(comfy, "EBCACompose").execute(model=model or toy.model(), edits=edits)[0]


def removals(comfy, *specs):
    """Edits from (signed alpha, start, end, mask)."""
    return [
        an_edit(comfy, direction="add" if alpha > 0 else "remove", alpha=abs(alpha), start_percent=start,
                end_percent=end, mask=mask)
        for alpha, start, end, mask in specs
    ]  # fmt: skip


# --- strengths and windows -------------------------------------------------------------------------------------------

STRENGTHS = ["gamma_attn", "gamma_norm"]


@pytest.mark.parametrize("value", [math.nan, math.inf, -0.01])
@pytest.mark.parametrize("name", STRENGTHS)
def test_impossible_gamma_is_refused_at_the_update(comfy, name, value):
    refused(lambda: update(comfy, **{name: value}), f"{name} is {value}", "from 0 up", "Set it to 0")


@pytest.mark.parametrize("value", [math.nan, math.inf, -0.5])
@pytest.mark.parametrize("name", [*STRENGTHS, "alpha"])
def test_impossible_strength_is_refused_at_the_edit(comfy, name, value):
    refused(lambda: an_edit(comfy, **{name: value}), f"{name} is {value}", "Set it to 0 to switch it off")


@pytest.mark.parametrize(("start", "end"), [(0.5, 0.5), (0.8, 0.2), (1.0, 1.0), (0.0, 0.0)])
@pytest.mark.parametrize("which", ["update", "edit", "edit's gammas"])
def test_empty_or_reversed_window_is_refused(comfy, which, start, end):
    calls = {
        "update": lambda: update(comfy, start_percent=start, end_percent=end),
        "edit": lambda: an_edit(comfy, start_percent=start, end_percent=end),
        "edit's gammas": lambda: an_edit(comfy, gamma_start_percent=start, gamma_end_percent=end),
    }
    prefix = "gamma_" if "gammas" in which else ""
    inputs = f"{prefix}start_percent is {start:g} and {prefix}end_percent is {end:g}"
    message = refused(calls[which], "the start is not less than the end", "Set 0 <= start < end <= 1")
    assert message.startswith(inputs)


def test_window_of_a_strength_that_is_off_is_not_looked_at(comfy):
    an_edit(comfy, gamma_attn=0.0, gamma_norm=0.0, gamma_start_percent=1.0)
    an_edit(comfy, alpha=0.0, start_percent=0.9, end_percent=0.1)
    update(comfy, gamma_attn=0.0, gamma_norm=0.0, start_percent=0.5, end_percent=0.5)


# --- masks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mask", "parts"), [
    (torch.ones(64), ("instead of [batch, height, width]", "[64]")),
    (torch.ones(0, 64, 64), ("instead of [batch, height, width]", "[0, 64, 64]")),
    (torch.full((1, 8, 8), 255.0), ("instead of 0 to 1", "from 255 to 255", "mask nodes")),
    (torch.full((1, 8, 8), -0.5), ("instead of 0 to 1", "from -0.5 to -0.5")),
    (torch.full((1, 8, 8), math.nan), ("instead of 0 to 1", "nan")),
], ids=["one side", "no image", "0 to 255", "negative", "nan"])  # fmt: skip
def test_impossible_mask_is_refused(comfy, mask, parts):
    refused(lambda: update(comfy, mask=mask), *parts)
    refused(lambda: an_edit(comfy, mask=mask), *parts)


@pytest.mark.parametrize("shape", [(8, 8), (3, 8, 8), (2, 1, 8, 8)], ids=str)
def test_masks_of_the_usual_shapes_are_taken(comfy, shape):
    assert torch.isfinite(sample(update(comfy, mask=torch.ones(shape)), toy.conditioning(1), steps=1)).all()


@pytest.mark.parametrize("shape", [(8, 8, 1), (2, 8, 8, 1), (1, 8, 12, 1), (1, 8, 12), (1, 1, 8, 12)], ids=str)
def test_channel_axis_of_a_mask_is_dropped(comfy, pack, shape):
    """In front of the height or behind the width, as nodes that make masks of images leave it."""
    mask = toy.noise(*shape).sigmoid()
    rows = [mask.squeeze(0).squeeze(0).squeeze(-1)] if len(shape) < 4 or shape[0] == 1 else list(mask.squeeze(-1))
    taken = pack.nodes.shared_inputs.validated_mask(mask)
    assert torch.equal(taken, torch.stack(rows))


@pytest.mark.parametrize("channels", [3, 4])
def test_image_in_place_of_a_mask_is_refused(comfy, channels):
    mask = torch.ones(1, 8, 8, channels)
    refused(lambda: update(comfy, mask=mask), f"[1, 8, 8, {channels}]", "several channels", "Image To Mask")


@pytest.mark.parametrize(("radius", "sigma"), [(1, 1.0), (4, 2.0), (8, 2.5), (16, 5.0), (31, 10.0)])
def test_blurred_mask_is_taken(comfy, radius, sigma):
    """ComfyUI's own blur carries some masks a little above 1."""
    disc = torch.zeros(1, 64, 64, 3)
    disc[:, 16:48, 16:48] = 1
    (blurred,) = node(comfy, "ImageBlur").execute(image=disc, blur_radius=radius, sigma=sigma)
    (mask,) = node(comfy, "ImageToMask").execute(image=blurred, channel="red")
    clamped = update(comfy, mask=mask.clamp(0, 1))
    assert torch.equal(sample(update(comfy, mask=mask), toy.conditioning(1), steps=1),
                       sample(clamped, toy.conditioning(1), steps=1))  # fmt: skip
    an_edit(comfy, mask=mask)


def test_digits_of_a_refused_mask_show_why(comfy):
    refused(lambda: update(comfy, mask=torch.full((1, 8, 8), 1 + 2.0**-9)), "from 1.00195312 to 1.00195312")


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.float16])
def test_masks_of_other_types_are_taken(comfy, dtype):
    mask = torch.zeros(1, 16, 16)
    mask[:, :8] = 1
    expected = sample(update(comfy, mask=mask), toy.conditioning(1), steps=1)
    assert torch.equal(sample(update(comfy, mask=mask.to(dtype)), toy.conditioning(1), steps=1), expected)


@pytest.mark.parametrize(("start", "end"), [(0.1 * 3 - 0.3, 1 + 1e-9), (-1e-9, 0.7 + 0.2 + 0.1)])
def test_percents_that_arithmetic_has_carried_out_of_their_range_are_taken(comfy, start, end):
    update(comfy, start_percent=start, end_percent=end)
    an_edit(comfy, start_percent=start, end_percent=end, gamma_start_percent=start, gamma_end_percent=end)


def test_windows_that_touch_by_arithmetic_do_not_overlap(comfy):
    """0.1 + 0.2 is a little more than 0.3."""
    edits = removals(comfy, (-0.6, 0.0, 0.1 + 0.2, None), (-0.6, 0.3, 1.0, None))
    compose(comfy, *edits)


def test_mask_of_a_larger_image_is_said_once_a_model(comfy, caplog):
    """Upscalers sample an image tile by tile, each in a run of its own."""
    caplog.set_level(logging.INFO, "ebca")
    mask = torch.zeros(1, 128, 128)
    mask[:, :, :64] = 1
    model = compose(comfy, an_edit(comfy, mask=mask, start_percent=0.0))
    for seed in range(3):
        sample(model, toy.conditioning(1), steps=1, latent=toy.latent(1, 8, 8), seed=seed)
    (message,) = messages(caplog)
    assert "a mask of 128 x 128 is resized to the image of 64 x 64" in message
    assert "tile" in message


@pytest.mark.parametrize("size", [(64, 64), (8, 8), (32, 32), (63, 63)], ids=str)
def test_mask_of_the_images_size_or_smaller_says_nothing(comfy, caplog, size):
    caplog.set_level(logging.INFO, "ebca")
    mask = toy.noise(1, *size).sigmoid()
    sample(update(comfy, mask=mask), toy.conditioning(1), steps=1, latent=toy.latent(1, 8, 8))
    assert not messages(caplog)


# --- blocks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("blocks", "parts"), [
    ("all", ("'all' in blocks is not a block", "d0-d2, m0, u1 or u0.4", "has d0, d1, m0, u0, u1")),
    (",", ("as in d0-d2, m0, u1 or u0.4",)),
    ("input_1", ("'input_1' in blocks",)),
    ("d0;d1", ("'d0;d1' in blocks",)),
    (",", ("',' in blocks",)),
    ("d0 - d1", ("'-' in blocks",)),
    ("d2", ("no attention block d2", "It has d0, d1, m0")),
    ("d0-d9", ("no attention block d9",)),
    ("m1", ("no attention block m1",)),
    ("d0.1", ("no attention block d0.1",)),
    ("d1-d0", ("the range d1-d0 ends before it begins",)),
    ("u0-d0", ("the range u0-d0 ends before it begins",)),
])  # fmt: skip
def test_impossible_blocks_are_refused_with_what_the_model_has(comfy, blocks, parts):
    assert "u1" in refused(lambda: update(comfy, blocks=blocks), *parts)


@pytest.mark.parametrize("blocks", ["u1", "u1.0", "u1,u1-u1"])
def test_blocks_whose_update_nothing_reads_are_refused(comfy, blocks):
    refused(lambda: update(comfy, blocks=blocks), "only the model's last layer is chosen", "leave blocks empty")


def test_layers_in_a_block_are_listed(comfy):
    listed = "d0 (layers d0.0 to d0.1), m0 (layers m0.0 to m0.1)"
    refused(lambda: update(comfy, toy.model("sdxl"), blocks="d5"), listed)


@pytest.mark.parametrize("wired", ["token weights", "mask"])
def test_inputs_of_an_attention_term_that_is_off_warn(comfy, pack, caplog, wired):
    inputs = dict(token_weights=weights(pack, 77)) if wired == "token weights" else dict(mask=torch.ones(1, 8, 8))
    with caplog.at_level(logging.WARNING, "ebca"):
        update(comfy, gamma_attn=0.0, gamma_norm=0.02, **inputs)
        update(comfy, **inputs)
    (message,) = messages(caplog)
    assert "they act on the attention term, and gamma_attn is 0" in message


def test_inputs_of_an_attention_term_that_is_off_do_nothing(comfy, pack):
    """Weights of a text of another length would be refused, were they asked."""
    norm = dict(gamma_attn=0.0, gamma_norm=0.02)
    inputs = dict(token_weights=weights(pack, 154), mask=toy.noise(1, 8, 8).sigmoid())
    got, expected = (sample(update(comfy, **norm, **more), toy.conditioning(1), steps=1) for more in (inputs, {}))
    assert torch.equal(got, expected)


# --- conditionings of edits ------------------------------------------------------------------------------------------


def with_core_node(comfy, node_id, conditioning=None, **inputs):
    return node(comfy, node_id).execute(conditioning=conditioning or toy.conditioning(2), **inputs)[0]


#: name: (a conditioning that an edit cannot honour, what the message names, what it advises)
CONDITIONINGS = {
    "several prompts": (
        lambda comfy: toy.conditioning(2) + toy.conditioning(3),
        "has 2 prompts instead of one", "EBCA Edit Context for each",
    ),
    "no prompt": (lambda comfy: [], "has 0 prompts instead of one", ""),
    "an area": (
        lambda comfy: with_core_node(comfy, "ConditioningSetArea", width=64, height=64, x=0, y=0, strength=1.0),
        "an area", "mask input of EBCA Edit Context",
    ),
    "a relative area": (
        lambda comfy: with_core_node(comfy, "ConditioningSetAreaPercentage", width=0.5, height=1, x=0, y=0, strength=1),
        "an area", "mask input of EBCA Edit Context",
    ),
    "a mask": (
        lambda comfy: with_core_node(comfy, "ConditioningSetMask", mask=torch.ones(1, 64, 64), strength=1.0,
                                     set_cond_area="default"),
        "a mask", "mask input of EBCA Edit Context",
    ),
    "a timestep range": (
        lambda comfy: with_core_node(comfy, "ConditioningSetTimestepRange", start=0.2, end=0.8),
        "a timestep range", "start_percent and end_percent of EBCA Edit Context",
    ),
    "a strength": (
        lambda comfy: with_core_node(comfy, "ConditioningSetAreaStrength", strength=0.5), "a strength", "alpha",
    ),
    "a ControlNet": (lambda comfy: toy.conditioning(2, control=object()), "a ControlNet", "main prompt"),
    "a default": (
        lambda comfy: node(comfy, "ConditioningSetDefaultCombine").execute(
            cond=[], cond_DEFAULT=toy.conditioning(2), hooks=None)[0], "`default` flag", "main prompt",
    ),
    "unCLIP images": (
        lambda comfy: toy.conditioning(2, unclip_conditioning=[{"strength": 1.0}]), "unCLIP images", "main prompt",
    ),
    "GLIGEN boxes": (lambda comfy: toy.conditioning(2, gligen=("position", None, [])), "GLIGEN boxes", "main prompt"),
    "hooks": (lambda comfy: toy.conditioning(2, hooks=object()), "hooks", "main prompt"),
    "a NegPip CLIP": (
        lambda comfy: [[other_packs.in_turns(toy.conditioning(2)[0][0]), {}]],
        "NegPip", "CLIP from before CLIP NegPip",
    ),
    "no tokens": (lambda comfy: toy.conditioning(2, tokens=0), "[batch, tokens, width]", "CLIP Text Encode"),
    "no batch": (lambda comfy: [[torch.ones(77, toy.WIDTH), {}]], f"is [77, {toy.WIDTH}] ", "CLIP Text Encode"),
    "nothing encoded": (lambda comfy: [[None, {}]], "is NoneType instead of", "CLIP Text Encode"),
}  # fmt: skip


@pytest.mark.parametrize("name", CONDITIONINGS)
def test_conditioning_that_an_edit_cannot_honour_is_refused(comfy, name):
    make, came, advice = CONDITIONINGS[name]
    conditioning = make(comfy)
    refused(
        lambda: node(comfy, "EBCAEditContext").execute(conditioning=conditioning), "The conditioning of an edit", came,
        advice,
    )  # fmt: skip


def test_edit_of_another_width_is_refused_with_both_widths(comfy):
    edit = an_edit(comfy, toy.conditioning(2, width=48))
    refused(lambda: compose(comfy, edit), f"width {toy.WIDTH}", "SD15", "width 48", "CLIP of the checkpoint")


def test_compose_without_edits_is_refused(comfy):
    refused(lambda: compose(comfy), "No edit is connected", "edit0")
    refused(lambda: compose(comfy, None), "No edit is connected")


# --- compositions ----------------------------------------------------------------------------------------------------

LEFT = torch.tensor([[[1.0, 0.0]]])
#: name: (edits as (signed alpha, start, end, mask), the smallest denominator)
IMPOSSIBLE = {
    "one removal": ([(-1.0, 0, 1, None)], "0"),
    "tenths that add up to one": ([(-0.6, 0, 1, None), (-0.3, 0, 1, None), (-0.1, 0, 1, None)], "0"),
    "beyond one": ([(-1.3, 0, 1, None)], "-0.3"),
    "two removals": ([(-0.6, 0, 1, None), (-0.6, 0, 1, None)], "-0.2"),
    "an addition that ends": ([(1.0, 0, 0.5, None), (-1.5, 0, 1, None)], "-0.5"),
    "an addition that begins later": ([(1.0, 0.5, 1, None), (-1.5, 0, 1, None)], "-0.5"),
    "an addition elsewhere": ([(1.0, 0, 1, LEFT), (-1.5, 0, 1, None)], "-0.5"),
    "masks that overlap": ([(-0.6, 0, 1, LEFT), (-0.6, 0, 1, LEFT)], "-0.2"),
    "windows that overlap": ([(-0.6, 0, 0.6, None), (-0.6, 0.5, 1, None)], "-0.2"),
}
POSSIBLE = {
    "removal under one": [(-0.9, 0, 1, None)],
    "addition in its place": [(0.75, 0, 1, None), (-1.5, 0, 1, None)],
    "windows apart": [(-0.6, 0, 0.5, None), (-0.6, 0.5, 1, None)],
    "masks apart": [(-0.6, 0, 1, LEFT), (-0.6, 0, 1, 1 - LEFT)],
    "large additions": [(5.0, 0, 1, None), (5.0, 0, 1, None)],
}


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_composition_that_reaches_zero_is_refused_with_its_values(comfy, name):
    specs, smallest = IMPOSSIBLE[name]
    listed = ", ".join(f"{alpha:+g}" for alpha, *_ in specs)
    edits = removals(comfy, *specs)
    refused(lambda: compose(comfy, *edits), "Too much is removed", f"reach {smallest} ", listed, "Lower the alpha")


@pytest.mark.parametrize("name", POSSIBLE)
def test_composition_above_zero_is_taken_without_a_word(comfy, name, caplog):
    edits = removals(comfy, *POSSIBLE[name])
    with caplog.at_level(logging.WARNING, "ebca"):
        compose(comfy, *edits)
    assert not messages(caplog)


def test_masks_of_different_sizes_are_said_to_overlap(comfy):
    fine = torch.tensor([[[0.0, 0.0, 1.0, 1.0]]])
    edits = removals(comfy, (-0.6, 0, 1, LEFT), (-0.6, 0, 1, fine))
    refused(lambda: compose(comfy, *edits), "reach -0.2", "Masks of different sizes are assumed to overlap")


def test_edits_of_an_earlier_compose_count(comfy):
    first, second = removals(comfy, (-0.6, 0, 1, None), (-0.6, 0, 1, None))
    once = compose(comfy, first)
    refused(lambda: compose(comfy, second, model=once), "Too much is removed: 0.6 + 0.6 must", "-0.6, -0.6")


def test_small_denominator_warns_once(comfy, caplog):
    edits = removals(comfy, (-0.95, 0, 1, None))
    with caplog.at_level(logging.WARNING, "ebca"):
        model = compose(comfy, *edits)
        sample(model, toy.conditioning(1), steps=2, latent=toy.latent(1, 8, 8))
    (message,) = messages(caplog)
    assert "can fall to 0.05 (signed alphas: -0.95)" in message
    assert "Lower the alpha" in message


# --- token weights ---------------------------------------------------------------------------------------------------


def weights(pack, tokens):
    return pack.comfyui_binding.text.token_weights.TokenWeights(torch.linspace(0.5, 2, tokens))


@pytest.mark.parametrize(("tokens", "prompt"), [(154, 77), (77, 154), (76, 77)])
def test_token_weights_of_another_prompt_are_refused(comfy, pack, tokens, prompt):
    model = update(comfy, token_weights=weights(pack, tokens))
    refused(
        lambda: sample(model, toy.conditioning(1, tokens=prompt), steps=1), f"the positive prompt has {prompt} tokens",
        f"for a prompt of {tokens} tokens", "Give EBCA Token Weights the text that the positive prompt encodes",
    )  # fmt: skip


def test_token_weights_of_a_long_prompt_beside_a_short_negative_are_taken(comfy, pack):
    model, long, short = update(comfy, token_weights=weights(pack, 154)), toy.conditioning(1, 154), toy.conditioning(99)
    assert torch.isfinite(sample(model, long, short, steps=1)).all()


def test_run_after_a_refused_one_is_as_ever(comfy, pack):
    model = toy.model()
    plain = sample(model, toy.conditioning(1), steps=1)
    with pytest.raises(ValueError):
        sample(update(comfy, model, token_weights=weights(pack, 154)), toy.conditioning(1), steps=1)
    assert torch.equal(sample(model, toy.conditioning(1), steps=1), plain)


# --- what a wire brings that its socket does not announce ------------------------------------------------------------


@pytest.mark.parametrize(("node_id", "name", "value", "said"), [
    ("EBCAContextUpdate", "model", None, "model received nothing instead of MODEL"),
    ("EBCAContextUpdate", "mask", "black", "mask received str instead of MASK"),
    ("EBCAContextUpdate", "mask", torch.ones(1, 8, 8, dtype=torch.complex64), "mask received Tensor instead of MASK"),
    ("EBCAContextUpdate", "gamma_attn", [0.1], "gamma_attn received list instead of FLOAT"),
    ("EBCAContextUpdate", "token_weights", 2.5, "token_weights received float instead of EBCA_TOKEN_WEIGHTS"),
    ("EBCAContextUpdate", "apply_to", "negative", "apply_to is 'negative', which is not an option. Choose one of:"),
    ("EBCACompose", "edits", {"edit0": None, "edit1": 3}, "edit1 received int instead of EBCA_EDIT"),
    ("EBCARePaintSampler", "jump_length", 0, "jump_length is 0. Set it to a number from 1 to 1000"),
    ("EBCASaveInversion", "latent", {}, "latent received dict instead of LATENT"),
])  # fmt: skip
def test_what_a_wire_cannot_bring_is_refused(comfy, node_id, name, value, said):
    inputs = {"model": toy.model()} if node_id in ("EBCAContextUpdate", "EBCACompose") else {}
    refused(lambda: node(comfy, node_id).execute(**{**inputs, name: value}), said)


def test_numbers_of_numpy_are_taken_as_pythons(comfy):
    """Nodes of other packs compute with them; what is stored is written as JSON."""
    make = node(comfy, "EBCAEditContext").execute
    edits = [make(conditioning=toy.conditioning(2), alpha=alpha)[0] for alpha in (0.5, np.float32(0.5))]
    assert json.dumps(edits[0].to_dict([])) == json.dumps(edits[1].to_dict([]))
    invert = functools.partial(
        node(comfy, "EBCAInvert").execute, model=toy.model(), caption=toy.conditioning(1), latent=toy.latent(1, 8, 8)
    )
    assert torch.equal(invert(steps=np.int64(2))[0]["samples"], invert(steps=2)[0]["samples"])


@pytest.mark.parametrize(("node_id", "names"), [
    ("EBCAEditContext", ["text", "mask", "schedule", "start_percent"]),
    ("EBCACompose", ["blocks", "norm_limit", "mix_pooled", "shared_attention"]),
    ("EBCAContextUpdate", ["blocks", "mask", "token_weights"]),
])  # fmt: skip
def test_nothing_on_the_wire_of_an_optional_input_is_as_no_wire(comfy, node_id, names):
    """A switch of another pack on which nothing is chosen gives None."""
    inputs = {
        "EBCAEditContext": {"conditioning": toy.conditioning(2)},
        "EBCACompose": {"model": toy.model(), "edits": {"edit0": an_edit(comfy, toy.conditioning(2))}},
        "EBCAContextUpdate": {"model": toy.model(), "gamma_attn": 0.1},
    }[node_id]
    optional = {one.id for one in node(comfy, node_id).cls.define_schema().inputs if one.optional}
    names = [name for name in names if name in optional]
    assert len(names) > 1
    made = [node(comfy, node_id).execute(**inputs, **more)[0] for more in ({}, dict.fromkeys(names))]
    if node_id == "EBCAEditContext":
        assert made[0].to_dict([]) == made[1].to_dict([])
    else:
        assert torch.equal(*(sample(one, toy.conditioning(1), steps=1) for one in made))


@pytest.mark.parametrize("eta", [-0.1, 1.5, float("nan")])
def test_impossible_eta_is_refused(comfy, eta):
    refused(lambda: node(comfy, "EBCARePaintSampler").execute(eta=eta), "Set it to a number from 0", f"eta is {eta}")


def test_file_that_cannot_be_written_is_refused(comfy):
    model, caption = toy.model(), toy.conditioning(1)
    latent = node(comfy, "EBCAInvert").execute(model=model, caption=caption, latent=toy.latent(1, 8, 8), steps=1)[0]
    save = node(comfy, "EBCASaveInversion")
    refused(lambda: save.execute(latent=latent, filename_prefix=300 * "a"), "cannot be written", "shorter")


@pytest.mark.parametrize(("caption", "said"), [
    ([], "caption is empty"),
    ([[None, {}]], "caption is NoneType"),
    ([[torch.zeros(1, 0, toy.WIDTH), {}]], "caption is [1, 0, 64]"),
    ([[torch.zeros(77, toy.WIDTH), {}]], "caption is [77, 64]"),
    (toy.conditioning(1, width=48), "width 48, but SD15 reads text of width 64"),
], ids=["none", "no text", "no tokens", "flat", "narrow"])  # fmt: skip
def test_impossible_caption_is_refused(comfy, caption, said):
    invert = node(comfy, "EBCAInvert")
    refused(lambda: invert.execute(model=toy.model(), caption=caption, latent=toy.latent(1, 8, 8), steps=1), said)


def test_latent_without_images_is_left_to_comfyui(comfy, caplog):
    edit = node(comfy, "EBCAEditContext").execute(conditioning=toy.conditioning(2))[0]
    ours = node(comfy, "EBCACompose").execute(model=toy.model(), edits={"edit0": edit})[0]
    said = []
    for model in (toy.model(), ours):
        with pytest.raises(RuntimeError) as failure:
            sample(model, toy.conditioning(1), latent=toy.latent(batch=0))
        said.append(str(failure.value))
    assert said[0] == said[1]
    assert messages(caplog) == []


# --- what the user reads ---------------------------------------------------------------------------------------------


def source(kind, make):
    """A node with one output of a type."""
    class Source:
        INPUT_TYPES = classmethod(lambda cls: {"required": {"name": ("STRING", {"default": ""})}})
        RETURN_TYPES, FUNCTION, CATEGORY = (kind,), "run", "tests"
        run = staticmethod(lambda name="": (make(name),))

    return Source


def sink(kind):
    class Sink:
        INPUT_TYPES = classmethod(lambda cls: {"required": {"value": (kind,)}})
        RETURN_TYPES, FUNCTION, CATEGORY, OUTPUT_NODE = (), "run", "tests", True
        run = staticmethod(lambda value: {})

    return Sink


@pytest.fixture
def graph(comfy, monkeypatch, pack):
    """Nodes that stand for the loaders of a workflow."""
    nodes = {
        "ToyModel": source("MODEL", lambda name: toy.model(name or "sd1")),
        "ToyPrompt": source("CONDITIONING", lambda name: toy.conditioning(2, width=48 if name else toy.WIDTH)),
        "ToyLatent": source("LATENT", lambda name: toy.latent(1, 8, 8)),
        "ToyMask": source("MASK", lambda name: torch.full((1, 8, 8), 255.0)),
        "ToyWeights": source("EBCA_TOKEN_WEIGHTS", lambda name: weights(pack, 154)),
        "ModelSink": sink("MODEL"), "LatentSink": sink("LATENT"),
    }  # fmt: skip
    for name, cls in nodes.items():
        monkeypatch.setitem(comfy.NODE_CLASS_MAPPINGS, name, cls)

    def build(family="", prompt="", setting=None, update=None, edit=None, compose=(), sampled=False):
        """model -> [update] -> [edit, compose] -> sink; sampled: through a KSampler.

        compose: inputs of EBCA Compose, none of which it had at first; None: no edit is wired to it.
        """
        made = {
            "model": {"class_type": "ToyModel", "inputs": {"name": family}},
            "prompt": {"class_type": "ToyPrompt", "inputs": {"name": prompt}},
            "mask": {"class_type": "ToyMask", "inputs": {"name": ""}},
            "weights": {"class_type": "ToyWeights", "inputs": {"name": ""}},
            "latent": {"class_type": "ToyLatent", "inputs": {"name": ""}},
        }
        if setting is not None:
            made["set"] = {"class_type": setting[0], "inputs": {"conditioning": ["prompt", 0], **setting[1]}}
        model = ["model", 0]
        if update is not None:
            made["update"] = ours("EBCAContextUpdate", model=model, **update)
            model = ["update", 0]
        if edit is not None:
            conditioning = ["set" if setting is not None else "prompt", 0]
            made["edit"] = ours("EBCAEditContext", conditioning=conditioning, **edit)
            edits = {} if compose is None else {"edits.edit0": ["edit", 0], **dict(compose)}
            made["compose"] = {"class_type": "EBCACompose", "inputs": {"model": model, **edits}}
            model = ["compose", 0]
        made["sink"] = {"class_type": "ModelSink", "inputs": {"value": model}}
        if sampled:
            made["sampler"] = {"class_type": "KSampler", "inputs": dict(
                model=model, positive=["prompt", 0], negative=["prompt", 0], latent_image=["latent", 0], seed=0,
                steps=1, cfg=4.0, sampler_name="euler", scheduler="normal", denoise=1.0,
            )}  # fmt: skip
            made["sink"] = {"class_type": "LatentSink", "inputs": {"value": ["sampler", 0]}}
        return made

    def ours(node_id, **inputs):
        return {"class_type": node_id, "inputs": {**node(comfy, node_id).defaults(), **inputs}}

    return build


AREA = ("ConditioningSetArea", dict(width=64, height=64, x=0, y=0, strength=1.0))
STRONG = dict(direction="remove", alpha=1.2)
#: name: (the graph, what the user must read)
PROMPTS = {
    "another family": (dict(family="svd", update={}), f"EBCA does not apply to SVD_img2vid: .*{FAMILIES}"),
    "another family at Compose": (
        dict(family="hunyuan_video", edit={}), f"EBCA does not apply to HunyuanVideo: it averages.*{FAMILIES}"
    ),
    "window": (
        dict(update=dict(start_percent=0.9, end_percent=0.1)), "start_percent is 0.9 and end_percent is 0.1: the start",
    ),
    "gamma": (dict(update=dict(gamma_attn=math.nan)), "gamma_attn is nan. Set it to a number from 0.0 to 1.0"),
    "blocks": (dict(update=dict(blocks="d7")), "no attention block d7. It has d0, d1, m0, u0, u1"),
    "mask": (dict(update=dict(mask=["mask", 0])), "mask has values from 255 to 255 instead of 0 to 1"),
    "area": (dict(setting=AREA, edit={}), "has an area: use the mask input"),
    "width": (dict(prompt="narrow", edit={}), "width 48.*width 64"),
    "composition": (dict(edit=STRONG), r"can reach -0.2 \(signed alphas: -1.2\)"),
    "token weights": (
        dict(update=dict(token_weights=["weights", 0]), sampled=True),
        "for a prompt of 154 tokens, but the positive prompt has 77",
    ),
    "malformed blocks": (dict(update=dict(blocks="d1, up")), "'up' in blocks is not a block"),
    "blocks of edits": (dict(edit={}, compose=dict(blocks="d7")), "no attention block d7. It has d0, d1, m0, u0"),
    "malformed blocks of edits": (dict(edit={}, compose=dict(blocks="d1, up")), "'up' in blocks is not a block"),
    "limit that cuts": (dict(edit={}, compose=dict(norm_limit=0.5)), "norm_limit is 0.5, but must be 0"),
    "pooled text": (dict(edit={}, compose=dict(mix_pooled=True)), "EBCA mixes no pooled text in"),
    "gamma out of range": (dict(update=dict(gamma_norm=1.5)), "gamma_norm is 1.5. Set it to a number from 0.0 to 1.0"),
    "alpha out of range": (dict(edit=dict(alpha=-0.5)), "alpha is -0.5. Set it to a number from 0.0 to 10.0"),
    # These ComfyUI refuses itself, from the nodes' schema.
    "no edit": (dict(edit={}, compose=None), "Required input is missing.*edit0"),
    "direction": (dict(edit=dict(direction="subtract")), "direction.*not in"),
    "apply_to": (dict(update=dict(apply_to="negative")), "apply_to.*not in"),
}  # fmt: skip


@pytest.mark.parametrize("name", PROMPTS)
def test_user_reads_the_reason(graph, run_prompt, name):
    wiring, message = PROMPTS[name]
    with pytest.raises(PromptError, match=f"(?s){message}"):
        run_prompt(graph(**wiring))


@pytest.mark.parametrize("compose", [(), dict(blocks="d0-d1", norm_limit=2.0, mix_pooled=False, shared_attention=True)])
def test_same_graph_without_the_mistake_runs(graph, run_prompt, compose):
    assert run_prompt(graph(update={}, edit={}, compose=compose, sampled=True)) is not None
