"""ComfyUI's nodes, loaded and run as ComfyUI does it."""

import asyncio
import gc
import inspect
import uuid
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch


def module_name(pack: Path) -> str:
    """The name under which ComfyUI puts a pack into sys.modules."""
    return str(pack).replace(".", "_x_")


def load_nodes(pack: Path) -> ModuleType:
    """ComfyUI's `nodes` module with the built-in extras and the pack in folder `pack`."""
    import nodes

    async def load() -> bool:
        await nodes.init_extra_nodes(init_custom_nodes=False, init_api_nodes=False)
        return await nodes.load_custom_node(str(pack))

    assert asyncio.run(load()), f"ComfyUI could not load the pack in {pack}; its log above says why."
    # ComfyUI collects garbage around most runs, and would look at a million objects of modules each time: a second.
    gc.collect()
    gc.freeze()
    return nodes


class Node:
    """A node of ComfyUI, called directly."""

    def __init__(self, cls: type):
        self.cls = cls

    def defaults(self) -> dict[str, Any]:
        """What the front end would send for the widgets that the user has not touched."""
        inputs = self.cls.INPUT_TYPES()
        found = {}
        for name, spec in {**inputs.get("required", {}), **inputs.get("optional", {})}.items():
            kind, options = spec[0], spec[1] if len(spec) > 1 else {}
            choices = kind if isinstance(kind, list) else options.get("options")
            if "default" in options:
                found[name] = options["default"]
            elif choices:
                found[name] = choices[0]
        return found

    def execute(self, **inputs: Any) -> tuple:
        """The node's outputs for `inputs`; widgets that are left out have their defaults."""
        cls = self.cls
        function = cls.execute if hasattr(cls, "define_schema") else getattr(cls(), cls.FUNCTION)
        accepted = inspect.signature(function).parameters
        defaults = {k: v for k, v in self.defaults().items() if k in accepted}
        with torch.inference_mode():
            out = function(**{**defaults, **inputs})
        out = getattr(out, "result", out)
        return tuple(out["result"]) if isinstance(out, dict) else tuple(out or ())


def node(comfy: ModuleType, node_id: str) -> Node:
    """The node `node_id`; a test that needs one this ComfyUI does not have is skipped (our own must be there)."""
    cls = comfy.NODE_CLASS_MAPPINGS.get(node_id)
    if cls is None and not node_id.startswith("EBCA"):
        pytest.skip(f"this ComfyUI has no node {node_id}")
    assert cls is not None, f"the pack registered no node {node_id}"
    return Node(cls)


class _Server:
    """All that PromptExecutor needs of ComfyUI's server."""

    client_id = None
    last_node_id = None
    last_prompt_id = None

    def __init__(self):
        self.messages: list[tuple[str, dict]] = []

    def send_sync(self, event: str, data: Any, sid: str | None = None) -> None:
        self.messages.append((event, data))


class PromptError(Exception):
    """A prompt that was refused or failed; `details` is what ComfyUI said about it."""

    def __init__(self, message: str, details: Any):
        super().__init__(f"{message}\n{details}")
        self.details = details


def new_executor():
    """A PromptExecutor, which keeps results from one prompt to the next."""
    import execution

    return execution.PromptExecutor(_Server(), cache_args={"lru": 0, "ram": 0, "ram_inactive": 0})


def run_prompt(prompt: dict, executor=None) -> dict:
    """Run an API-format prompt and give back its outputs: {node id: {kind: [...]}}.

    Args:
        executor: one of `new_executor` that may have run others; by default a new one.

    Raises:
        PromptError: validation refused the prompt or a node failed; the message holds the node's own.
    """
    import execution

    prompt_id = uuid.uuid4().hex
    valid, error, outputs, node_errors = asyncio.run(execution.validate_prompt(prompt_id, prompt, None))
    if not valid:
        raise PromptError("refused before running", (error, node_errors))
    executor = executor or new_executor()
    executor.execute(prompt, prompt_id, {}, outputs)
    if not executor.success:
        raise PromptError("failed while running", [m for m in executor.status_messages if "error" in m[0]])
    return executor.history_result["outputs"]
