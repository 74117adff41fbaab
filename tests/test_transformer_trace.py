"""EBCA Trace on transformers records what the layers had, and changes nothing."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from support import oracle, toy, toy_dit, transformer_oracle
from support.host import node
from support.log_messages import messages
from support.sampling import relative_error
from support.transformer_runs import Ebca, ebca, run, update, watched

each_family = pytest.mark.parametrize("family", toy_dit.FAMILIES)


def traced(comfy, model):
    return node(comfy, "EBCATrace").execute(model=model, attention_maps=True)


def watched_run(comfy, model, family, **options):
    """The record of a run of one step, and what each layer really had."""
    model, trace = traced(comfy, model)
    with watched(model, family) as seen:
        run(model, family, **{"steps": 1, **options})
    return trace.record, seen


def energies(call, family, row, words=slice(None)):
    """E(K|Q), summed over the tokens, and E(K)."""
    by_hand = transformer_oracle.FAMILIES[family]
    with torch.inference_mode():
        k, q = by_hand.keys(call.module, call.text[row, words]).double(), call.queries(family, row).double()
        attention = transformer_oracle.energy(k, q, by_hand.heads(call.module)).sum()
        return float(attention), float(0.5 * torch.logsumexp(k.square().sum(dim=-1), dim=0))


@each_family
def test_energies_and_update_sizes_are_those_of_the_layers(comfy, pack, family):
    model = Ebca([update(family)]).on(comfy, pack, toy_dit.model(family))
    record, seen = watched_run(comfy, model, family)
    assert record.roles == ("positive", "negative")
    assert list(record.layers) == [f"{transformer_oracle.block_of(call.path)}.0" for call in seen]  # VACE's in turns
    for row, role in ((1, 0), (0, 1)):  # ComfyUI puts the negative prompt first
        for call, following in pairwise([*seen, None]):
            layer = record.layers.index(f"{transformer_oracle.block_of(call.path)}.0")
            attention, norm, total, size = record.values[:, 0, layer, role].double()
            expected = energies(call, family, row)
            assert attention == pytest.approx(expected[0], rel=1e-5)
            assert norm == pytest.approx(expected[1], rel=1e-5)
            assert total == pytest.approx(sum(expected), rel=1e-5)
            if following is None:
                assert size.isnan()  # nothing would read the last layer's update
            else:
                moved = (following.text - call.text)[row].norm() / seen[0].text[row].norm()
                assert size == pytest.approx(float(moved), rel=1e-3)


@each_family
def test_energies_of_an_edit_are_those_of_its_text(comfy, pack, family):
    text = toy_dit.conditioning(family, 21, toy_dit.TOKENS)
    model = toy_dit.model(family)
    record, _ = watched_run(
        comfy, Ebca(edits=[oracle.Edit(text, 0.5)]).on(comfy, pack, model), family, positive=text
    )
    assert record.roles == ("positive", "negative", "edit0")
    prompt, edit = record.values[:2, ..., 0], record.values[:2, ..., 2]  # of one text: the prompt's
    assert relative_error(edit, prompt) < 1e-5


@pytest.mark.parametrize("family", ["wan", "predict2", "ltxv"])
def test_padding_has_no_energy(comfy, family):
    """Rows of zeros, which Wan's text embedding makes rows of one value, and masked tokens."""
    words, prompts = (7, 4), []
    for seed, count in enumerate(words):
        ((text, options),) = toy_dit.conditioning(family, seed)
        if family == "ltxv":
            options["attention_mask"][:, count:] = 0
        else:
            text[:, count:] = 0
        prompts.append([[text, options]])
    edit = toy_dit.conditioning(family, 5)
    if family != "ltxv":
        edit[0][0][:, 3:] = 0
    model = node(comfy, "EBCACompose").execute(model=toy_dit.model(family), edits={"edit0": edit_of(comfy, edit)})[0]
    record, seen = watched_run(comfy, model, family, positive=prompts[0], negative=prompts[1])
    for index, call in enumerate(seen):
        for row, role, count in ((1, 0, words[0]), (0, 1, words[1])):
            expected = energies(call, family, row, slice(0, count))
            assert record.values[:2, 0, index, role].tolist() == pytest.approx(expected, rel=1e-5)
    if family != "ltxv":
        alone = [[edit[0][0][:, :3], edit[0][1]]]
        model = node(comfy, "EBCACompose").execute(
            model=toy_dit.model(family), edits={"edit0": edit_of(comfy, alone)}
        )[0]
        expected, _ = watched_run(comfy, model, family, positive=prompts[0], negative=prompts[1])
        assert relative_error(record.values[:2, 0, 0, 2], expected.values[:2, 0, 0, 2]) < 1e-5


