"""Widget values that cannot work are refused by ComfyUI's validation, before any node runs."""

import math

import pytest

from support import toy
from support.host import PromptError, node
from support.log_messages import refused
from support.random_prompts import supplies

#: name: (node, values of its widgets, the beginning of the message, an input that is marked)
FAULTS = {
    "update's window": (
        "EBCAContextUpdate", dict(start_percent=0.9, end_percent=0.1),
        "start_percent is 0.9 and end_percent is 0.1: the start is not less than the end.", "start_percent",
    ),
    "update's blocks": (
        "EBCAContextUpdate", dict(blocks="d0,x3"), "'x3' in blocks is not a block. Write blocks as in d0-d2", "blocks",
    ),
    "edit's window": (
        "EBCAEditContext", dict(start_percent=0.5, end_percent=0.5), "start_percent is 0.5 and end_percent is 0.5",
        "end_percent",
    ),
    "window of the edit's gammas": (
        "EBCAEditContext", dict(gamma_start_percent=1.0),
        "gamma_start_percent is 1 and gamma_end_percent is 1: the start is not less", "gamma_start_percent",
    ),
    "schedule's window": ("EBCASchedule", dict(start_percent=1.0), "start_percent is 1 and", "start_percent"),
    "exponential to zero": (
        "EBCASchedule", dict(shape="exponential", end_factor=0.0), "An exponential schedule cannot have a factor of 0",
        "end_factor",
    ),
    "shape": ("EBCASchedule", dict(shape="round"), "'round' is not a shape of a schedule. Choose one of", "shape"),
    "line of token weights": (
        "EBCATokenWeights", dict(weights="a lion = 2\ncrown 2"), "The line `crown 2` in weights has no", "weights",
    ),
    "token weight": ("EBCATokenWeights", dict(weights="crown = big"), "The weight of `crown` is `big`.", "weights"),
    "list of a sweep": ("EBCASweep", dict(y_values="0, a"), "y_values is not a list of numbers: '0, a'", "y_values"),
    "no values": ("EBCASweep", dict(x_values=" "), "x_values is empty. Enter at least one number", "x_values"),
    "huge sweep": (
        "EBCASweep", dict(x_values="1 " * 21, y_values="1 " * 20), "The sweep has 420 pairs of values; at most 400",
        "x_values",
    ),
    "missing inversion": ("EBCALoadInversion", dict(file="gone.latent"), "The file 'gone.latent' is missing.", "file"),
    "missing trace": ("EBCALoadTrace", dict(file="../gone.safetensors"), "The file '../gone.safetensors' is", "file"),
    "no file": ("EBCALoadTrace", dict(file=""), "No file is selected. Press R to refresh the list", "file"),
}  # fmt: skip
#: Values outside the ranges of the schema, which `validate_inputs` checks for the inputs that it names.
OUT_OF_RANGE = {
    "gamma": ("EBCAContextUpdate", dict(gamma_attn=1.5), "gamma_attn is 1.5. Set it to a number from 0.0 to 1.0."),
    "negative gamma": ("EBCAEditContext", dict(gamma_norm=-0.1), "gamma_norm is -0.1. Set it to a number from 0.0 to"),
    "nan": ("EBCAEditContext", dict(alpha=math.nan), "alpha is nan. Set it to a number from 0.0 to 10.0."),
    "percent": ("EBCAContextUpdate", dict(end_percent=1.2), "end_percent is 1.2. Set it to a number from 0.0 to 1.0."),
    "factor": ("EBCASchedule", dict(start_factor=11.0), "start_factor is 11.0. Set it to a number from 0.0 to 10.0."),
}


@pytest.fixture(scope="module")
def supplied():
    """Things for the prompts; making them takes longer than all that is done with them here."""
    return supplies()


