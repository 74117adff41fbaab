"""How much a picture looks like its prompt, by CLIP. Needs `transformers`, which ComfyUI brings along."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

MEAN, DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # of CLIP's training


def concepts(prompt: str) -> list[str]:
    """The two halves of a prompt of Attend-and-Excite: "a cat" and "a dog" of "a cat and a dog"."""
    halves = re.split(r" and | with ", prompt)
    if len(halves) != 2:
        raise ValueError(f"Expected two concepts with one 'and' or 'with' between them, but got '{prompt}'.")
    return halves


class ClipSimilarity:
    """folder: a CLIP model of transformers, a folder or the name of a model that it downloads."""

    def __init__(self, folder: str):
        try:
            from transformers import CLIPModel, CLIPTokenizer
        except ImportError:
            raise SystemExit("CLIP scores need the package transformers: pip install transformers") from None
        try:
            self._model = CLIPModel.from_pretrained(folder).eval()
            self._tokenizer = CLIPTokenizer.from_pretrained(folder)
        except (OSError, ValueError) as error:  # no such model, or no network
            wanted = "the folder or the name of a CLIP model of transformers"
            raise SystemExit(f"Expected {wanted}, got {folder}: {error}") from None

    @torch.inference_mode()
    def __call__(self, image: Image.Image, texts: Sequence[str]) -> list[float]:
        """Cosines between a picture and each text."""
        tokens = self._tokenizer(list(texts), padding=True, return_tensors="pt")
        out = self._model(**tokens, pixel_values=self._pixels(image))
        return torch.nn.functional.cosine_similarity(out.image_embeds, out.text_embeds).tolist()

    def _pixels(self, image: Image.Image) -> torch.Tensor:
        """[1, 3, s, s] as CLIP was trained: the shorter side to s, the middle cut out, normalised."""
        side = self._model.config.vision_config.image_size
        scale = side / min(image.size)
        size = [max(side, int(length * scale)) for length in image.size]
        image = image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
        left, top = ((length - side) // 2 for length in size)
        values = np.asarray(image.crop((left, top, left + side, top + side)), np.float32) / 255
        return torch.from_numpy((values - np.float32(MEAN)) / np.float32(DEVIATION)).permute(2, 0, 1)[None]


def scores(similarity: ClipSimilarity, image: Image.Image, prompt: str) -> dict[str, float]:
    """full: to the whole prompt; minimum: to the concept that the picture is less like (as in Attend-and-Excite)."""
    full, *each = similarity(image, [prompt, *concepts(prompt)])
    return {"full": full, "minimum": min(each)}
