"""What a node can know of the graph around it: the prompt that the server runs, {node id: {class_type, inputs}}."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

Prompt = Mapping[str, Mapping[str, Any]]


def link_of(prompt: Prompt, node_id: str, name: str) -> str | None:
    """The id of the node that is wired to an input, None where there is none."""
    value = prompt[node_id]["inputs"].get(name)
    return value[0] if _is_link(value) and value[0] in prompt else None


def upstream(
    prompt: Prompt, node_id: str | None, leave_out: Callable[[str], bool] = lambda name: False
) -> Iterator[str]:
    """A node and all that it depends on, nearest first; inputs whose names are to be left out are not followed."""
    seen, waiting = set(), [node_id] if node_id in prompt else []
    while waiting:
        current = waiting.pop(0)
        if current in seen:
            continue
        seen.add(current)
        yield current
        names = [name for name in prompt[current]["inputs"] if not leave_out(name)]
        waiting += [source for name in names if (source := link_of(prompt, current, name))]


def downstream(prompt: Prompt, node_id: str) -> Iterator[str]:
    """All nodes that depend on a node, nearest first."""
    seen, waiting = {node_id}, [node_id]
    while waiting:
        current = waiting.pop(0)
        for reader, node in prompt.items():
            if reader not in seen and any(_is_link(value) and value[0] == current for value in node["inputs"].values()):
                seen.add(reader)
                waiting.append(reader)
                yield reader


def value_of(prompt: Prompt, node_id: str, name: str) -> Any:
    """What a widget holds, or the one value of the primitive node that is wired to it; None if that is not known."""
    value = prompt[node_id]["inputs"].get(name)
    if not _is_link(value):
        return value
    literals = [v for v in prompt.get(value[0], {"inputs": {}})["inputs"].values() if not _is_link(v)]
    return literals[0] if len(literals) == 1 else None


def widgets(prompt: Prompt, node_id: str) -> dict[str, Any]:
    """The inputs of a node that are not wired."""
    return {name: value for name, value in prompt[node_id]["inputs"].items() if not _is_link(value)}


def _is_link(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and isinstance(value[0], str)
