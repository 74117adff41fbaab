"""What users wire. Each file ends in the list of its nodes."""

from __future__ import annotations

from . import context_update, edit, inversion, repaint, token_weights, trace

NODES = [*context_update.NODES, *edit.NODES, *inversion.NODES, *repaint.NODES, *token_weights.NODES, *trace.NODES]
