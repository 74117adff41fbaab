"""Workflows that users have saved keep loading: the nodes stay as tests/data/schemas.json has them.

After an addition: `python run.py test tests/test_schemas.py --update-schemas`, and commit the file.
"""

import inspect
import json
from pathlib import Path

import pytest

FILE = Path(__file__).parent / "data" / "schemas.json"
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")


def schema_of(cls: type) -> dict:
    """What saved workflows rely on: {input: type} in the front end's order, and the types of the outputs."""
    inputs = {}
    for name, (kind, *options) in (entry for part in ("required", "optional") for entry in part_of(cls, part)):
        options = options[0] if options else {}
        kind = "COMBO" if isinstance(kind, list) else kind
        template = options.get("template", {})
        grown = [f"{one} {spec[0]}" for part in template.get("input", {}).values() for one, spec in part.items()]
        control = ["with control_after_generate"] if options.get("control_after_generate") else []
        inputs[name] = " ".join([kind, *grown, *control])
    return {"inputs": inputs, "outputs": list(cls.RETURN_TYPES)}


def part_of(cls: type, part: str):
    return cls.INPUT_TYPES().get(part, {}).items()


def widgets(schema: dict) -> list[str]:
    """The inputs whose values are saved by their position."""
    return [name for name, kind in schema["inputs"].items() if kind.split()[0] in WIDGETS]


def breaks(old: dict, new: dict, required: set[tuple[str, str]] = frozenset()) -> list[str]:
    """What keeps saved workflows from loading; required: (node, input) of what must be given."""
    found = []
    for node, was in old.items():
        if node not in new:
            found.append(f"{node} is gone")
            continue
        now = new[node]
        found += [
            f"{node}: input {name} was {kind}, is {now['inputs'].get(name, 'gone')}"
            for name, kind in was["inputs"].items()
            if now["inputs"].get(name) != kind
        ]
        added = set(now["inputs"]) - set(was["inputs"])
        found += [f"{node}: the new input {name} is not optional" for name in sorted(added) if (node, name) in required]
        if widgets(now)[: len(widgets(was))] != widgets(was):
            found.append(f"{node}: widgets were {widgets(was)}, are {widgets(now)}; new ones belong at the end")
        if now["outputs"][: len(was["outputs"])] != was["outputs"]:
            found.append(f"{node}: outputs were {was['outputs']}, are {now['outputs']}; new ones belong at the end")
    return found


@pytest.fixture
def classes(pack) -> dict[str, type]:
    return {cls.GET_SCHEMA().node_id: cls for cls in pack.nodes.NODES}


@pytest.fixture
def schemas(classes) -> dict:
    return {node: schema_of(cls) for node, cls in sorted(classes.items())}


@pytest.mark.interface
def test_saved_workflows_keep_loading(classes, schemas, request):
    old = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}
    required = {(node, name) for node, cls in classes.items() for name, _ in part_of(cls, "required")}
    found = breaks(old, schemas, required)
    assert not found, "This breaks saved workflows:\n" + "\n".join(found)
    if request.config.getoption("--update-schemas"):
        FILE.write_text(json.dumps(schemas, indent=1) + "\n", encoding="utf-8", newline="\n")
    elif old != schemas:
        added = [node for node in schemas if old.get(node) != schemas[node]]
        pytest.fail(
            f"Nothing breaks, but these nodes have something new: {', '.join(added)}. Keep it from breaking later: "
            "`python run.py test tests/test_schemas.py --update-schemas`, and commit tests/data/schemas.json."
        )


@pytest.mark.interface
def test_optional_inputs_have_one_default(classes):
    """Workflow files hold the schema's; an API workflow that leaves an input out gets that of `execute`."""
    compared = 0
    for node, cls in classes.items():
        schema, taken = cls.define_schema(), inspect.signature(cls.execute).parameters
        for item in schema.inputs:
            stated = getattr(item, "default", None) if item.optional else inspect.Parameter.empty
            assert taken[item.id].default == stated, f"{node}: {item.id}"
            compared += item.optional and stated is not None
    assert compared


INPUTS = {"model": "MODEL", "alpha": "FLOAT", "edits": "COMFY_AUTOGROW_V3 edit EBCA_EDIT"}
NODE = {"inputs": INPUTS, "outputs": ["MODEL"]}


@pytest.mark.parametrize(("changed", "said"), [
    ({}, "EBCA is gone"),
    ({"EBCA": {**NODE, "inputs": {**INPUTS, "alpha": "INT"}}}, "input alpha was FLOAT, is INT"),
    ({"EBCA": {**NODE, "inputs": dict(list(INPUTS.items())[1:])}}, "model was MODEL, is gone"),
    ({"EBCA": {**NODE, "inputs": {"beta": "FLOAT", **INPUTS}}}, "widgets were ['alpha'], are ['beta', 'alpha']"),
    ({"EBCA": {**NODE, "inputs": {**INPUTS, "mask": "MASK"}}}, "the new input mask is not optional"),
    ({"EBCA": {**NODE, "outputs": ["IMAGE", "MODEL"]}}, "outputs were ['MODEL'], are ['IMAGE', 'MODEL']"),
])  # fmt: skip
def test_what_breaks_saved_workflows_is_found(changed, said):
    (found,) = breaks({"EBCA": NODE}, changed, {("EBCA", "mask")})
    assert said in found


@pytest.mark.parametrize("added", [
    {"EBCA": NODE, "EBCATwo": NODE},
    {"EBCA": {**NODE, "inputs": {**INPUTS, "schedule": "EBCA_SCHEDULE", "beta": "FLOAT"}}},
    {"EBCA": {**NODE, "outputs": ["MODEL", "IMAGE"]}},
])  # fmt: skip
def test_what_is_added_at_the_end_breaks_nothing(added):
    assert breaks({"EBCA": NODE}, added) == []
