"""EBCA and torch.compile, in both orders: compiled code is bypassed while EBCA is on, and runs while it is off."""
from __future__ import annotations

import functools
from dataclasses import replace

import pytest
import torch

from support import oracle, other_packs, toy
from support.host import node
from support.log_messages import messages
from support.other_packs import Scene
from support.sampling import relative_error

UPDATE = oracle.Update(0.01, 0.02)


class Backend:
    """Runs the traced graphs as they are, and counts the runs."""

    def __init__(self):
        self.runs = 0

    def __call__(self, graph, example_inputs, **options):
        def run(*args):
            self.runs += 1
            return graph(*args)

        return run


def core(comfy, model, backend):
    """Core's node; called directly it takes any backend."""
    return node(comfy, "TorchCompileModel").execute(model=model, backend=backend)[0]


def whole_unet(comfy, model, backend):
    """As other packs do it: the U-Net swapped for a compiled one."""
    model = model.clone()
    model.add_object_patch("diffusion_model", torch.compile(model.get_model_object("diffusion_model"), backend=backend))
    return model


def its_blocks(comfy, model, backend):
    """As other packs do it: every transformer of the U-Net swapped for a compiled one."""
    model = model.clone()
    for block in ("input_blocks.1", "middle_block", "output_blocks.1"):
        path = f"diffusion_model.{block}.1.transformer_blocks.0"
        model.add_object_patch(path, torch.compile(model.get_model_object(path), backend=backend))
    return model


WAYS = {"core's node": core, "the U-Net swapped": whole_unet, "blocks swapped": its_blocks}
COMPILE_FIRST, EBCA_FIRST = "compile first", "EBCA first"
CASES = [
    ("core's node", COMPILE_FIRST, False), ("core's node", COMPILE_FIRST, True), ("core's node", EBCA_FIRST, False),
    ("core's node", EBCA_FIRST, True), ("the U-Net swapped", COMPILE_FIRST, True),
    ("the U-Net swapped", EBCA_FIRST, True), ("blocks swapped", COMPILE_FIRST, True),
    ("blocks swapped", EBCA_FIRST, True),
]  # fmt: skip


@pytest.fixture(autouse=True)
def _fresh_traces():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def backend() -> Backend:
    return Backend()


def ebca(comfy, model, **window: float):
    return node(comfy, "EBCAContextUpdate").execute(
        model=model, gamma_attn=UPDATE.gamma_attn, gamma_norm=UPDATE.gamma_norm, **window
    )[0]


def small_scene() -> Scene:
    """One resolution, three cross-attention layers: tracing takes the time."""
    return replace(other_packs.scene(), model=_small_model())


@functools.cache
def _small_model():
    sizes = dict(channel_mult=[1], num_res_blocks=[1], transformer_depth=[1], transformer_depth_output=[1, 0])
    return toy.model(**sizes)


def on(scene: Scene, model) -> Scene:
    return replace(scene, model=model, steps=2)


@functools.cache
def hand_made(comfy, update: oracle.Update = UPDATE) -> torch.Tensor:
    scene = replace(small_scene(), steps=2)
    sampling = scene.model.get_model_object("model_sampling")
    with oracle.applied(oracle.Ebca(sampling, scene.prompts(), [update]), scene.model):
        return scene.sampled(comfy)


# For every push EBCA first is tried with core's node.
@pytest.mark.parametrize(("way", "order", "traced"), [
    pytest.param(*case, marks=pytest.mark.nightly if case[1] == EBCA_FIRST and case[0] != "core's node" else ())
    for case in CASES
])  # fmt: skip
def test_equals_the_hand_made_run(comfy, caplog, backend, way, order, traced):
    compiled, scene = WAYS[way], small_scene()
    plain = compiled(comfy, scene.model, backend)
    if traced:  # without EBCA
        on(scene, plain).sampled(comfy)
        assert backend.runs > 0
    model = ebca(comfy, plain) if order == COMPILE_FIRST else compiled(comfy, ebca(comfy, scene.model), backend)

    backend.runs = 0
    got = on(scene, model).sampled(comfy)

    assert relative_error(got, hand_made(comfy)) < 1e-5
    assert backend.runs == 0
    assert [warning for warning in messages(caplog) if "torch.compile" in warning] == messages(caplog)
    assert len(messages(caplog)) == 1


@pytest.mark.parametrize(
    ("way", "order"), [*((way, COMPILE_FIRST) for way in WAYS), ("core's node", EBCA_FIRST)]
)
def test_outside_its_window_compiled_code_runs(comfy, caplog, backend, way, order):
    scene, window = small_scene(), dict(start_percent=0.1, end_percent=0.11)
    alone = on(scene, WAYS[way](comfy, scene.model, backend)).sampled(comfy)
    runs, backend.runs = backend.runs, 0
    if order == COMPILE_FIRST:
        model = ebca(comfy, WAYS[way](comfy, scene.model, backend), **window)
    else:
        model = WAYS[way](comfy, ebca(comfy, scene.model, **window), backend)

    assert torch.equal(on(scene, model).sampled(comfy), alone)
    assert backend.runs == runs > 0
    assert not messages(caplog)


def test_compiled_code_runs_again_once_the_window_ends(comfy, backend):
    scene = small_scene()
    model = core(comfy, ebca(comfy, scene.model, end_percent=0.5), backend)
    got = on(scene, model).sampled(comfy)
    assert relative_error(got, hand_made(comfy, replace(UPDATE, window=(0.0, 0.5)))) < 1e-5
    assert backend.runs > 0
