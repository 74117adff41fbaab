"""The attention of the positive half to the objects of a caption, in every call of the shapes model's U-Net."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from comfy.ldm.modules.attention import SpatialTransformer
from einops import rearrange
from torch import Tensor

from alignment.methods import guided, marked, pictures
from alignment.settings import Method
from baselines.attend_and_excite import losses
from shapes.grammar import Scene
from shapes_model import ShapesModel, pack_module

POSITIVE = 0  # in ComfyUI's cond_or_uncond
LOSS_SIDE = 8  # of the layers that Attend-and-Excite reads


class Maps(NamedTuple):
    """Of one layer, means over its heads.

    attention [b, n, t]: softmax over tokens; places [b, n, t]: softmax over pixels, which the context update assumes to
    have one mode.
    """

    attention: Tensor
    places: Tensor

    @classmethod
    def of(cls, q: Tensor, k: Tensor, heads: int) -> Maps:
        """q [b, n, (h d)], k [b, t, (h d)]."""
        q, k = (rearrange(x.float(), "b n (h d) -> b h n d", h=heads) for x in (q, k))
        logits = q @ k.mT / q.shape[-1] ** 0.5
        return cls(logits.softmax(-1).mean(1), logits.softmax(-2).mean(1))


class Recorder:
    """An attn2_patch: keeps the maps of each call, {side of the grid: means over its layers}."""

    def __init__(self, unet: torch.nn.Module):
        self.calls: list[dict[int, list[Maps]]] = []
        self._layers = {
            (side, number): part.transformer_blocks[0].attn2
            for side, blocks in (("input", unet.input_blocks), ("middle", [unet.middle_block]),
                                 ("output", unet.output_blocks))
            for number, block in enumerate(blocks) for part in block if isinstance(part, SpatialTransformer)
        }  # fmt: skip

    def applied_to(self, model):
        """A clone of the model that is recorded."""
        model = model.clone()
        model.set_model_attn2_patch(lambda n, context, value, options: self._read(n, context, value, options))
        return model

    def _read(self, n: Tensor, context: Tensor, value: Tensor, options: dict):
        halves = options["cond_or_uncond"]
        if POSITIVE in halves and not torch.is_grad_enabled():  # Attend-and-Excite's own calls have gradients
            row = halves.index(POSITIVE)
            x, text = (tensor.chunk(len(halves))[row] for tensor in (n, context))
            layer = self._layers[options["block"]]
            q, k = layer.to_q(x), layer.to_k(text)
            if layer is next(iter(self._layers.values())):
                self.calls.append(defaultdict(list))
            with torch.autocast("cpu", enabled=False):
                self.calls[-1][int(q.shape[1] ** 0.5)].append(Maps.of(q, k, layer.heads))
        return n, context, value

    def means(self) -> list[dict[int, Maps]]:
        """Of each call, by the side of the grid: means over the layers."""
        return [
            {side: Maps(*(torch.stack(one).mean(0) for one in zip(*layers))) for side, layers in call.items()}
            for call in self.calls
        ]


@dataclass(frozen=True)
class Recorded:
    """Pictures [b h w 3]; by the side of a grid the maps [b, call, object, n], sums over an object's tokens; loss
    [b, call]: Attend-and-Excite's, of the nouns."""

    images: np.ndarray
    attention: dict[int, np.ndarray]
    places: dict[int, np.ndarray]
    loss: np.ndarray


def record(shapes: ShapesModel, method: Method, scenes: Sequence[Scene], seeds: Sequence[int]) -> Recorded:
    """Sample a batch and keep the maps of its objects."""
    with torch.no_grad():
        way = guided(shapes, method, scenes)
        recorder = Recorder(shapes.model.get_model_object("diffusion_model"))
        images = pictures(shapes, way, seeds, recorder.applied_to(way.model))
        calls, tokens = recorder.means(), object_tokens(shapes, scenes)
        nouns, words = marked(shapes, scenes, "shapes"), marked(shapes, scenes, "words")
        loss = [losses(call[LOSS_SIDE].attention.unflatten(1, (LOSS_SIDE, LOSS_SIDE)), nouns, words) for call in calls]
    kept = {
        name: {side: _of_objects([getattr(call[side], name) for call in calls], tokens) for side in calls[0]}
        for name in Maps._fields
    }
    return Recorded(images, **kept, loss=torch.stack(loss, 1).numpy())


def _of_objects(calls: Sequence[Tensor], tokens: Tensor) -> np.ndarray:
    """Sums over each object's tokens: [b, n, t] of each call -> [b, call, object, n]."""
    return torch.einsum("cbnt,bot->bcon", torch.stack(calls), tokens).numpy()


def object_tokens(shapes: ShapesModel, scenes: Sequence[Scene]) -> Tensor:
    """1 for the tokens [b, object, t] of each object's colour and shape in its caption."""
    find = pack_module("comfyui_binding.trace.word_positions").positions_of_words
    rows = []
    for scene in scenes:
        phrases = [wanted.words(article=False) for wanted in scene.objects]
        positions, prompt = find(shapes.clip, scene.caption(), ", ".join(phrases))
        row = torch.zeros(len(phrases), prompt.length)
        for each, phrase in zip(row, phrases, strict=True):
            each[positions[phrase]] = 1
        rows.append(row)
    return torch.stack(rows)
