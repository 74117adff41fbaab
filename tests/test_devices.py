"""Operations that a device lacks or limits, by name: no code of the method or of its binding may use them there.

What the table says of MPS is PyTorch's: adaptive pooling wants sizes that divide (issues 97109, 143864), float64 does
not exist, and the rest is missing or falls back to the CPU only with an environment variable.
"""
from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch

from support import toy
from support.host import node
from support.log_messages import messages
from support.sampling import relative_error, sample

REPO = Path(__file__).resolve().parents[1]
MODULES = [
    path
    for package in ("ebca_core", "comfyui_binding")
    for path in sorted((REPO / package).rglob("*.py"))
    if "import torch" in path.read_text() or "from torch" in path.read_text()
]

POOLS = [f"adaptive_{kind}_pool{axes}d" for kind in ("avg", "max") for axes in (1, 2, 3)]
#: {why it is forbidden: names in the code}
REASONS = {
    "MPS: sizes must be multiples": [*POOLS, "AdaptiveAvgPool2d", "AdaptiveMaxPool2d"],
    "MPS has no float64": ["float64", "double", "complex128"],
    "MPS: not there": ["svd", "eigh", "eig", "qr", "lstsq", "matrix_exp", "pinv", "kthvalue", "histc", "nanmedian"],
    "MPS: not there, or not for all types": ["bincount", "cummax", "cummin", "cumprod", "logcumsumexp", "digamma"],
    "MPS: in part": ["grid_sample", "upsample_bicubic2d", "unique_consecutive"],
    "not deterministic on devices": ["index_put_", "index_put", "scatter_reduce", "index_add_", "put_"],
    "MPS: wrong for more than 4 axes or 2**32 entries": ["gather"],
}
FORBIDDEN = {name: reason for reason, names in REASONS.items() for name in names}
#: (module, name): why it may be used there all the same.
ALLOWED = {
    ("recorder", "float64"): "what the run has recorded is on the CPU then",
    ("recorder", "double"): "what the run has recorded is on the CPU then",
    ("recorder", "index_put_"): "what the run has recorded is on the CPU then",
    ("noise_regularisation", "gather"): "four axes of a latent",
}


def names(module: Path) -> set[str]:
    tree = ast.walk(ast.parse(module.read_text()))
    return {getattr(found, "attr", None) or getattr(found, "id", None) for found in tree} - {None}


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.stem)
def test_no_operation_that_a_device_lacks(module):
    used = names(module) & FORBIDDEN.keys()
    assert {name: FORBIDDEN[name] for name in used if (module.stem, name) not in ALLOWED} == {}


def test_every_exception_is_needed():
    used = {(module.stem, name) for module in MODULES for name in names(module)}
    assert ALLOWED.keys() <= used


@pytest.mark.parametrize("size", [(16, 16), (64, 64), (64, 96), (48, 80), (52, 76), (33, 128), (8, 100)], ids=str)
def test_maps_are_averaged_as_adaptive_pooling_does(pack, size):
    maps = toy.noise(2, 3, *size).sigmoid()
    trace = pack.comfyui_binding.trace
    for longest in (trace.recorder.MAP_SIDE, trace.object_maps.OBJECT_SIDE):
        scale = min(1.0, longest / max(size))
        expected = torch.nn.functional.adaptive_avg_pool2d(maps, [max(1, round(side * scale)) for side in size])
        got = trace.map_pooling.pooled(maps, longest)
        assert got.shape == expected.shape
        assert relative_error(got, expected) < 1e-6


@pytest.mark.parametrize("size", [(16, 24), (52, 76)], ids=str)
def test_maps_are_recorded_where_adaptive_pooling_wants_multiples(comfy, monkeypatch, caplog, size):
    def as_on_mps(maps, output_size):
        raise RuntimeError("Adaptive pool MPS: input sizes must be divisible by output sizes.")

    monkeypatch.setattr(torch.nn.functional, "adaptive_avg_pool2d", as_on_mps)
    model, trace = node(comfy, "EBCATrace").execute(model=toy.model(), attention_maps=True)
    sample(model, toy.conditioning(1), latent=toy.latent(1, *size), steps=1)
    assert trace.record.maps
    assert not messages(caplog)
