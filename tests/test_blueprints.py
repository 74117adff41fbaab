"""The blueprints in subgraphs/: parts of workflow files that the node library offers as one node."""

import copy
import io

import numpy as np
import pytest
from PIL import Image

from devtools import workflows
from devtools.server import PACK
from devtools.twins import SHAPES, WORKFLOWS, pictures, shown
from devtools.workflows import Prompt, Workflow, substitute, to_api

FILES = {path.stem: path for path in sorted((WORKFLOWS.parent / "subgraphs").glob("*.json"))}
# Of which picture of which workflow file a blueprint is a part: its nodes have the ids that they have there.
SOURCES = {
    "EBCA Multi-Concept": ("EBCA 01 Several things (SD 1.5)", "With EBCA"),
    "EBCA Best of Several": ("EBCA 12 Best of four (SD 1.5)", "With EBCA"),
    "EBCA Real-Image Edit": ("EBCA 06 Photo with mask (SD 1.5)", "With EBCA"),
}
# The workflow file that is built around a blueprint.
AROUND = "EBCA 05 Photo cat to dog (SD 1.5)"
# Ids of nodes that are in a blueprint and not in its workflow file: they make the mask as large as the photo, and crop
# it along. The mask enters them at one and leaves them at another.
FIT, MASK_IN, MASK_OUT = range(60, 66), 63, 65
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


def slot_of(subgraph: dict, node_id: int, name: str) -> int:
    """The number of an input of a node within."""
    (node,) = (node for node in subgraph["nodes"] if node["id"] == node_id)
    return [socket["name"] for socket in node["inputs"]].index(name)


def of_file(name: str, object_info: dict) -> list:
    """The values that the promoted widgets have in the blueprint's workflow file."""
    node, subgraph = load(name)
    plain = to_api(workflows.load(WORKFLOWS / f"{SOURCES[name][0]}.json"), object_info)
    first = [reached(subgraph, widget)[0] for widget in promoted(node)]
    return [plain[str(target)]["inputs"][entry] for target, entry in first]


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
    sources |= {
        (MASK_IN, slot_of(subgraph, MASK_IN, "mask")): sources[link["target_id"], link["target_slot"]]
        for link in subgraph["links"]
        if link["origin_id"] == MASK_OUT
    }
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
    """The nodes behind a shown picture, with the ids that they have in the workflow file."""
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


def unfitted(prompt: Prompt) -> Prompt:
    """The prompt with the mask as it comes, without the nodes that fit it to the photo."""
    prompt = copy.deepcopy(prompt)
    for node in prompt.values():
        for entry, value in node["inputs"].items():
            if value == [f"{OUTER}:{MASK_OUT}", 0]:
                node["inputs"][entry] = prompt[f"{OUTER}:{MASK_IN}"]["inputs"]["mask"]
    return prompt


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
def test_it_is_the_same_prompt_as_the_nodes_of_the_workflow_file(object_info, name):
    file, title = SOURCES[name]
    plain = towards(to_api(workflows.load(WORKFLOWS / f"{file}.json"), object_info), title)
    blueprint = to_api(wired(name, of_file(name, object_info)), object_info)
    _, subgraph = load(name)
    inside = {node["id"] for node in subgraph["nodes"] if node["type"] != "MarkdownNote"}
    assert {f"{OUTER}:{node_id}" for node_id in inside} <= set(blueprint)
    assert towards(unfitted(blueprint), title) == plain
    assert inside - {int(node_id) for node_id in plain} <= set(FIT)


@pytest.mark.server
@every_blueprint
def test_it_ships_the_values_of_the_workflow_file(object_info, name):
    node, _ = load(name)
    expected = dict(zip(promoted(node), of_file(name, object_info), strict=True))
    assert dict(zip(promoted(node), node["widgets_values"], strict=True)) == expected
    assert to_api(wired(name), object_info) == to_api(wired(name, []), object_info)  # the values within are the same


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
def test_shapes_twin_with_it_gives_the_same_picture(server, object_info, workflow_runs, name):
    file, title = SOURCES[name]
    (expected,) = workflow_runs(file, SHAPES[file])[title]
    server.post("/free", {"free_memory": True})  # or the picture would be that one, kept
    prompt = substitute(to_api(wired(name, of_file(name, object_info)), object_info), SHAPES[file])
    (picture,) = shown(server, prompt)[title]
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(picture))), np.asarray(expected))


