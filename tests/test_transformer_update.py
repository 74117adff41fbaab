"""The context update of transformers is m_t times minus the gradient, by autograd through the model's own keys."""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch

from ebca_core import attention_energy, norm_energy
from support import oracle, toy_dit, transformer_oracle
from support.log_messages import messages
from support.sampling import relative_error
from support.transformer_runs import Ebca, run, watched

each_family = pytest.mark.parametrize("family", toy_dit.FAMILIES)
normalised = pytest.mark.parametrize("family", toy_dit.KEY_NORMS)


def cast(value, dtype):
    if isinstance(value, (tuple, list)):
        return type(value)(cast(one, dtype) for one in value)
    return value.to(dtype) if torch.is_tensor(value) and value.is_floating_point() else value


def with_layers_in_float64(family):
    """A MODEL whose cross-attention modules compute in float64; ComfyUI's rotary embedding of the others cannot."""
    model = toy_dit.model(family)
    for module in transformer_oracle.modules(family, model.model.diffusion_model).values():
        module.double()
        module.register_forward_pre_hook(
            lambda module, args, kwargs: (
                cast(args, torch.float64),
                {**kwargs, **{k: cast(kwargs[k], torch.float64) for k in ("context", "mask") if k in kwargs}},
            ),
            with_kwargs=True,
        )
        module.register_forward_hook(lambda module, args, out: cast(out, torch.float32))
    return model


def padded(conditioning, family):
    """With a row of zeros, a tail of equal rows and, where the layers read a mask, a masked token."""
    ((text, options),) = conditioning
    text = text.clone()
    text[:, 1] = 0.0
    text[:, -2:] = text[:, -1:]
    if family == "ltxv":
        options["attention_mask"][:, 4] = 0
    return [[text, options]]


def steps_of(model, family, case, comfy, pack):
    """(a layer's call, what the next layer reads less what this one reads) for each layer of a one-step run."""
    positive, negative = (padded(toy_dit.conditioning(family, seed), family) for seed in (1, 2))
    with watched(model, family) as seen:
        run(case.on(comfy, pack, model), family, positive, negative, steps=1)
    return [(call, following.text - call.text) for call, following in pairwise(seen)]


def gradient(call, family, row, gamma_attn, gamma_norm):
    """m_t times minus the gradient of ebca_core's energies for one row, [t, c]."""
    by_hand, module = transformer_oracle.FAMILIES[family], copy.deepcopy(call.module)  # ComfyUI's has no gradient
    with torch.enable_grad():
        text, q = call.text[row].clone().requires_grad_(), call.queries(family, row).detach().clone()
        k, heads = by_hand.keys(module, text), by_hand.heads(module)
        energy = gamma_attn * attention_energy(k[None], q[None], heads).sum()
        if by_hand.key_norm(module) is None:
            energy = energy + gamma_norm * norm_energy(k[None]).sum()
        (found,) = torch.autograd.grad(energy, text)
    if by_hand.key_norm(module) is None:
        return -found
    return -by_hand.raw_keys(module, text.detach()).square().mean(dim=-1, keepdim=True) * found


#: Rows of `padded` that are still padding where the layers read them: embedders turn zeros into something else, and
#: Kandinsky's text blocks tell all rows apart.
PADDING = {"predict2": 3, "ltxv": 3, "kandinsky5": 0, "hydit": 1}


@pytest.mark.interface
@each_family
def test_step_of_every_layer_is_the_scaled_gradient_and_padding_takes_none(comfy, pack, family):
    gammas = (0.05, 0.02)
    model = with_layers_in_float64(family)
    found = steps_of(model, family, Ebca([oracle.Update(*gammas)]), comfy, pack)
    assert len(found) == len(transformer_oracle.modules(family, model.model.diffusion_model)) - 1
    for call, moved in found:
        assert call.text.dtype == torch.float64
        for row in range(2):
            padding = torch.tensor(transformer_oracle.padding_rows(call.text[row], call.visible(row)))
            assert padding.sum() == PADDING.get(family, 2)
            assert torch.count_nonzero(moved[row][padding]) == 0
            expected = gradient(call, family, row, *gammas)
            assert relative_error(moved[row][~padding], expected[~padding]) < 1e-9


@normalised
def test_norm_term_is_left_out_where_keys_are_normalised(comfy, pack, caplog, family):
    caplog.set_level("INFO", logger="ebca")
    model = toy_dit.model(family)
    with_norm_term = Ebca([oracle.Update(0.0, 0.5)]).on(comfy, pack, model)
    assert torch.equal(run(with_norm_term, family), run(model, family))
    assert [message for message in messages(caplog) if "gamma_norm has no effect" in message] == messages(caplog)
    assert len(messages(caplog)) == 1


def relative_step(comfy, pack, family, scale):
    """||step|| / ||text|| of the first layer, whose text is scaled and whose keys have no bias."""
    model = toy_dit.model(family)
    for module in transformer_oracle.modules(family, model.model.diffusion_model).values():
        transformer_oracle.FAMILIES[family].key_norm(module).eps = 1e-12  # else it is felt where keys are small
        for name in ("k", "k_proj", "to_k", "to_key", "kv_proj"):
            if getattr(getattr(module, name, None), "bias", None) is not None:
                getattr(module, name).bias.data.zero_()
        module.register_forward_pre_hook(
            lambda module, args, kwargs: (
                (*args[:1], *(scale * text for text in args[1:2]), *args[2:]),
                {**kwargs, "context": scale * kwargs["context"]} if "context" in kwargs else kwargs,
            ),
            with_kwargs=True,
        )
    (call, moved), *_ = steps_of(model, family, Ebca([oracle.Update(0.05, 0.0)]), comfy, pack)
    return float(moved.norm() / call.text.norm())


@normalised
def test_relative_step_does_not_depend_on_the_scale_of_the_text(comfy, pack, family):
    small, one, large = (relative_step(comfy, pack, family, scale) for scale in (0.1, 1.0, 10.0))
    assert one > 1e-3
    assert small == pytest.approx(one, rel=1e-4)
    assert large == pytest.approx(one, rel=1e-4)


def test_long_padding_of_wan_takes_no_step(comfy, pack):
    """Its encoder gives 512 tokens, zeros behind the words, which the embedder makes one constant row."""
    text, options = toy_dit.conditioning("wan", 1, tokens=512)[0]
    text[:, 20:] = 0.0
    model = toy_dit.model("wan")
    with watched(model, "wan") as seen:
        run(Ebca([oracle.Update(0.05, 0.0)]).on(comfy, pack, model), "wan", [[text, options]], steps=1, cfg=1.0)
    first, last = seen[0].text, seen[-1].text
    assert torch.equal(first[:, 20:], last[:, 20:])
    assert bool((first[:, :20] != last[:, :20]).any(dim=-1).all())


def test_learned_padding_of_hunyuandit_takes_no_step(comfy, pack):
    """The network puts learned rows in the place of masked tokens, and reads them."""
    ((text, options),) = toy_dit.conditioning("hydit", 1)
    options["attention_mask"][:, 3:] = 0
    options["attention_mask_mt5xl"][:, 2:] = 0
    model = toy_dit.model("hydit")
    with watched(model, "hydit") as seen:
        run(Ebca([oracle.Update(0.05, 0.0)]).on(comfy, pack, model), "hydit", [[text, options]], steps=1)
    moved = [bool(row.any()) for row in (seen[-1].text - seen[0].text)[1]]
    assert moved == [True] * 3 + [False] * 2 + [True] * 2 + [False] * 5
