"""ComfyUI nodes for Energy-Based Cross Attention (Park et al., NeurIPS 2023)."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension

WEB_DIRECTORY = "./web"


class EBCAExtension(ComfyExtension):
    async def get_node_list(self):
        from .nodes import NODES

        return NODES


async def comfy_entrypoint() -> EBCAExtension:
    return EBCAExtension()
