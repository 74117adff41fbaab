"""No test leaves global state changed: the fixture `nothing_left_behind` of conftest.py finds out after each."""
from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

import comfy.cli_args
import pytest
import torch

from support.global_state import changes, snapshot

#: {what is named: (what changes it, what puts it back)}
CHANGES = {
    "torch.get_num_threads() was 1, is 2": (lambda: torch.set_num_threads(2), lambda: torch.set_num_threads(1)),
    "torch.get_default_dtype() was torch.float32, is torch.float64": (
        lambda: torch.set_default_dtype(torch.float64), lambda: torch.set_default_dtype(torch.float32),
    ),
    "torch.is_grad_enabled() was True, is False": (
        lambda: torch.set_grad_enabled(False), lambda: torch.set_grad_enabled(True),
    ),
    "torch.are_deterministic_algorithms_enabled() was False, is True": (
        lambda: torch.use_deterministic_algorithms(True), lambda: torch.use_deterministic_algorithms(False),
    ),
    "the environment variables EBCA_TEST was absent, is 1": (
        lambda: os.environ.update(EBCA_TEST="1"), lambda: os.environ.pop("EBCA_TEST"),
    ),
    "sys.path was": (lambda: sys.path.append("more"), lambda: sys.path.remove("more")),
    "the level of the logger ebca was": (
        lambda: logging.getLogger("ebca").setLevel(7), lambda: logging.getLogger("ebca").setLevel(logging.NOTSET),
    ),
    "logging.disable() was 0, is 50": (logging.disable, lambda: logging.disable(logging.NOTSET)),
    "comfy.cli_args.args ebca_test was absent, is 1": (
        lambda: setattr(comfy.cli_args.args, "ebca_test", 1), lambda: delattr(comfy.cli_args.args, "ebca_test"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("named", CHANGES)
def test_a_change_is_named(named):
    change, undo = CHANGES[named]
    before = snapshot()
    change()
    try:
        (found,) = changes(before, snapshot())
    finally:
        undo()
    assert found.startswith(named)
    assert changes(before, snapshot()) == []


def test_another_working_directory_is_named(monkeypatch, tmp_path):
    before, there = snapshot(), Path.cwd()
    monkeypatch.chdir(tmp_path)
    assert changes(before, snapshot()) == [f"the working directory was {there}, is {tmp_path}"]


def test_another_stance_of_the_compiler_is_named():
    import torch._dynamo

    before = snapshot()
    with torch.compiler.set_stance("force_eager"):
        assert changes(before, snapshot()) == ["the stance of torch.compiler was default, is force_eager"]
    assert changes(before, snapshot()) == []
