"""What comes along a wire, looked at before a node uses it.

ComfyUI compares the types that sockets announce, and the ranges of what is typed into widgets. Nodes that pass on
"anything", and outputs that are empty, get past it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..comfyui_binding.runtime.settings import Edit
from ..comfyui_binding.text.token_weights import TokenWeights
from ..comfyui_binding.trace.trace_record import Trace
from ..ebca_core import Schedule
from ..plots.sweep_grid import Sweep


def _is(*types: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, types)


def _is_real(value: Any) -> bool:
    return isinstance(value, Tensor) and not value.is_complex()


#: What nodes may rely on. Of models and CLIPs only that they behave as such: packs bring classes of their own.
IS_OF_TYPE: dict[str, Callable[[Any], bool]] = {
    "MODEL": lambda value: hasattr(value, "get_model_object"),
    "CLIP": lambda value: value is None or hasattr(value, "tokenize"),  # a checkpoint may lack one, which is said there
    "CONDITIONING": lambda value: isinstance(value, list) and all(len(entry) == 2 for entry in value),
    "LATENT": lambda value: isinstance(value, Mapping) and _is_real(value.get("samples")),
    "MASK": _is_real,
    "IMAGE": _is_real,
    "SIGMAS": _is_real,
    "INT": _is(int),
    "FLOAT": _is(int, float),
    "BOOLEAN": _is(bool, int),
    "STRING": _is(str),
    "COMBO": _is(str),
    "EBCA_EDIT": _is(Edit),
    "EBCA_SCHEDULE": _is(Schedule),
    "EBCA_SWEEP": _is(Sweep),
    "EBCA_TOKEN_WEIGHTS": _is(TokenWeights),
    "EBCA_TRACE": _is(Trace),
}


def checked(node: type[io.ComfyNode]) -> type[io.ComfyNode]:
    """The node, which from now on refuses, with ValueError, what an input of its schema cannot be."""
    execute = node.execute.__func__

    @functools.wraps(execute)
    def checked_execute(cls: type[io.ComfyNode], **values: Any) -> io.NodeOutput:
        schema = cls.define_schema()
        for declared in schema.inputs:
            for name, value, one in _values(declared, values):
                for item in value if schema.is_input_list else [value]:
                    _check(one, name, item)
        return execute(cls, **values)

    node.execute = classmethod(checked_execute)
    return node


def _values(schema: io.Input, values: Mapping[str, Any]) -> Iterator[tuple[str, Any, io.Input]]:
    """The name, the value and the schema of an input, or of each of those that it has grown."""
    value = values.get(schema.id)
    if isinstance(schema, io.Autogrow.Input):
        yield from ((name, one, schema.template.input) for name, one in (value or {}).items() if one is not None)
    elif value is not None or (not schema.optional and schema.id in values):
        yield schema.id, value, schema


def _check(schema: io.Input, name: str, value: Any) -> None:
    kind = schema.get_io_type()
    if kind in IS_OF_TYPE and not IS_OF_TYPE[kind](value):
        came = "nothing" if value is None else type(value).__name__
        raise ValueError(
            f"Expected {kind} in {name}, but got {came}. Look at the node that is wired there: it gives something "
            "else than it says, or its own input is empty."
        )
    if kind == "INT" and not schema.min <= value <= schema.max:  # other numbers are checked where they are used
        raise ValueError(f"Expected {name} to be a whole number from {schema.min} to {schema.max}, but got {value}.")
    if kind == "COMBO" and value not in schema.options:
        listed = ", ".join(schema.options) or "(there are none)"
        raise ValueError(f"Expected one of {listed} in {name}, but got {value}.")
