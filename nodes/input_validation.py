"""Validation of inputs, before sampling where the values are known and before a node runs for those that are linked.

ComfyUI compares the declared types of linked sockets, and the values of widgets with their ranges. It does not check
values that arrive over a link: a node with outputs of any type can deliver something else, or None.
"""

from __future__ import annotations

import functools
import numbers
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


def _is_latent(value: Any) -> bool:
    """Also of several kinds of data in one, as video with sound (ComfyUI's NestedTensor)."""
    samples = value.get("samples") if isinstance(value, Mapping) else None
    return _is_real(samples) or getattr(samples, "is_nested", False)


#: {type: whether a value is of it}. Models and CLIPs are tested for a method, as other packs have classes of their own.
IS_OF_TYPE: dict[str, Callable[[Any], bool]] = {
    "MODEL": lambda value: hasattr(value, "get_model_object"),
    "CLIP": lambda value: value is None or hasattr(value, "tokenize"),  # None: a checkpoint without one
    "CONDITIONING": lambda value: isinstance(value, list) and all(len(entry) == 2 for entry in value),
    "LATENT": _is_latent,
    "MASK": _is_real,
    "IMAGE": _is_real,
    "SIGMAS": _is_real,
    "INT": _is(numbers.Integral),
    "FLOAT": _is(numbers.Real),
    "BOOLEAN": _is(bool, int),
    "STRING": _is(str),
    "COMBO": _is(str),
    "EBCA_EDIT": _is(Edit),
    "EBCA_SCHEDULE": _is(Schedule),
    "EBCA_SWEEP": _is(Sweep),
    "EBCA_TOKEN_WEIGHTS": _is(TokenWeights),
    "EBCA_TRACE": _is(Trace),
}
#: {type: Python's own, as which numbers of other libraries (NumPy) reach a node}.
PLAIN = {"INT": int, "FLOAT": float}


def validated(node: type[io.ComfyNode]) -> type[io.ComfyNode]:
    """The node, with an `execute` that raises ValueError for values that its schema does not allow.

    An optional input that gets None over its link is as one that is not connected.
    """
    execute = node.execute.__func__

    @functools.wraps(execute)
    def validated_execute(cls: type[io.ComfyNode], **values: Any) -> io.NodeOutput:
        schema = cls.define_schema()
        optional = {declared.id for declared in schema.inputs if declared.optional}
        values = {name: value for name, value in values.items() if value is not None or name not in optional}
        for declared in schema.inputs:
            for name, value, one in _values(declared, values):
                items = value if schema.is_input_list else [value]
                for item in items:
                    _check_type(one, name, item)
                    _check_option(one, name, item)
                    if one.get_io_type() == "INT":  # the other numbers are checked where they are used
                        _check_range(one, name, item)
                if plain := PLAIN.get(one.get_io_type()):
                    items = [plain(item) for item in items]
                    values[name] = items if schema.is_input_list else items[0]
        return execute(cls, **values)

    node.execute = classmethod(validated_execute)
    return node


def _values(schema: io.Input, values: Mapping[str, Any]) -> Iterator[tuple[str, Any, io.Input]]:
    """(name, value, schema) of an input, or of each input that an Autogrow input has added."""
    if isinstance(schema, io.Autogrow.Input):
        added = values.get(schema.id) or {}
        yield from ((name, one, schema.template.input) for name, one in added.items() if one is not None)
    elif schema.id in values:
        yield schema.id, values[schema.id], schema


def first_error(node: type[io.ComfyNode], values: Mapping[str, Any], *checks: tuple) -> bool | str:
    """The result of a node's `validate_inputs` for the values that it names: True, or the message of the first error.

    ComfyUI leaves the types and ranges of these inputs to the node, and passes None for inputs that are linked.

    Args:
        node: the node.
        values: {input: value}.
        checks: (function that raises ValueError, names of its arguments among the values); called if all are known.
    """
    known = {name: value for name, value in values.items() if value is not None}
    try:
        for declared in node.define_schema().inputs:
            if declared.id in known:
                _check_type(declared, declared.id, known[declared.id])
                _check_range(declared, declared.id, known[declared.id])
        for check, *names in checks:
            if known.keys() >= set(names):
                check(*(known[name] for name in names))
    except ValueError as error:
        return str(error)
    return True


def _check_type(schema: io.Input, name: str, value: Any) -> None:
    kind = schema.get_io_type()
    if kind in IS_OF_TYPE and not IS_OF_TYPE[kind](value):
        received = "nothing" if value is None else type(value).__name__
        raise ValueError(
            f"{name} received {received} instead of {kind}. Check the node that is connected to it: its output is of "
            "another type, or empty."
        )


def _check_option(schema: io.Input, name: str, value: Any) -> None:
    if schema.get_io_type() == "COMBO" and value not in schema.options:
        listed = ", ".join(schema.options) or "(the list is empty)"
        raise ValueError(f"{name} is {value!r}, which is not an option. Choose one of: {listed}.")


def _check_range(schema: io.Input, name: str, value: Any) -> None:
    if schema.get_io_type() in ("INT", "FLOAT") and not schema.min <= value <= schema.max:  # True for NaN too
        raise ValueError(f"{name} is {value}. Set it to a number from {schema.min} to {schema.max}.")
