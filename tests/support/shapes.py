"""The shapes models of `demo/`: the U-Net as a user gets it, the transformer as its training begins."""

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


def write_transformer(path: Path) -> None:
    """A checkpoint of the transformer with random weights and the U-Net's text encoder, as train.py writes it."""
    import torch
    from comfy.sd1_clip import SD1Tokenizer

    import comfy_host
    import train
    from shapes.grammar import WORDS

    vocabulary = SD1Tokenizer().clip_l.tokenizer.get_vocab()
    ids = [*(vocabulary[word + "</w>"] for word in WORDS), train.START, train.END]
    family, architecture = comfy_host.family(), train.ARCHITECTURES["transformer"]
    torch.manual_seed(0)
    model = train.Model(family, architecture, ids)
    train.initialise(model, architecture)
    for parameter in model.denoiser.parameters():  # no layer is left at zero
        parameter.data += 0.02 * torch.randn_like(parameter)
    train.load_text(model, family, ids, CHECKPOINT)
    train.export(model, family, ids, path)
