"""The nodes. Each file ends with the list of its nodes."""

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
