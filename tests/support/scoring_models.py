"""Tiny models of random weights in the layouts of those that score pictures."""

from pathlib import Path

import torch

TRANSFORMER = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
VISION = dict(image_size=32, patch_size=8)


def clip_folder(root: Path, comfyui_root: Path) -> Path:
    """A CLIP, with the tokenizer that ComfyUI ships."""
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    torch.manual_seed(0)
    config = CLIPConfig(text_config=TRANSFORMER, vision_config={**TRANSFORMER, **VISION}, projection_dim=8)
    CLIPModel(config).save_pretrained(root)
    CLIPTokenizer.from_pretrained(comfyui_root / "comfy" / "sd1_tokenizer").save_pretrained(root)
    return root


def dino_folder(root: Path) -> Path:
    """A vision transformer as DINO is."""
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(0)
    ViTModel(ViTConfig(**TRANSFORMER, **VISION), add_pooling_layer=False).save_pretrained(root)
    return root


def lpips_files(root: Path) -> tuple[Path, Path]:
    """Torchvision's AlexNet without its classifier, and LPIPS' weights of its five layers."""
    torch.manual_seed(0)
    widths, kernels = (3, 64, 192, 384, 256, 256), (11, 5, 3, 3, 3)
    alexnet, linear = {}, {}
    for i, (number, kernel) in enumerate(zip((0, 3, 6, 8, 10), kernels)):
        alexnet[f"features.{number}.weight"] = torch.randn(widths[i + 1], widths[i], kernel, kernel) * 0.05
        alexnet[f"features.{number}.bias"] = torch.randn(widths[i + 1]) * 0.1
        linear[f"lin{i}.model.1.weight"] = torch.rand(1, widths[i + 1], 1, 1)
    files = root / "alexnet.pth", root / "alex.pth"
    torch.save(alexnet, files[0])
    torch.save(linear, files[1])
    return files
