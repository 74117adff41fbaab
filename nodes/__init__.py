"""What users wire. Each file ends in the list of its nodes."""

from __future__ import annotations

from . import context_update, edit, inversion, repaint, schedule, sweep, token_weights, trace
from .wires import checked

_MODULES = (context_update, edit, inversion, repaint, schedule, sweep, token_weights, trace)
NODES = [checked(node) for module in _MODULES for node in module.NODES]
