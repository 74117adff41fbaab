"""Workflow files, as the front end saves them, for a server, which runs the API format. Needs the tools installed."""

import copy
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Workflow = dict[str, Any]
Prompt = dict[str, dict[str, Any]]
# {(class of the node, name of the input): what replaces the value}. A function gets the value; a table of
# {value: replacement} must hold every value that occurs; anything else is the new value itself.
Substitutions = Mapping[tuple[str, str], Any]

_MUTED, _BYPASSED = 2, 4  # the front end's node modes: neither reaches the server


class WorkflowProblem(Exception):
    """A workflow that cannot be converted or substituted; the message names the nodes."""


def load(path: Path) -> Workflow:
    """A workflow file."""
    return json.loads(Path(path).read_text(encoding="utf-8"))


def to_api(workflow: Workflow, object_info: Mapping[str, Any]) -> Prompt:
    """The prompt that the front end would send for a workflow: notes, reroutes, muted and bypassed nodes left out,
    subgraphs expanded, widget values under their names.

    Args:
        object_info: what the server says of its nodes (`Server.object_info`).

    Raises:
        WorkflowProblem: a node is of a type that the server does not have, or is lost in the conversion.
            PrimitiveNode is refused as well (the typed PrimitiveInt and so on are nodes like any other).
    """
    from comfy_cli.workflow_to_api import convert_ui_to_api

    missing = sorted(_types(workflow) - set(object_info))
    if missing:
        raise WorkflowProblem(f"The server has no node of type {', '.join(missing)}.")
    prompt = convert_ui_to_api(workflow, dict(object_info))
    # The converter logs a node that it cannot read, and goes on without it.
    lost = [n for n in workflow["nodes"] if n["type"] in object_info and _runs(n) and str(n["id"]) not in prompt]
    if lost:
        names = ", ".join(f"{n['id']} ({n['type']})" for n in lost)
        raise WorkflowProblem(f"Lost in the conversion: {names}.")
    return prompt


def substitute(prompt: Prompt, table: Substitutions) -> Prompt:
    """A copy of the prompt with other values, say another checkpoint and other sizes. Links stay as they are.

    Raises:
        WorkflowProblem: a value for which the table has no replacement.
    """
    prompt = copy.deepcopy(prompt)
    for node_id, node in prompt.items():
        for name, value in node["inputs"].items():
            entry = (node["class_type"], name)
            if entry in table and not _is_link(value):
                node["inputs"][name] = _replacement(table[entry], value, f"node {node_id} ({entry[0]}), input {name}")
    return prompt


def node_ids(prompt: Prompt, class_type: str) -> list[str]:
    """The ids of the nodes of a class, as they stand in the prompt."""
    return [node_id for node_id, node in prompt.items() if node["class_type"] == class_type]


def _replacement(rule: Any, value: Any, place: str) -> Any:
    if isinstance(rule, Callable):
        return rule(value)
    if not isinstance(rule, Mapping):
        return rule
    if value not in rule:
        raise WorkflowProblem(f"No replacement for {value!r} in {place}. There are some for: {list(rule)}")
    return rule[value]


def _is_link(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str)


def _runs(node: Mapping[str, Any]) -> bool:
    return node.get("mode", 0) not in (_MUTED, _BYPASSED)


def _types(workflow: Workflow) -> set[str]:
    """The types of all nodes that a server must have, those within subgraphs too."""
    subgraphs = workflow.get("definitions", {}).get("subgraphs", [])
    # Not PrimitiveNode: the converter keeps the value of the widget that it drives, the front end overwrites it.
    inside_the_front_end = {"Note", "MarkdownNote", "Reroute", *(s["id"] for s in subgraphs)}
    nodes = [*workflow["nodes"], *(node for subgraph in subgraphs for node in subgraph["nodes"])]
    return {node["type"] for node in nodes if _runs(node)} - inside_the_front_end
