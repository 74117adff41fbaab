"""The nodes. Each file ends with the list of its nodes.

choosing_nodes.py         EBCA Rank, EBCA Reroll
concepts_nodes.py         EBCA Concepts
context_update_nodes.py   EBCA Context Update
edit_nodes.py             EBCA Edit Context, EBCA Compose
inversion_nodes.py        EBCA Invert, EBCA Save Inversion, EBCA Load Inversion
repaint_nodes.py          EBCA RePaint Sampler
schedule_nodes.py         EBCA Schedule
sweep_nodes.py            EBCA Sweep, EBCA Sweep Grid
token_weights_nodes.py    EBCA Token Weights
trace_nodes.py            EBCA Trace, EBCA Energy Plot, EBCA Attention Maps, EBCA Save Trace, EBCA Load Trace

shared_inputs.py          inputs that several nodes have
input_validation.py       values that arrive over links
file_inputs.py            files that nodes read and write
"""

from __future__ import annotations

from . import (
    choosing_nodes,
    concepts_nodes,
    context_update_nodes,
    edit_nodes,
    inversion_nodes,
    repaint_nodes,
    schedule_nodes,
    sweep_nodes,
    token_weights_nodes,
    trace_nodes,
)
from .input_validation import validated

_MODULES = (
    choosing_nodes,
    concepts_nodes,
    context_update_nodes,
    edit_nodes,
    inversion_nodes,
    repaint_nodes,
    schedule_nodes,
    sweep_nodes,
    token_weights_nodes,
    trace_nodes,
)
NODES = [validated(node) for module in _MODULES for node in module.NODES]