def edit_of(comfy, conditioning):
    inputs = dict(direction="add", alpha=0.5, start_percent=0.0, end_percent=1.0, gamma_attn=0.0, gamma_norm=0.0)
    return node(comfy, "EBCAEditContext").execute(
        conditioning=conditioning, gamma_start_percent=0.0, gamma_end_percent=1.0, **inputs
    )[0]


def test_prompt_of_zeros_has_the_energy_zero(comfy):
    """As ConditioningZeroOut makes it."""
    ((text, options),) = toy_dit.conditioning("wan", 1)
    record, _ = watched_run(comfy, toy_dit.model("wan"), "wan", negative=[[torch.zeros_like(text), options]])
    assert torch.equal(record.values[:2, 0, :, 1], torch.zeros(2, 3))


def mean_maps(seen, family, grid, before=0):
    """[t, rows, columns]: softmax over the tokens of beta q.k, the mean over heads, layers and frames."""
    by_hand, found = transformer_oracle.FAMILIES[family], []
    for call in seen:
        heads = by_hand.heads(call.module)
        with torch.inference_mode():
            k, q = by_hand.keys(call.module, call.text[1]).double(), call.queries(family, 1).double()[before:]
        for kh, qh in zip(k.chunk(heads, dim=-1), q.chunk(heads, dim=-1), strict=True):
            scores = kh @ qh.T / kh.shape[-1] ** 0.5
            if call.visible(1) is not None:
                scores[~call.visible(1)] = -torch.inf
            found.append(scores.softmax(dim=0).unflatten(1, (-1, *grid)).mean(dim=1))
    return torch.stack(found).mean(dim=0)


@each_family
def test_attention_maps_are_those_of_the_layers(comfy, pack, family):
    grid = [side // (1 if family == "ltxv" else 2) for side in toy_dit.shape(family)[-2:]]
    positive = toy_dit.conditioning(family, 1)
    if family == "ltxv":
        positive[0][1]["attention_mask"][:, -4:] = 0
    record, seen = watched_run(comfy, toy_dit.model(family), family, positive=positive)
    ((maps,),) = [one.by_grid for one in record.maps]
    assert relative_error(maps[0], mean_maps(seen, family, grid)) < 1e-5


def test_attention_maps_of_a_video_are_the_mean_of_its_frames(comfy, pack):
    reference = toy.noise(1, 16, 1, 8, 8, seed=41)
    prompts = [toy_dit.conditioning("wan", seed, reference_latents=[reference]) for seed in (1, 2)]
    model = toy_dit.model("wan", in_dim_ref_conv=16)
    record, seen = watched_run(comfy, model, "wan", positive=prompts[0], negative=prompts[1], frames=3)
    ((maps,),) = [one.by_grid for one in record.maps]
    assert relative_error(maps[0], mean_maps(seen, "wan", (4, 4), before=16)) < 1e-5


@each_family
def test_traced_picture_is_bit_identical_and_can_be_plotted(comfy, pack, caplog, family):
    model = ebca(family).on(comfy, pack, toy_dit.model(family))
    with_trace, trace = traced(comfy, model)
    latent = run(with_trace, family)
    assert torch.equal(latent, run(model, family))
    image = node(comfy, "EBCAEnergyPlot").execute(trace=trace, latent={"samples": latent})[0]
    assert image.ndim == 4
    assert image.std() > 0
    assert not messages(caplog)
