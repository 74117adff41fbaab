"""No state outlives a sampling run."""

from __future__ import annotations

import gc

import pytest
import torch
from comfy.model_management import InterruptProcessingException

from support import toy
from support.host import node
from support.sampling import sample


def edited(comfy):
    """A toy MODEL with a context update and an edit whose context is carried through the run."""
    model = node(comfy, "EBCAContextUpdate").execute(model=toy.model(), gamma_attn=0.02, gamma_norm=0.01)[0]
    edit = node(comfy, "EBCAEditContext").execute(
        conditioning=toy.conditioning(7), alpha=0.6, start_percent=0.0, gamma_attn=0.004, gamma_norm=0.003,
        gamma_start_percent=0.0,
    )  # fmt: skip
    return node(comfy, "EBCACompose").execute(model=model, edits={"edit0": edit[0]})[0]


def interrupted(step, *_):
    if step == 1:
        raise InterruptProcessingException()


def failing(executor, *args, **kwargs):
    executor(*args, **kwargs)
    raise RuntimeError("out of memory")


def live_runs(pack):
    gc.collect()
    return [thing for thing in gc.get_objects() if isinstance(thing, pack.comfyui_binding.run.Run)]


def test_interrupted_run_leaves_nothing_behind(comfy, pack):
    model, fresh = edited(comfy), sample(edited(comfy), toy.conditioning(1))
    with pytest.raises(InterruptProcessingException):
        sample(model, toy.conditioning(1), callback=interrupted)
    assert live_runs(pack) == []
    assert torch.equal(sample(model, toy.conditioning(1)), fresh)


def test_failed_call_leaves_nothing_behind(comfy, pack):
    model, fresh = edited(comfy), sample(edited(comfy), toy.conditioning(1))
    broken = model.clone()
    broken.add_wrapper_with_key("diffusion_model", "broken", failing)
    with pytest.raises(RuntimeError, match="out of memory"):
        sample(broken, toy.conditioning(1))
    assert live_runs(pack) == []
    assert torch.equal(sample(model, toy.conditioning(1)), fresh)


def test_second_run_begins_as_the_first_did(comfy):
    model = edited(comfy)
    first = sample(model, toy.conditioning(1))
    sample(model, toy.conditioning(2), seed=5)
    assert torch.equal(sample(model, toy.conditioning(1)), first)
