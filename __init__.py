"""ComfyUI nodes for Energy-Based Cross Attention (Park et al., NeurIPS 2023)."""

from __future__ import annotations

import logging

from comfy_api.latest import ComfyExtension

__version__ = "0.1.0"
WEB_DIRECTORY = "./web"

log = logging.getLogger("ebca")


class EBCAExtension(ComfyExtension):
    async def get_node_list(self):
        from .nodes import NODES

        log.info("Energy-Based Cross Attention %s: %d nodes", __version__, len(NODES))
        return NODES


async def comfy_entrypoint() -> EBCAExtension:
    return EBCAExtension()