@pytest.fixture
def graph(comfy, supplied, monkeypatch):
    """A function: the prompt with one node of the pack, whose first output is shown."""
    for name, cls in supplied.items():
        monkeypatch.setitem(comfy.NODE_CLASS_MAPPINGS, name, cls)

    def build(node_id, **values):
        links = {"model": ("MODEL", "sd1"), "conditioning": ("CONDITIONING", "plain"), "clip": ("CLIP", "sd1")}
        prompt = {
            kind: {"class_type": f"TestSupply {kind}", "inputs": {"name": name}} for kind, name in links.values()
        }
        taken = comfy.NODE_CLASS_MAPPINGS[node_id].INPUT_TYPES()["required"]
        taken = {*taken, "conditioning"} if node_id == "EBCAEditContext" else taken  # optional there, beside a text
        wired = {name: [kind, 0] for name, (kind, _) in links.items() if name in taken}
        prompt["node"] = {"class_type": node_id, "inputs": {**node(comfy, node_id).defaults(), **wired, **values}}
        prompt["shown"] = {"class_type": "PreviewAny", "inputs": {"source": ["node", 0]}}
        return prompt

    return build


def errors_of(run_prompt, prompt) -> dict[str, str]:
    """{input: message} of the node in a prompt that validation refuses."""
    with pytest.raises(PromptError, match="refused before running") as refusal:
        run_prompt(prompt)
    _, nodes = refusal.value.details
    errors = [error for error in nodes["node"]["errors"] if error["type"] == "custom_validation_failed"]
    return {error["extra_info"]["input_name"]: error["details"].partition(" - ")[2] for error in errors}


@pytest.mark.parametrize("name", FAULTS)
def test_fault_is_refused_before_anything_runs(graph, run_prompt, name):
    node_id, values, message, marked = FAULTS[name]
    errors = errors_of(run_prompt, graph(node_id, **values))
    assert errors[marked].startswith(message)
    assert len(set(errors.values())) == 1


@pytest.mark.parametrize("name", [name for name in FAULTS if "file" not in FAULTS[name][1] and name != "shape"])
def test_message_is_that_of_the_node_itself(comfy, graph, run_prompt, name):
    """One check decides, whether a value is typed or linked; blocks have the model's layers besides."""
    node_id, values, _, marked = FAULTS[name]
    things = {
        "EBCAContextUpdate": dict(model=toy.model()), "EBCAEditContext": dict(conditioning=toy.conditioning(1)),
        "EBCATokenWeights": dict(clip=toy.clip("sd1"), text="a lion with a crown"),
    }.get(node_id, {})  # fmt: skip
    said = errors_of(run_prompt, graph(node_id, **values))[marked]
    refused(lambda: node(comfy, node_id).execute(**things, **values), said)


@pytest.mark.parametrize("name", OUT_OF_RANGE)
def test_value_out_of_range_is_refused_before_anything_runs(graph, run_prompt, name):
    node_id, values, message = OUT_OF_RANGE[name]
    assert errors_of(run_prompt, graph(node_id, **values))[next(iter(values))].startswith(message)


@pytest.mark.parametrize(("node_id", "values"), [
    ("EBCAContextUpdate", dict(gamma_attn=0.0, gamma_norm=0.0, start_percent=0.9, end_percent=0.1)),
    ("EBCAEditContext", dict(alpha=0.0, start_percent=0.9, end_percent=0.1)),
    ("EBCAEditContext", dict(gamma_attn=0.0, gamma_norm=0.0, gamma_start_percent=1.0)),
])  # fmt: skip
def test_window_of_a_strength_that_is_off_is_not_refused(graph, run_prompt, node_id, values):
    run_prompt(graph(node_id, **values))


def test_linked_values_are_left_to_the_run(graph, run_prompt):
    prompt = graph("EBCASchedule", start_percent=["number", 0], end_percent=0.5)
    prompt["number"] = {"class_type": "PrimitiveFloat", "inputs": {"value": 0.7}}
    with pytest.raises(PromptError, match=r"(?s)failed while.*start_percent is 0.7 and end_percent is 0.5"):
        run_prompt(prompt)
    prompt["number"]["inputs"]["value"] = 0.2
    run_prompt(prompt)
