"""What users wire. Each file ends in the list of its nodes."""

from __future__ import annotations

from . import context_update, edit, inversion, repaint, schedule, sweep, token_weights, trace

NODES = [
    *context_update.NODES,
    *edit.NODES,
    *inversion.NODES,
    *repaint.NODES,
    *schedule.NODES,
    *sweep.NODES,
    *token_weights.NODES,
    *trace.NODES,
]
