"""How far an edited picture is from its photo, by networks that are at hand: nothing is downloaded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor
from torch.nn import functional

IMAGENET_MEAN, IMAGENET_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def values_of(image: Image.Image) -> Tensor:
    """[1, 3, h, w], 0..1"""
    return rearrange(torch.from_numpy(np.asarray(image.convert("RGB"), np.float32) / 255), "h w c -> 1 c h w")


class StructureDistance:
    """Mean squared difference of the self-similarity of DINO's keys (Tumanyan et al. 2022, "Splicing ViT Features").

    The keys of all tokens in the last layer, heads joined, are compared with each other by cosine: [n, n] of a picture.

    folder: a vision transformer of transformers, say a copy of facebook/dino-vitb8.
    """

    def __init__(self, folder: Path):
        from transformers import ViTModel

        self._model = ViTModel.from_pretrained(folder, add_pooling_layer=False, local_files_only=True).eval()
        # transformers 5 names it k_proj, 4 key.
        keys = [part for name, part in self._model.named_modules() if name.endswith((".k_proj", ".key"))][-1]
        keys.register_forward_hook(lambda part, inputs, output: setattr(self, "_keys", output))

    def __call__(self, photo: Image.Image, edited: Image.Image) -> float:
        return float(functional.mse_loss(self._similarity(edited), self._similarity(photo)))

    @torch.inference_mode()
    def _similarity(self, image: Image.Image) -> Tensor:
        """[1, n, n]"""
        side = self._model.config.image_size
        pixels = values_of(image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC))
        mean, deviation = (torch.tensor(of).view(3, 1, 1) for of in (IMAGENET_MEAN, IMAGENET_DEVIATION))
        self._model(pixel_values=(pixels - mean) / deviation)
        keys = functional.normalize(self._keys, dim=-1)  # [1, n, h*d]
        return keys @ keys.mT


#: AlexNet's convolutions as torchvision numbers them, with their stride and padding; two follow a pooling of 3 by 2.
CONVOLUTIONS = {0: (4, 2), 3: (1, 2), 6: (1, 1), 8: (1, 1), 10: (1, 1)}
POOLED = (3, 6)
#: LPIPS' own, of values from -1 to 1.
LPIPS_MEAN, LPIPS_DEVIATION = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


class Lpips:
    """LPIPS 0.1 on AlexNet (Zhang et al. 2018): weighted squared differences of features of length 1, over five layers.

    alexnet: torchvision's weights, alexnet-owt-7be5be79.pth. linear: LPIPS' own, weights/v0.1/alex.pth.
    """

    def __init__(self, alexnet: Path, linear: Path):
        features = torch.load(alexnet, map_location="cpu", weights_only=True)
        self._layers = {n: (features[f"features.{n}.weight"], features[f"features.{n}.bias"]) for n in CONVOLUTIONS}
        weights = torch.load(linear, map_location="cpu", weights_only=True)
        self._weights = [weights[f"lin{i}.model.1.weight"] for i in range(len(CONVOLUTIONS))]  # each [1, c, 1, 1]

    @torch.inference_mode()
    def __call__(self, first: Tensor, second: Tensor) -> float:
        """The distance between two pictures [1, 3, h, w], 0..1."""
        layers = zip(self._features(first), self._features(second), self._weights)
        return float(sum(((a - b).square() * weight).sum(1).mean() for a, b, weight in layers))

    def _features(self, image: Tensor) -> list[Tensor]:
        mean, deviation = (torch.tensor(of).view(3, 1, 1) for of in (LPIPS_MEAN, LPIPS_DEVIATION))
        values, found = (2 * image - 1 - mean) / deviation, []
        for number, (stride, padding) in CONVOLUTIONS.items():
            if number in POOLED:
                values = functional.max_pool2d(values, 3, 2)
            values = functional.conv2d(values, *self._layers[number], stride=stride, padding=padding).relu()
            found.append(values / (values.norm(dim=1, keepdim=True) + 1e-10))
        return found


def background_error(lpips: Lpips, photo: Image.Image, edited: Image.Image, mask: Image.Image) -> float:
    """LPIPS of what lies outside the mask: inside it (white) both are the photo."""
    inside = values_of(mask) > 0.5
    original = values_of(photo)
    return lpips(original, torch.where(inside, original, values_of(edited)))
