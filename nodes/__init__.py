"""What users wire. Each file ends in the list of its nodes."""

from __future__ import annotations

from . import context_update, edit, inversion, token_weights

NODES = [*context_update.NODES, *edit.NODES, *inversion.NODES, *token_weights.NODES]
