"""The blueprints in subgraphs/: parts of workflow files that the node library offers as one node."""

import copy
import io

import numpy as np
import pytest
from PIL import Image

from devtools import workflows
from devtools.server import PACK
from devtools.twins import SHAPES, WORKFLOWS, pictures, saved
from devtools.workflows import Prompt, Workflow, substitute, to_api

FILES = {path.stem: path for path in sorted((WORKFLOWS.parent / "subgraphs").glob("*.json"))}
# Of which picture of which workflow file a blueprint is a part: its nodes have the ids that they have there.
SOURCES = {
    "EBCA Multi-Concept": ("token_weights_sd15", "With EBCA and token weights"),
    "EBCA Real-Image Edit": ("real_image_with_mask_sd15", "With EBCA"),
}
OUTER, INPUTS, OUTPUTS = 100, -10, -20  # ids: of a blueprint's node, and within it of its inputs and its outputs
every_blueprint = pytest.mark.parametrize("name", FILES)


def load(name: str) -> tuple[dict, dict]:
    """A blueprint's node and its subgraph."""
    file = workflows.load(FILES[name])
    (node,), (subgraph,) = file["nodes"], file["definitions"]["subgraphs"]
    return node, subgraph


def promoted(node: dict) -> list[str]:
    """The names of the inputs that are widgets of the node."""
    return [socket["name"] for socket in node["inputs"] if "widget" in socket]


def reached(subgraph: dict, name: str) -> list[tuple[int, str]]:
    """The (node, input) within, to which an input of the subgraph leads."""
    nodes = {node["id"]: node for node in subgraph["nodes"]}
    (slot,) = (slot for slot, socket in enumerate(subgraph["inputs"]) if socket["name"] == name)
    ends = [link for link in subgraph["links"] if (link["origin_id"], link["origin_slot"]) == (INPUTS, slot)]
    return [(link["target_id"], nodes[link["target_id"]]["inputs"][link["target_slot"]]["name"]) for link in ends]


def wired(name: str, values: list | None = None) -> Workflow:
    """The blueprint's workflow file with the blueprint wired to whatever its nodes were wired to.

    values: other values of the promoted widgets.
    """
    workflow = workflows.load(WORKFLOWS / f"{SOURCES[name][0]}.json")
    node, subgraph = copy.deepcopy(load(name))
    if values is not None:
        node["widgets_values"] = values
    own = {inner["id"] for inner in subgraph["nodes"]}
    nodes = {outer["id"]: outer for outer in workflow["nodes"]} | {OUTER: node}
    sources = {(link[3], link[4]): link[1:3] for link in workflow["links"] if link[1] not in own and link[3] in own}
    into = {
        link["origin_slot"]: sources[link["target_id"], link["target_slot"]]
        for link in subgraph["links"]
        if link["origin_id"] == INPUTS and (link["target_id"], link["target_slot"]) in sources
    }
    for slot, (origin, output) in into.items():
        connect(workflow, nodes, origin, output, OUTER, slot)
    out_of = {
        (link["origin_id"], link["origin_slot"]): link["target_slot"]
        for link in subgraph["links"]
        if link["target_id"] == OUTPUTS
    }
    for _, origin, output, target, slot, _ in list(workflow["links"]):
        if (origin, output) in out_of and target not in own:
            connect(workflow, nodes, OUTER, out_of[origin, output], target, slot)
    return workflow | {"nodes": list(nodes.values()), "definitions": {"subgraphs": [subgraph]}}


def connect(workflow: Workflow, nodes: dict[int, dict], origin: int, output: int, target: int, slot: int) -> None:
    """Wire two nodes of a workflow, in place of what was wired to that input."""
    socket = nodes[target]["inputs"][slot]
    workflow["links"] = [link for link in workflow["links"] if link[0] != socket["link"]]
    number = socket["link"] = max(link[0] for link in workflow["links"]) + 1000
    workflow["links"].append([number, origin, output, target, slot, socket["type"]])
    nodes[origin]["outputs"][output].setdefault("links", []).append(number)


def towards(prompt: Prompt, title: str) -> Prompt:
    """The nodes behind a saved picture, with the ids that they have in the workflow file."""
    kept, waiting = {}, [pictures(prompt)[title]]
    while waiting:
        node_id = waiting.pop()
        inputs = dict(prompt[node_id]["inputs"])
        for name, value in inputs.items():
            if isinstance(value, list):
                waiting.append(value[0])
                inputs[name] = [inner(value[0]), value[1]]
        kept[inner(node_id)] = {"class_type": prompt[node_id]["class_type"], "inputs": inputs}
    return kept


def inner(node_id: str) -> str:
    return node_id.removeprefix(f"{OUTER}:")