@pytest.mark.server
@pytest.mark.parametrize(("photo", "size"), [((96, 48), (64, 64)), ((48, 96), (64, 64)), ((64, 64), (96, 48))])
def test_a_mask_is_cropped_as_its_photo(server, object_info, photo, size):
    image, mask = fitted(server, object_info, photo, size, masked=True)
    assert image.size == size
    assert image.getextrema() == (0, 255)
    assert np.array_equal(image, mask)


@pytest.mark.server
def test_without_a_mask_it_edits_everywhere(server, object_info):
    _, mask = fitted(server, object_info, (96, 48), (64, 64), masked=False)
    assert mask.size == (64, 64)
    assert mask.getextrema() == (255, 255)


def fitted(server, object_info, photo, size, masked: bool) -> tuple[Image.Image, Image.Image]:
    """What the edit encodes and the mask that its edits get, of a photo that is white where its mask is."""
    name = "EBCA Real-Image Edit"
    node, subgraph = load(name)
    values = dict(zip(promoted(node), node["widgets_values"], strict=True)) | dict(zip(("width", "height"), size))
    prompt = to_api(wired(name, list(values.values())), object_info)
    kept = {node_id: node for node_id, node in prompt.items() if inner(node_id) in {"3", *map(str, FIT)}}
    for node_id, _ in reached(subgraph, "image"):
        kept[f"{OUTER}:{node_id}"]["inputs"]["image"] = ["photo", 0]
    inputs = kept[f"{OUTER}:{MASK_IN}"]["inputs"]
    inputs["mask"] = ["mask", 0]
    if not masked:
        del inputs["mask"]
    width, height = photo
    kept |= {
        "black": {"class_type": "SolidMask", "inputs": {"value": 0.0, "width": width, "height": height}},
        "white": {"class_type": "SolidMask", "inputs": {"value": 1.0, "width": width // 2, "height": height // 2}},
        "mask": {"class_type": "MaskComposite", "inputs": {
            "destination": ["black", 0], "source": ["white", 0], "x": 13, "y": 7, "operation": "add",
        }},
        "photo": {"class_type": "MaskToImage", "inputs": {"mask": ["mask", 0]}},
        "its mask": {"class_type": "MaskToImage", "inputs": {"mask": [f"{OUTER}:{MASK_OUT}", 0]}},
    }  # fmt: skip
    shown = {"image": [f"{OUTER}:3", 0], "of the mask": ["its mask", 0]}
    for title, link in shown.items():
        kept[title] = {"class_type": "SaveImage", "inputs": {"images": link, "filename_prefix": title}}
    history = server.run(kept)
    return tuple(Image.open(io.BytesIO(server.images(history, title)[0])).convert("L") for title in shown)


def test_the_file_around_a_blueprint_has_it_as_it_is():
    (subgraph,) = workflows.load(WORKFLOWS / f"{AROUND}.json")["definitions"]["subgraphs"]
    _, shipped = load("EBCA Real-Image Edit")
    unlike = {"category", "state"}  # the front end leaves the one out, and counts other nodes in the other
    assert {key: subgraph[key] for key in subgraph.keys() - unlike} == {
        key: shipped[key] for key in shipped.keys() - unlike
    }


@pytest.mark.server
def test_the_server_offers_them(server):
    offered = {key: entry for key, entry in server.get("/global_subgraphs").items() if entry["source"] == "custom_node"}
    assert {entry["name"] for entry in offered.values()} == set(FILES)
    for key, entry in offered.items():
        assert entry["info"]["node_pack"] == f"custom_nodes.{PACK}"
        assert server.get(f"/global_subgraphs/{key}")["data"] == FILES[entry["name"]].read_text(encoding="utf-8")
