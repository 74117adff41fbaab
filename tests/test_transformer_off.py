"""On transformers too, EBCA that is off is no EBCA, bit for bit, and a run leaves nothing behind."""

from __future__ import annotations

import pytest
import torch

from support import oracle, toy_dit, transformer_oracle
from support.probes import described, hooks_of
from support.transformer_runs import Ebca, ebca, edits, run, update

each_family = pytest.mark.parametrize("family", toy_dit.FAMILIES)
NEVER = (0.1, 0.11)  # between two steps


def off(family):
    return {
        "update": Ebca([oracle.Update(0.0, 0.0)]),
        "edits": Ebca(edits=[oracle.Edit(edit.text, 0.0) for edit in edits(family)]),
    }


def never(family):
    late = [
        oracle.Edit(e.text, e.weight, e.gamma_attn, e.gamma_norm, window=NEVER, gamma_window=NEVER)
        for e in edits(family)
    ]
    return {"update": Ebca([update(family, window=NEVER)]), "edits": Ebca(edits=late)}


@each_family
@pytest.mark.parametrize("kind", ["update", "edits"])
def test_zero_strengths_install_nothing(comfy, pack, family, kind):
    model = toy_dit.model(family)
    patched = off(family)[kind].on(comfy, pack, model)
    assert described(patched) == described(model)
    assert torch.equal(run(patched, family), run(model, family))


@each_family
@pytest.mark.parametrize("kind", ["update", "edits"])
def test_windows_that_are_never_reached_are_bit_identical(comfy, pack, family, kind):
    model = toy_dit.model(family)
    assert torch.equal(run(never(family)[kind].on(comfy, pack, model), family), run(model, family))


@each_family
def test_model_is_plain_again_after_a_run(comfy, pack, family):
    model = toy_dit.model(family)
    plain, before = run(model, family), hooks_of(model)
    patched = ebca(family).on(comfy, pack, model)
    first = run(patched, family)
    assert not torch.equal(first, plain)
    assert hooks_of(model) == before
    assert torch.equal(run(model, family), plain)
    assert torch.equal(run(patched, family), first)


@each_family
def test_model_is_plain_again_after_a_run_that_fails(comfy, pack, family):
    model = toy_dit.model(family)
    plain, before = run(model, family), hooks_of(model)
    patched = ebca(family).on(comfy, pack, model)

    *_, last = transformer_oracle.modules(family, model.model.diffusion_model).values()

    def fail(*_):
        raise MemoryError

    failing = last.register_forward_hook(fail)
    with pytest.raises(MemoryError):
        run(patched, family)
    failing.remove()
    assert hooks_of(model) == before
    assert torch.equal(run(model, family), plain)