def test_every_blueprint_is_part_of_a_workflow_file():
    assert set(FILES) == set(SOURCES)


@every_blueprint
def test_it_is_one_node_that_is_called_as_the_file(name):
    file, (node, subgraph) = workflows.load(FILES[name]), load(name)
    assert (file["version"], file["links"], node["id"], node["type"]) == (0.4, [], OUTER, subgraph["id"])
    assert node["title"] == subgraph["name"] == name
    assert len(subgraph["description"]) > 100
    for side in ("inputs", "outputs"):
        outer, within = ([(socket["name"], socket["type"]) for socket in part[side]] for part in (node, subgraph))
        assert outer == within
        assert len({socket for socket, _ in within}) == len(within)
    assert len(node["widgets_values"]) == len(promoted(node))


@every_blueprint
def test_its_links_are_whole(name):
    _, subgraph = load(name)
    nodes = {node["id"]: node for node in subgraph["nodes"]}
    links = {link["id"]: link for link in subgraph["links"]}
    assert len(links) == len(subgraph["links"])
    ends = set()
    for node in subgraph["nodes"]:
        ends |= {(socket["link"], "target") for socket in node["inputs"] if socket["link"] is not None}
        ends |= {(link, "origin") for socket in node["outputs"] for link in socket["links"] or []}
    ends |= {(link, "origin") for socket in subgraph["inputs"] for link in socket["linkIds"]}
    ends |= {(link, "target") for socket in subgraph["outputs"] for link in socket["linkIds"]}
    assert ends == {(link, end) for link in links for end in ("origin", "target")}
    for number, link in links.items():
        inside = link["origin_id"] != INPUTS
        origin = nodes[link["origin_id"]]["outputs"] if inside else subgraph["inputs"]
        target = nodes[link["target_id"]]["inputs"] if link["target_id"] != OUTPUTS else subgraph["outputs"]
        origin, target = origin[link["origin_slot"]], target[link["target_slot"]]
        assert origin["type"] == target["type"] == link["type"]
        assert number in origin["links" if inside else "linkIds"]
        assert number in (target.get("linkIds") or [target["link"]])


@pytest.mark.server
@every_blueprint
@pytest.mark.parametrize("values", [None, []], ids=["its values", "the values within"])
def test_it_is_the_same_prompt_as_the_nodes_of_the_workflow_file(object_info, name, values):
    file, title = SOURCES[name]
    plain = to_api(workflows.load(WORKFLOWS / f"{file}.json"), object_info)
    blueprint = to_api(wired(name, values), object_info)
    _, subgraph = load(name)
    assert {f"{OUTER}:{node['id']}" for node in subgraph["nodes"]} <= set(blueprint)
    assert towards(blueprint, title) == towards(plain, title)
    assert {str(node["id"]) for node in subgraph["nodes"]} <= set(towards(plain, title))


@pytest.mark.server
@every_blueprint
def test_each_widget_reaches_its_inputs_and_no_others(object_info, name):
    node, subgraph = load(name)
    title = SOURCES[name][1]
    before = towards(to_api(wired(name), object_info), title)
    for position, widget in enumerate(promoted(node)):
        values = list(node["widgets_values"])
        values[position] = "other words" if isinstance(values[position], str) else values[position] + 0.25
        after = towards(to_api(wired(name, values), object_info), title)
        changed = [
            (int(node_id), entry)
            for node_id in before
            for entry, value in after[node_id]["inputs"].items()
            if value != before[node_id]["inputs"][entry]
        ]
        assert sorted(changed) == sorted(reached(subgraph, widget))
        assert all(after[str(target)]["inputs"][entry] == values[position] for target, entry in changed)


@pytest.mark.server
@every_blueprint
def test_shapes_twin_with_it_gives_the_same_picture(server, object_info, name):
    file, title = SOURCES[name]
    pixels = []
    for workflow in (workflows.load(WORKFLOWS / f"{file}.json"), wired(name)):
        server.post("/free", {"free_memory": True})  # or the second would be the first one's, kept
        (picture,) = saved(server, substitute(to_api(workflow, object_info), SHAPES[file]))[title]
        pixels.append(np.asarray(Image.open(io.BytesIO(picture))))
    assert np.array_equal(*pixels)


@pytest.mark.server
def test_the_server_offers_them(server):
    offered = {key: entry for key, entry in server.get("/global_subgraphs").items() if entry["source"] == "custom_node"}
    assert {entry["name"] for entry in offered.values()} == set(FILES)
    for key, entry in offered.items():
        assert entry["info"]["node_pack"] == f"custom_nodes.{PACK}"
        assert server.get(f"/global_subgraphs/{key}")["data"] == FILES[entry["name"]].read_text(encoding="utf-8")
