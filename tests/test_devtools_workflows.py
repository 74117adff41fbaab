"""Workflow files become the prompts that the front end would send."""

import json
from pathlib import Path

import pytest

from devtools.workflows import WorkflowProblem, node_ids, substitute, to_api

# A graph that was built, saved and turned into a prompt by the front end itself. In it: notes, a reroute, a subgraph
# with promoted widgets, sockets that grow, a bypassed and a muted node, a seed with its second value.
FRONT_END = json.loads((Path(__file__).parent / "data" / "front_end.json").read_text())


def without_titles(prompt: dict) -> dict:
    return {i: {"class_type": n["class_type"], "inputs": n["inputs"]} for i, n in prompt.items()}


@pytest.mark.server
def test_conversion_equals_the_front_end(object_info):
    assert without_titles(to_api(FRONT_END["workflow"], object_info)) == without_titles(FRONT_END["api"])


@pytest.mark.server
def test_converted_workflow_runs(server, object_info):
    prompt = substitute(to_api(FRONT_END["workflow"], object_info), {("KSampler", "steps"): 1})
    pictures = server.images(server.run(prompt))
    assert len(pictures) == 3
    assert all(picture.startswith(b"\x89PNG") for picture in pictures)


def test_unknown_node_type_is_named():
    with pytest.raises(WorkflowProblem, match="no node of type BatchLatentsNode, CLIPTextEncode"):
        to_api(FRONT_END["workflow"], {"KSampler": {}})


def test_substitution_takes_values_tables_and_functions():
    prompt = substitute(FRONT_END["api"], {
        ("CheckpointLoaderSimple", "ckpt_name"): "shapes.safetensors",
        ("CLIPTextEncode", "text"): {"": "nothing", "a red circle and a (blue:1.2) square": "a red circle"},
        ("KSampler", "steps"): lambda steps: steps + 1,
        ("KSampler", "model"): "links are left alone",
    })  # fmt: skip
    inputs = {node_id: node["inputs"] for node_id, node in prompt.items()}
    assert inputs["1"]["ckpt_name"] == "shapes.safetensors"
    assert [inputs[i]["text"] for i in node_ids(prompt, "CLIPTextEncode")] == ["a red circle", "nothing"]
    assert inputs["9"]["steps"] == FRONT_END["api"]["9"]["inputs"]["steps"] + 1
    assert inputs["9"]["model"] == ["1", 0]


def test_value_without_replacement_is_named():
    with pytest.raises(WorkflowProblem, match=r"No replacement for '' in node \d+:3 \(CLIPTextEncode\), input text"):
        substitute(FRONT_END["api"], {("CLIPTextEncode", "text"): {"a red circle and a (blue:1.2) square": "x"}})
