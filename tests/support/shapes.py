"""The shapes models of `demo/`, as a user gets them."""

import asyncio
from pathlib import Path
from types import ModuleType

DEMO = Path(__file__).resolve().parents[2] / "demo"
CHECKPOINT = DEMO / "shapes.safetensors"
#: The trained models by their architectures.
CHECKPOINTS = {
    "unet": CHECKPOINT,
    "transformer": DEMO / "shapes_transformer.safetensors",
    "joint": DEMO / "shapes_joint.safetensors",
}


def load(nodes: ModuleType, checkpoint: Path = CHECKPOINT) -> tuple:
    """MODEL, CLIP and VAE: companion pack in place, then CheckpointLoaderSimple."""
    import folder_paths

    assert asyncio.run(nodes.load_custom_node(str(DEMO / "shapes_family")))
    folder_paths.add_model_folder_path("checkpoints", str(checkpoint.parent))
    return nodes.CheckpointLoaderSimple().load_checkpoint(checkpoint.name)
