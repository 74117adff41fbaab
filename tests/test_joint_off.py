"""In joint attention too, edits that are off are no edits, bit for bit, and a run leaves nothing behind."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from support import toy_joint
from support.joint_runs import composed, edits, run
from support.probes import described, hooks_of

each_family = pytest.mark.parametrize("family", toy_joint.FAMILIES)
each_kind = pytest.mark.parametrize("family", toy_joint.KINDS)


@each_kind
def test_zero_weights_install_nothing(comfy, pack, family):
    model = toy_joint.model(family)
    patched = composed(comfy, pack, model, [replace(edit, weight=0.0) for edit in edits(family)])
    assert described(patched) == described(model)
    assert torch.equal(run(patched, family), run(model, family))


@each_kind
def test_windows_that_are_never_reached_are_bit_identical(comfy, pack, family):
    model = toy_joint.model(family)
    late = [replace(edit, window=(0.1, 0.11)) for edit in edits(family)]
    assert torch.equal(run(composed(comfy, pack, model, late), family), run(model, family))


@each_family
def test_weights_that_round_away_are_bit_identical(comfy, pack, family):
    """The texts are there, and the prompt does not notice."""
    model = toy_joint.model(family)
    tiny = [replace(edit, weight=1e-30) for edit in edits(family)]
    assert torch.equal(run(composed(comfy, pack, model, tiny), family), run(model, family))


@each_kind
def test_model_is_plain_again_after_a_run(comfy, pack, family):
    model = toy_joint.model(family)
    plain, before = run(model, family), hooks_of(model)
    patched = composed(comfy, pack, model, edits(family))
    first = run(patched, family)
    assert not torch.equal(first, plain)
    assert hooks_of(model) == before
    assert torch.equal(run(model, family), plain)
    assert torch.equal(run(patched, family), first)


@each_kind
def test_model_is_plain_again_after_a_run_that_fails(comfy, pack, family):
    model = toy_joint.model(family)
    plain, before = run(model, family), hooks_of(model)
    patched = composed(comfy, pack, model, edits(family))

    def fail(*_):
        raise MemoryError

    *_, last = toy_joint.blocks(family, model)
    failing = last.register_forward_hook(fail)
    with pytest.raises(MemoryError):
        run(patched, family)
    failing.remove()
    assert hooks_of(model) == before
    assert torch.equal(run(model, family), plain)
