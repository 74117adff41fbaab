"""What a node can know of the graph around it: the prompt that the server runs, {node id: {class_type, inputs}}."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from comfy_execution import graph as execution_graph

WorkflowPrompt = Mapping[str, Mapping[str, Any]]


def inputs_of(prompt: WorkflowPrompt, node_id: str) -> Mapping[str, Any]:
    """The inputs of a node, widgets and links alike."""
    return prompt[node_id].get("inputs", {})


def link_of(prompt: WorkflowPrompt, node_id: str, name: str) -> str | None:
    """The id of the node that is wired to an input, None where there is none."""
    value = inputs_of(prompt, node_id).get(name)
    return value[0] if _is_link(value) and value[0] in prompt else None


def upstream(
    prompt: WorkflowPrompt, node_id: str | None, follows: Callable[[str, str], bool] = lambda node, name: True
) -> Iterator[str]:
    """The ids of a node and of all that it depends on, nearest first, along the inputs that `follows(id, name)`."""
    seen, waiting = set(), [node_id] if node_id in prompt else []
    while waiting:
        current = waiting.pop(0)
        if current in seen:
            continue
        seen.add(current)
        yield current
        names = [name for name in inputs_of(prompt, current) if follows(current, name)]
        waiting += [source for name in names if (source := link_of(prompt, current, name))]


def first_downstream(prompt: WorkflowPrompt, node_id: str | None, wanted: Callable[[str], bool]) -> Iterator[str]:
    """The ids of the wanted nodes that depend on a node without another wanted one between them."""
    seen, waiting = {node_id}, [node_id]
    while waiting:
        current = waiting.pop(0)
        for reader in prompt:
            values = inputs_of(prompt, reader).values()
            if reader in seen or not any(_is_link(value) and value[0] == current for value in values):
                continue
            seen.add(reader)
            if wanted(reader):
                yield reader
            else:
                waiting.append(reader)


def value_of(prompt: WorkflowPrompt, node_id: str, name: str) -> Any:
    """What a widget, or one of core's primitives wired to it, holds; None where that is not known."""
    value = inputs_of(prompt, node_id).get(name)
    if not _is_link(value):
        return value
    primitive = inputs_of(prompt, value[0]) if value[0] in prompt else {}
    return primitive["value"] if set(primitive) == {"value"} and not _is_link(primitive["value"]) else None


def widgets(prompt: WorkflowPrompt, node_id: str) -> dict[str, Any]:
    """The inputs of a node that are not wired."""
    return {name: value for name, value in inputs_of(prompt, node_id).items() if not _is_link(value)}


def texts(prompt: WorkflowPrompt, node_id: str) -> list[str]:
    """What is written in a node's text inputs; a file that is chosen from a list is no text."""
    declared = execution_graph.nodes.NODE_CLASS_MAPPINGS.get(prompt[node_id].get("class_type"))
    if declared is None:
        return []
    return [
        value
        for name, value in widgets(prompt, node_id).items()
        if isinstance(value, str) and execution_graph.get_input_info(declared, name)[0] == "STRING"
    ]


def _is_link(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and isinstance(value[0], str)
