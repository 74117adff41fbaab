"""Short texts that ComfyUI shows on a node of the graph, while it runs and afterwards."""

from __future__ import annotations


def show_on_node(node_id: str | None, text: str) -> None:
    """Show a text on a node; nothing where there is no server, or the node's id is not known."""
    if node_id is None:
        return
    from server import PromptServer  # part of a running ComfyUI only

    server = getattr(PromptServer, "instance", None)
    if server is not None:
        server.send_progress_text(text, node_id)
