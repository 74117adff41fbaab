"""The attention of the positive half to the objects of a caption, in every call of a trained model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import comfy.samplers
import numpy as np
import torch
from comfy.ldm.modules.attention import SpatialTransformer
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.patcher_extension import WrappersMP
from einops import rearrange
from torch import Tensor

from alignment.methods import guided, marked, pictures
from alignment.settings import Method
from baselines.attend_and_excite import losses
from choosing.settings import FINE
from shapes.grammar import Scene
from small_model import SmallModel, pack_module

POSITIVE = 0  # in ComfyUI's cond_or_uncond
LOSS_SIDE = FINE  # of the layers that Attend-and-Excite reads
#: The dimension of [b, h, n, t] that a map's softmax is over: tokens, or pixels, where the update assumes one mode.
OVER = {"attention": -1, "places": -2}
Maps = dict[str, Tensor]
"""{a name of OVER: [b, n, t], mean over the heads of a layer}"""


def maps_of(q: Tensor, k: Tensor, heads: int, names: Iterable[str]) -> Maps:
    """q [b, n, (h d)], k [b, t, (h d)] of a layer."""
    q, k = (rearrange(x.float(), "b n (h d) -> b h n d", h=heads) for x in (q, k))
    logits = q @ k.mT / q.shape[-1] ** 0.5
    return {name: logits.softmax(OVER[name]).mean(1) for name in names}


class Recorder:
    """Keeps the maps of one prompt in each call, {side of the grid: those of its layers}.

    text [b, t, c]: the encoded prompt, by which its rows are known among those of a call. is_tuning: whether all maps
    of all grids are kept, and not only the attention of FINE.
    """

    def __init__(self, text: Tensor, is_tuning: bool = True):
        self.calls: list[dict[int, list[Maps]]] = []
        self._text = text
        self._row: int | None = None
        self._is_tuning = is_tuning

    def applied_to(self, model):
        """A clone of the model that is recorded."""
        raise NotImplementedError

    def begin(self, context: Tensor, options: dict) -> None:
        """A call of the network starts: find the prompt among the equal parts of its text, if it has it."""
        halves = options["cond_or_uncond"]
        parts = enumerate(zip(halves, context.chunk(len(halves)), strict=True))
        found = (row for row, (half, part) in parts if half == POSITIVE and torch.equal(part, self._text))
        self._row = None if torch.is_grad_enabled() else next(found, None)  # Attend-and-Excite's own have gradients
        if self._row is not None:
            self.calls.append(defaultdict(list))

    def of_prompt(self, both: Sequence[Tensor], options: dict) -> list[Tensor] | None:
        """The prompt's part of a layer's image tokens and text; None in calls and layers that are not kept."""
        parts, is_kept = len(options["cond_or_uncond"]), self._is_tuning or both[0].shape[1] == FINE**2
        return [tensor.chunk(parts)[self._row] for tensor in both] if is_kept and self._row is not None else None

    def keep(self, q: Tensor, k: Tensor, heads: int) -> None:
        """q [b, n, (h d)], k [b, t, (h d)] of a layer."""
        names = OVER if self._is_tuning else ("attention",)
        with torch.autocast("cpu", enabled=False):
            self.calls[-1][int(q.shape[1] ** 0.5)].append(maps_of(q, k, heads, names))

    def means(self) -> list[dict[int, Maps]]:
        """Of each call, by the side of the grid: means over the layers."""
        return [
            {
                side: {name: torch.stack([maps[name] for maps in layers]).mean(0) for name in layers[0]}
                for side, layers in call.items()
            }
            for call in self.calls
        ]


class UNetRecorder(Recorder):
    """As an attn2_patch."""

    def __init__(self, unet: UNetModel, text: Tensor, is_tuning: bool = True):
        super().__init__(text, is_tuning)
        self._layers = {
            (side, number): part.transformer_blocks[0].attn2
            for side, blocks in (("input", unet.input_blocks), ("middle", [unet.middle_block]),
                                 ("output", unet.output_blocks))
            for number, block in enumerate(blocks) for part in block if isinstance(part, SpatialTransformer)
        }  # fmt: skip

    def applied_to(self, model):
        model = model.clone()
        model.set_model_attn2_patch(lambda n, context, value, options: self._read(n, context, value, options))
        return model

    def _read(self, n: Tensor, context: Tensor, value: Tensor, options: dict):
        layer = self._layers[options["block"]]
        if layer is next(iter(self._layers.values())):
            self.begin(context, options)
        if found := self.of_prompt((n, context), options):
            x, text = found
            self.keep(layer.to_q(x), layer.to_k(text), layer.heads)
        return n, context, value


class TransformerRecorder(Recorder):
    """As hooks on the layers of a MiniTrainDIT, during each call."""

    def __init__(self, network: torch.nn.Module, text: Tensor, is_tuning: bool = True):
        super().__init__(text, is_tuning)
        self._layers = [block.cross_attn for block in network.blocks]

    def applied_to(self, model):
        model = model.clone()
        model.add_wrapper(WrappersMP.DIFFUSION_MODEL, lambda *args, **kwargs: self._call(*args, **kwargs))
        return model

    def _call(self, executor: Any, *args: Any, **kwargs: Any) -> Tensor:
        with ExitStack() as hooks:
            for layer in self._layers:  # before hooks that give it another text
                handle = layer.register_forward_pre_hook(self._read, with_kwargs=True, prepend=True)
                hooks.callback(handle.remove)
            return executor(*args, **kwargs)

    def _read(self, layer: torch.nn.Module, args: tuple, kwargs: dict) -> None:
        options = kwargs["transformer_options"]
        if layer is self._layers[0]:
            self.begin(args[1], options)
        if found := self.of_prompt(args, options):
            q, k, _ = layer.compute_qkv(*found)
            self.keep(q.flatten(2), k.flatten(2), layer.n_heads)


def recorder_of(network: torch.nn.Module, text: Tensor, is_tuning: bool) -> Recorder:
    return (UNetRecorder if isinstance(network, UNetModel) else TransformerRecorder)(network, text, is_tuning)


@dataclass(frozen=True)
class Recorded:
    """Pictures [b h w 3]; by the side of a grid the maps [b, call, object, n], sums over an object's tokens; loss
    [b, call]: Attend-and-Excite's, of the nouns. places: only of a tuning."""

    images: np.ndarray
    attention: dict[int, np.ndarray]
    loss: np.ndarray
    places: dict[int, np.ndarray] = field(default_factory=dict)


