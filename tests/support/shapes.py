"""The shapes model of `demo/` as a user gets it."""

import asyncio
from pathlib import Path
from types import ModuleType

DEMO = Path(__file__).resolve().parents[2] / "demo"
CHECKPOINT = DEMO / "shapes.safetensors"


def load(nodes: ModuleType, checkpoint: Path = CHECKPOINT) -> tuple:
    """MODEL, CLIP and VAE: companion pack in place, then CheckpointLoaderSimple."""
    import folder_paths

    assert asyncio.run(nodes.load_custom_node(str(DEMO / "shapes_family")))
    folder_paths.add_model_folder_path("checkpoints", str(checkpoint.parent))
    return nodes.CheckpointLoaderSimple().load_checkpoint(checkpoint.name)
