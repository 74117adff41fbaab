"""The bench of ComfyUI's templates: which model a template samples, and what the pack says of it."""
from __future__ import annotations

import importlib

import pytest
from comfyui_version import __version__

from devtools.environment import OLDEST
from support import stand_ins


@pytest.fixture(scope="module")
def bench(pack):
    return importlib.import_module("bench.templates")


@pytest.fixture(scope="module")
def architectures(pack):
    return importlib.import_module(f"{pack.__name__}.comfyui_binding.architectures")


def loader(file, kind="UNETLoader"):
    return {"type": kind, "widgets_values": [file, "default"]}


def test_models_of_a_workflow(bench):
    """Those of its loaders, also in subgraphs; none where nothing is sampled; detectors beside them do not count."""
    sampler = {"type": "KSampler", "widgets_values": []}
    inner = {"nodes": [loader("wan2.2_t2v_high_noise_14B.safetensors"), sampler]}
    graph = {"nodes": [loader("sam3.safetensors", "CheckpointLoaderSimple")], "definitions": {"subgraphs": [inner]}}
    assert bench.models_of(graph) == ["wan2.2_t2v_high_noise_14B.safetensors"]
    assert bench.models_of({"nodes": [loader("anima-base.safetensors")]}) == []


@pytest.mark.parametrize(("file", "is_accepted"), [
    ("wan2.1_vace_14B_fp16.safetensors", True), ("Wan2_1-I2V-14B-480p.safetensors", True),
    ("anima-base-v1.0.safetensors", True), ("ltx-2.3-22b-dev-fp8.safetensors", True),
    ("acestep_v1.5_turbo.safetensors", True), ("sd_xl_base_1.0.safetensors", True),
    ("causal_forcing-framewise.safetensors", False), ("qwen_image_fp8_e4m3fn.safetensors", True),
    ("flux2_dev_fp8mixed.safetensors", True), ("hunyuanvideo1.5_720p_t2v_fp16.safetensors", False),
    ("lotus-depth-d-v1-1.safetensors", False), ("something_new.safetensors", False),
])  # fmt: skip
def test_verdict_on_a_file(bench, architectures, file, is_accepted):
    accepted, reason = bench.verdict(bench.recognised(file)[1], architectures, "ComfyUI")
    assert accepted == is_accepted == (not reason)


@pytest.mark.skipif(__version__ == OLDEST, reason="it lacks some of the networks of the workflow files")
def test_tiny_models_of_the_workflow_files_are_of_the_network_of_the_named_file(bench):
    for file, model in stand_ins.DIFFUSION_MODELS.items():
        network = type(model().model.diffusion_model)
        assert f"{network.__module__}.{network.__name__}" == f"comfy.ldm.{bench.recognised(file)[1]}"


def test_every_network_has_an_answer(bench, architectures):
    for _, network in bench.FILES.values():
        bench.verdict(network, architectures, "ComfyUI")