def record(
    shapes: SmallModel, method: Method, scenes: Sequence[Scene], seeds: Sequence[int], preview_steps: int = 0,
    is_tuning: bool = False,
) -> Recorded:  # fmt: skip
    """Sample a batch and keep the maps of its objects.

    preview_steps: of a run that only judges, 0 for all; is_tuning: as of Recorder.
    """
    with torch.no_grad():
        way = guided(shapes, method, scenes)
        if preview_steps:
            way = replace(way, sampler=way.sampler | {"sigmas": preview(shapes, way.sampler, preview_steps)})
        ((text, _),) = shapes.encode([scene.caption() for scene in scenes])
        recorder = recorder_of(shapes.model.get_model_object("diffusion_model"), text, is_tuning)
        images = pictures(shapes, way, seeds, recorder.applied_to(way.model))
        calls, tokens = recorder.means(), object_tokens(shapes, scenes)
        nouns, words = marked(shapes, scenes, "shapes"), marked(shapes, scenes, "words")
        read = [call[LOSS_SIDE]["attention"].unflatten(1, (LOSS_SIDE, LOSS_SIDE)) for call in calls]
        loss = [losses(attention, nouns, words) for attention in read]
    kept = {
        name: {side: _of_objects([call[side][name] for call in calls], tokens) for side in calls[0]}
        for name in calls[0][LOSS_SIDE]
    }
    return Recorded(images, **kept, loss=torch.stack(loss, 1).numpy())


def preview(shapes: SmallModel, sampler: Mapping[str, Any], steps: int) -> Tensor:
    """The sigmas of EBCA Reroll's preview of a run."""
    sampling = shapes.model.get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(sampling, sampler["scheduler"], sampler["steps"])
    return pack_module("comfyui_binding.samplers.reroll").preview(sigmas, steps)


def _of_objects(calls: Sequence[Tensor], tokens: Tensor) -> np.ndarray:
    """Sums over each object's tokens: [b, n, t] of each call -> [b, call, object, n]."""
    return torch.einsum("cbnt,bot->bcon", torch.stack(calls), tokens).numpy()


def object_tokens(shapes: SmallModel, scenes: Sequence[Scene]) -> Tensor:
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
