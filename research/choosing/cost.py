"""CPU time of a score with its attention maps, beside that of the call of the model that they are read from."""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import comfy.sample
import comfy.samplers
import numpy as np
import torch
from comfy.ldm.modules.attention import optimized_attention
from comfy.patcher_extension import WrappersMP
from torch import Tensor

import comfy_host
from baselines.layers import with_cross_attention
from ebca_core import attention_map, one_place_score
from small_model import SmallModel, pack_module

POSITIVE = 0  # in ComfyUI's cond_or_uncond
#: Tokens of three objects of two words each.
OBJECTS = ((2, 3), (6, 7), (10, 11))


class TimedCalls:
    """Calls of a U-Net, and the score of each read from all layers' maps: CPU seconds, in pairs."""

    def __init__(self):
        self.pairs: list[tuple[float, float]] = []
        self._layers: list[tuple[Tensor, Tensor, int]] = []

    def applied_to(self, model):
        """A clone of the model that is timed."""
        model = model.clone()
        unet = model.get_model_object("diffusion_model")
        model.model_options = with_cross_attention(model.model_options, unet, lambda *call: self._attend(*call))
        model.add_wrapper(WrappersMP.DIFFUSION_MODEL, lambda *args, **kwargs: self._call(*args, **kwargs))
        return model

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, options: dict) -> Tensor:
        halves = options["cond_or_uncond"]
        row = halves.index(POSITIVE)
        self._layers.append((*(x.chunk(len(halves))[row] for x in (k, q)), options["n_heads"]))
        return optimized_attention(q, k, v, options["n_heads"], attn_precision=options["attn_precision"])

    def _call(self, executor: Any, *args: Any, **kwargs: Any) -> Tensor:
        self._layers = []
        began = time.process_time()
        out = executor(*args, **kwargs)
        called = time.process_time()
        score_of(self._layers)
        self.pairs.append((called - began, time.process_time() - called))
        return out


def score_of(layers: Sequence[tuple[Tensor, Tensor, int]]) -> Tensor:
    """[b] of the keys [b, t, (h d)], queries [b, n, (h d)] and heads of all layers, as EBCA Rank reads them."""
    by_side = defaultdict(list)
    for keys, queries, heads in layers:
        by_side[round(queries.shape[1] ** 0.5)].append(attention_map(keys, queries, heads))
    means = [torch.stack(by_side[side]).mean(0).unflatten(2, (side, side)) for side in sorted(by_side)]
    trace = "comfyui_binding.trace"
    maps = pack_module(f"{trace}.trace_record").WordMaps(means, [len(by_side[side]) for side in sorted(by_side)])
    return one_place_score(pack_module(f"{trace}.object_maps").object_maps(maps, OBJECTS))


def shares(model: Any, shape: Sequence[int], positive: list, negative: list, calls: int) -> np.ndarray:
    """The score's time over its call's, of each call but the first; shape: of the latent."""
    timed = TimedCalls()
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    sigmas = torch.linspace(5.0, 1.0, calls + 2)
    with torch.no_grad():
        comfy.sample.sample_custom(
            timed.applied_to(model), noise, 3.0, comfy.samplers.sampler_object("euler"), sigmas, positive, negative,
            torch.zeros_like(noise), disable_pbar=True,
        )  # fmt: skip
    return np.array([score / call for call, score in timed.pairs[1:]])


def table(shapes: SmallModel, calls: int) -> str:
    """Of the shapes model, a batch of ten, and of a U-Net of SD 1.5's size with random weights, one image."""
    sys.path.append(str(comfy_host.REPO / "bench"))
    import random_models

    captions = ["a red circle, a blue square and a green star"] * 10
    lines = ["| model | score and maps, share of a call |", "|---|---|"]
    sd15, geometry = random_models.SD15.model(torch.float32), random_models.SD15
    large = [(sd15, (1, 4, side, side), geometry.conditioning(1), geometry.conditioning(2)) for side in (32, 64)]
    for name, arguments in (
        ("shapes model, 64 x 64, ten images", (shapes.model, (10, 3, 64, 64), *map(shapes.encode, (captions, [""])))),
        ("SD 1.5's U-Net, 256 x 256, one image", large[0]),
        ("SD 1.5's U-Net, 512 x 512, one image", large[1]),
    ):
        low, median, high = np.percentile(shares(*arguments, calls), (25, 50, 75))
        lines.append(f"| {name} | {100 * median:.2f} % ({100 * low:.2f} to {100 * high:.2f}) |")
        print(lines[-1], flush=True)
    return "\n".join(lines)
