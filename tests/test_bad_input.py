"""Whatever the nodes are given, ComfyUI's executor ends with a result or with words that tell the user what to do.

The nightly tier tries more than tier 1, and `python run.py test tests/test_bad_input.py --cases 10000` more still.
"""

import copy
import gc
import json
import logging
import math
import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import folder_paths
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from support.host import PromptError
from support.random_prompts import RandomPrompts, supplies

REPO = Path(__file__).resolve().parents[1]

RESULT, REFUSED, TOLD, CORE, BROKEN = (
    "results", "refused by ComfyUI", "told by the pack", "failing without the pack too", "broken",
)  # fmt: skip
LEAST_RESULTS = 0.3

FILES = {
    "1": {"class_type": "TestSupply MODEL", "inputs": {"name": "sd1"}},
    "2": {"class_type": "TestSupply CONDITIONING", "inputs": {"name": "plain"}},
    "3": {"class_type": "TestSupply LATENT", "inputs": {"name": "a picture"}},
    "4": {"class_type": "EBCAInvert", "inputs": {
        "model": ["1", 0], "caption": ["2", 0], "latent": ["3", 0], "steps": 2, "scheduler": "normal",
        "lambda_auto_corr": 20.0, "lambda_kl": 20.0, "reg_steps": 1, "rolls": 1, "seed": 0,
    }},
    "5": {"class_type": "EBCASaveInversion", "inputs": {"latent": ["4", 0], "filename_prefix": "kept"}},
    "6": {"class_type": "EBCATrace", "inputs": {"model": ["1", 0], "attention_maps": True}},
    "7": {"class_type": "KSampler", "inputs": {
        "model": ["6", 0], "positive": ["2", 0], "negative": ["2", 0], "latent_image": ["3", 0], "seed": 0, "steps": 2,
        "cfg": 4.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0,
    }},
    "8": {"class_type": "EBCASaveTrace", "inputs": {"trace": ["6", 1], "latent": ["7", 0], "filename_prefix": "kept"}},
}  # fmt: skip


@pytest.fixture
def quiet():
    """Without the traceback of every failure in the log."""
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture
def freezing():
    """What the test has kept garbage collection from looking at does not outlive it."""
    yield
    gc.unfreeze()
    gc.collect()
    gc.freeze()  # as it was after host.load_nodes


@pytest.fixture
def prompts(freezing, comfy, pack, run_prompt, monkeypatch):
    """Random prompts for all nodes of the pack; there are files to load, and some that are none."""
    for name, cls in supplies().items():
        monkeypatch.setitem(comfy.NODE_CLASS_MAPPINGS, name, cls)
    run_prompt(FILES)
    gc.freeze()  # as in host.load_nodes, now with all the things
    prompts = RandomPrompts(comfy.NODE_CLASS_MAPPINGS, node_ids(pack))
    for name in ("broken.latent", "broken.safetensors"):
        (Path(folder_paths.get_input_directory()) / name).write_bytes(b"nothing of the kind")
    return prompts


def node_ids(pack) -> list[str]:
    return [cls.GET_SCHEMA().node_id for cls in pack.nodes.NODES]


class Failure(NamedTuple):
    """How a prompt failed: where, ComfyUI's words, and the traceback, the innermost frame last."""

    node: str
    kind: str
    message: str
    frames: list[str]


def failure_of(run_prompt, prompt: dict) -> Failure | None:
    """How a prompt fails; of several faults that ComfyUI finds before it runs, one that comes from the pack if any."""
    try:
        run_prompt(copy.deepcopy(prompt))  # which ComfyUI changes
    except PromptError as error:
        if isinstance(error.details, list):
            ((_, data),) = error.details
            return Failure(data["node_type"], data["exception_type"], data["exception_message"], data["traceback"])
        problem, nodes = error.details
        found = [
            Failure(node["class_type"], reason["type"], reason["details"], reason["extra_info"].get("traceback", []))
            for node in nodes.values()
            for reason in node["errors"]
        ]
        return next(filter(concerns_the_pack, found), Failure("", problem["type"], problem["details"], []))
    return None


def is_in(folder: Path, frame: str) -> bool:
    return f'File "{folder}' in frame


def concerns_the_pack(failure: Failure) -> bool:
    return any(is_in(REPO, frame) and not is_in(REPO / ".host", frame) for frame in failure.frames)


def is_meant(failure: Failure, folder: Path) -> bool:
    """Whether code in a folder raised it with words of its own."""
    return is_in(folder, failure.frames[-1]) and re.search(r"\n\s+raise\b", failure.frames[-1]) is not None


def outcome(prompts: RandomPrompts, run_prompt, comfyui: Path, prompt: dict, broken: dict[tuple, str]) -> str:
    """How a prompt ends; where that is neither a result nor words for the user, `broken` notes it, once for a place."""
    failure = failure_of(run_prompt, prompt)
    if failure is None:
        return RESULT
    if not failure.frames or is_meant(failure, comfyui):
        return REFUSED
    if is_meant(failure, REPO) and failure.kind == "ValueError":
        return TOLD
    if not failure.node.startswith("EBCA"):
        if not concerns_the_pack(failure):
            return CORE
        plain = failure_of(run_prompt, prompts.without_pack(prompt))
        if plain is not None and (plain.node, plain.kind) == (failure.node, failure.kind):
            return CORE
    text = f"{failure.node} ended in {failure.kind}: {failure.message}\n{''.join(failure.frames[-6:])}"
    broken.setdefault((failure.node, failure.kind, failure.frames[-1]), f"{text}\n{json.dumps(prompt)}")
    return BROKEN


@pytest.mark.slow
def test_every_end_is_a_result_or_words(request, quiet, prompts, pack, run_prompt, comfyui_root, capsys):
    ends: dict[str, Counter] = {node_id: Counter() for node_id in node_ids(pack)}
    broken: dict[tuple, str] = {}

    def run_cases(node_id, count):
        @settings(
            max_examples=count, deadline=None, derandomize=True, database=None, phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(st.data())
        def run(data):
            prompt = prompts.draw(data.draw, node_id)
            ends[node_id][outcome(prompts, run_prompt, comfyui_root, prompt, broken)] += 1

        run()

    for node_id in ends:
        count = max(1, math.ceil(request.config.getoption("--cases") / len(ends)))
        run_cases(node_id, count)
        if not ends[node_id][RESULT]:  # inputs that fit together are rare for nodes with many
            run_cases(node_id, 4 * count)
        gc.freeze()  # what is remembered of the cases grows, and ComfyUI would look at all of it after each
    total = sum(ends.values(), Counter())
    with capsys.disabled():
        print("\n" + "\n".join(f"{name}: {dict(counts)}" for name, counts in {**ends, "all": total}.items()))
    assert not broken, "\n\n".join(broken.values())
    assert total[RESULT] >= LEAST_RESULTS * total.total()
    assert [name for name, counts in ends.items() if not counts[RESULT]] == []
