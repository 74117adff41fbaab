"""EBCA Sweep: one run for each pair, through ComfyUI's own executor, and a grid that says which is which."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from support import toy
from support.host import PromptError, node
from support.log_messages import refused


def sweep(comfy, **inputs):
    return node(comfy, "EBCASweep").execute(**inputs)


def test_every_x_goes_with_every_y(comfy):
    x, y, made = sweep(comfy, x_values="0, 0.01; 0.5", y_values="1\n2")
    assert list(zip(x, y)) == [(0, 1), (0.01, 1), (0.5, 1), (0, 2), (0.01, 2), (0.5, 2)]
    assert made.pairs == list(zip(x, y))


def test_without_y_values_there_is_one_row(comfy):
    x, y, _ = sweep(comfy, x_values="0.1, 0.2", y_values="")
    assert (x, y) == ([0.1, 0.2], [0.0, 0.0])


@pytest.mark.parametrize(
    ("inputs", "parts"),
    [
        (dict(x_values="0, one"), ("x_values", "'0, one'")),
        (dict(x_values=" "), ("x_values", "empty")),
        (dict(x_values=",".join("1" * 21), y_values=",".join("1" * 20)), ("400", "420")),
        (dict(x_values="0, nan"), ("x_values", "nan")),
    ],
)
def test_values_that_cannot_be_swept_are_refused(comfy, inputs, parts):
    refused(lambda: sweep(comfy, **inputs), *parts)


# --- through the executor --------------------------------------------------------------------------------------------


@pytest.fixture
def graph(comfy, monkeypatch):
    """A prompt with a sweep between a toy model and a grid; toy_model gives the parts of a checkpoint."""
    from comfy_api.latest import io

    class ToyModel(io.ComfyNode):
        @classmethod
        def define_schema(cls):
            outputs = [io.Model.Output(), io.Conditioning.Output(), io.Conditioning.Output(), io.Vae.Output()]
            return io.Schema(node_id="ToyModel", category="test", inputs=[], outputs=outputs)

        @classmethod
        def execute(cls):
            return io.NodeOutput(toy.model(), toy.conditioning(1), toy.conditioning(99), toy.vae())

    ToyModel.GET_SCHEMA()
    monkeypatch.setitem(comfy.NODE_CLASS_MAPPINGS, "ToyModel", ToyModel)
    return {
        "toy": {"class_type": "ToyModel", "inputs": {}},
        "latent": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 2}},
        "sweep": {
            "class_type": "EBCASweep",
            "inputs": dict(x_name="gamma_attn", x_values="0, 0.05, 0.4", y_name="gamma_norm", y_values="0, 0.1"),
        },
        "update": {
            "class_type": "EBCAContextUpdate",
            "inputs": dict(
                model=["toy", 0], gamma_attn=["sweep", 0], gamma_norm=["sweep", 1], start_percent=0.0, end_percent=1.0
            ),
        },
        "sampler": {
            "class_type": "KSampler",
            "inputs": dict(
                model=["update", 0], positive=["toy", 1], negative=["toy", 2], latent_image=["latent", 0], seed=3,
                steps=2, cfg=4.0, sampler_name="euler", scheduler="normal", denoise=1.0,
            ),
        },
        "decoded": {"class_type": "VAEDecode", "inputs": dict(samples=["sampler", 0], vae=["toy", 3])},
        "grid": {
            "class_type": "EBCASweepGrid",
            "inputs": dict(images=["decoded", 0], sweep=["sweep", 2], filename_prefix="sweep"),
        },
    }  # fmt: skip


def pictures(comfy, gamma_attn, gamma_norm):
    """What nodes called one after the other make for one pair: images [b, h, w, 3] of a byte a channel."""
    model = node(comfy, "EBCAContextUpdate").execute(model=toy.model(), gamma_attn=gamma_attn, gamma_norm=gamma_norm)[0]
    latent = node(comfy, "KSampler").execute(
        model=model, positive=toy.conditioning(1), negative=toy.conditioning(99), latent_image=toy.latent(2, 8, 8),
        seed=3, steps=2, cfg=4.0, sampler_name="euler", scheduler="normal", denoise=1.0,
    )[0]  # fmt: skip
    decoded = node(comfy, "VAEDecode").execute(samples=latent, vae=toy.vae())[0]
    return (decoded.clamp(0, 1) * 255).round().to(torch.uint8).numpy()


def saved(outputs):
    import folder_paths

    return [
        Image.open(f"{folder_paths.get_output_directory()}/{one['subfolder']}/{one['filename']}")
        for one in outputs["grid"]["images"]
    ]


def test_cells_are_the_pictures_of_runs_one_by_one(comfy, graph, run_prompt):
    grids = saved(run_prompt(graph))
    assert len(grids) == 2  # the batch
    found = [np.asarray(grid.convert("RGB")).astype(int) for grid in grids]
    side, gap, label = 192, 6, 40  # 64 pixels three times as large
    left = found[0].shape[1] - 3 * (side + gap)
    for row, gamma_norm in enumerate([0.0, 0.1]):
        for column, gamma_attn in enumerate([0.0, 0.05, 0.4]):
            top, start = label + row * (side + gap), left + column * (side + gap)
            for image, expected in enumerate(pictures(comfy, gamma_attn, gamma_norm)):
                cell = found[image][top : top + side : 3, start : start + side : 3]
                assert np.abs(cell - expected).max() <= 1  # saved pictures are cut off, not rounded
    corners = [found[0][label : label + side, start : start + side] for start in (left, left + side + gap)]
    assert np.abs(corners[0] - corners[1]).max() > 2  # the cells do differ


def test_picture_carries_the_settings(graph, run_prompt):
    settings = json.loads(saved(run_prompt(graph))[0].text["ebca_sweep"])
    assert settings == {
        "x_name": "gamma_attn", "x_values": [0.0, 0.05, 0.4], "y_name": "gamma_norm", "y_values": [0.0, 0.1],
    }  # fmt: skip


def test_picture_carries_nothing_where_metadata_are_off(graph, run_prompt, monkeypatch):
    from comfy.cli_args import args

    monkeypatch.setattr(args, "disable_metadata", True)
    assert not saved(run_prompt(graph))[0].text


def test_grid_without_all_of_its_images_is_refused(graph, run_prompt):
    graph["update"]["inputs"] |= dict(gamma_attn=0.1, gamma_norm=0.1)
    with pytest.raises(PromptError, match="The sweep has 6 pairs, but 1 images arrived"):
        run_prompt(graph)


def test_large_grids_are_made_smaller(comfy, pack, monkeypatch):
    from importlib import import_module

    module = import_module(f"{pack.__name__}.plots.sweep_grid")
    monkeypatch.setattr(module, "MOST_PIXELS", 6 * 100 * 200)
    cells = [torch.rand(1, 200, 400, 3)] * 6
    grid = module.sweep_grid(cells, module.Sweep("x", [1, 2, 3], "y", [1, 2]))
    assert grid.shape[1] * grid.shape[2] < 2 * 6 * 100 * 200
