"""Whole runs of transformers with an update and edits equal explicit loops over texts."""

from __future__ import annotations

import pytest
import torch

from support import toy_dit
from support.sampling import relative_error
from support.transformer_runs import Ebca, ebca, edits, run, update

TOLERANCE = 1e-5

each_family = pytest.mark.parametrize("family", toy_dit.FAMILIES)

CASES = {
    "update": lambda family: Ebca([update(family)]),
    "edits": lambda family: Ebca(edits=edits(family)),
    "both": ebca,
}


@each_family
@pytest.mark.parametrize("name", CASES)
def test_run_equals_the_loop_over_texts(comfy, pack, family, name):
    model, case = toy_dit.model(family), CASES[name](family)
    plain = run(model, family)
    with case.at_work(family, model):
        expected = run(model, family)
    assert relative_error(run(case.on(comfy, pack, model), family), expected) < TOLERANCE
    assert relative_error(expected, plain) > 100 * TOLERANCE
