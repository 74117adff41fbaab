"""A mask on an edit: outside it every layer answers as without the edit, and a noise mask holds the picture itself."""
from __future__ import annotations

import pytest
import torch
from comfy.ldm.modules.attention import CrossAttention, optimized_attention
from einops import rearrange

from ebca_core import mask_on_grid
from support import toy
from support.host import node
from support.sampling import relative_error, sample

POSITIVE = toy.conditioning(1)
HEIGHT, WIDTH = 16, 24


def region():
    mask = torch.zeros(1, HEIGHT, WIDTH)
    mask[:, 2:9, 5:14] = 1
    return mask


def edited(comfy, mask, gamma=0.0005):
    edits = {}
    for i, (direction, alpha) in enumerate([("add", 0.9), ("remove", 0.6)]):
        (edits[f"edit{i}"],) = node(comfy, "EBCAEditContext").execute(
            conditioning=toy.conditioning(2 + i), direction=direction, alpha=alpha, start_percent=0.0,
            gamma_attn=gamma, gamma_norm=gamma, gamma_start_percent=0.0, mask=mask,
        )  # fmt: skip
    return node(comfy, "EBCACompose").execute(model=toy.model(), edits=edits)[0]


class Layers:
    """Records, of every cross-attention layer, the queries and what goes into its output projection."""

    def __init__(self, model):
        self._modules = [block.attn2 for block in model.model.diffusion_model.modules() if hasattr(block, "attn2")]
        self.seen: list[tuple[CrossAttention, torch.Tensor, torch.Tensor]] = []

    def __enter__(self):
        self._hooks, queries = [], {}
        for layer in self._modules:
            self._hooks += [
                layer.to_q.register_forward_hook(lambda _, args, q, layer=layer: queries.update({layer: q})),
                layer.to_out.register_forward_pre_hook(
                    lambda _, args, layer=layer: self.seen.append((layer, queries[layer], args[0]))
                ),
            ]
        return self

    def __exit__(self, *_):
        for hook in self._hooks:
            hook.remove()


def main_output(layer, queries):
    """What the layer gives for the prompt alone."""
    text = POSITIVE[0][0]
    return optimized_attention(queries, layer.to_k(text), layer.to_v(text), layer.heads)


@pytest.mark.parametrize("gamma", [0.0, 0.0005])
def test_outside_the_mask_every_layer_gives_its_main_output_exactly(comfy, gamma):
    mask, model = region(), edited(comfy, region(), gamma)
    with Layers(model) as layers, torch.inference_mode():
        sample(model, POSITIVE, latent=toy.latent(1, HEIGHT, WIDTH), cfg=1.0)
        assert len(layers.seen) == 4 * len({layer for layer, *_ in layers.seen})
        for layer, queries, out in layers.seen:
            scale = (HEIGHT * WIDTH / queries.shape[1]) ** 0.5
            grid = (round(HEIGHT / scale), round(WIDTH / scale))
            outside = rearrange(mask_on_grid(mask, grid), "1 n 1 -> n") == 0
            main = main_output(layer, queries)
            assert torch.equal(out[0, outside], main[0, outside])
            assert relative_error(out[0, ~outside], main[0, ~outside]) > 1e-3


def test_without_a_mask_every_layer_differs_everywhere(comfy):
    model = edited(comfy, None)
    with Layers(model) as layers, torch.inference_mode():
        sample(model, POSITIVE, latent=toy.latent(1, HEIGHT, WIDTH), cfg=1.0)
        assert all((out != main_output(layer, queries)).any(dim=-1).all() for layer, queries, out in layers.seen)


def test_pixels_outside_move_and_a_noise_mask_holds_them(comfy):
    mask, model = region(), edited(comfy, region())
    outside = mask[:, None].expand(1, 4, HEIGHT, WIDTH) == 0
    picture = sample(toy.model(), POSITIVE, latent=toy.latent(1, HEIGHT, WIDTH))
    moved = sample(model, POSITIVE, latent=toy.latent(1, HEIGHT, WIDTH))
    held = sample(model, POSITIVE, latent={"samples": picture, "noise_mask": mask})
    assert not torch.equal(moved[outside], picture[outside])
    assert torch.allclose(held[outside], picture[outside], rtol=1e-6, atol=1e-6)
    assert not torch.allclose(held[~outside], picture[~outside], rtol=0.01)
