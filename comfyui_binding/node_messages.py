"""Short texts that ComfyUI shows on a node of the graph, while it runs and afterwards."""

from __future__ import annotations

import sys


def show_on_node(node_id: str | None, text: str) -> None:
    """Show a text on a node; nothing where there is no server, or the node's id is not known."""
    module = sys.modules.get("server")  # a running ComfyUI has it
    server = getattr(getattr(module, "PromptServer", None), "instance", None)
    if node_id is not None and server is not None:
        server.send_progress_text(text, node_id)
