"""The structure of the product: what may import what, and one name for each module and class."""
from __future__ import annotations

import ast
import graphlib
import re
import sys
from collections import Counter
from pathlib import Path

import pytest

from support import toy
from support.host import node
from support.sampling import sample

REPO = Path(__file__).resolve().parents[1]
PACKAGES = ("ebca_core", "comfyui_binding", "nodes", "plots")
MODULES = {
    path.relative_to(REPO).with_suffix("").as_posix().replace("/", "."): path
    for package in PACKAGES
    for path in sorted((REPO / package).rglob("*.py"))
}


def imports(module: str, at_run_time: bool = True) -> set[str]:
    """The product's own modules that a module imports; without those for type checking, where at_run_time."""
    tree = ast.parse(MODULES[module].read_text())
    if at_run_time:
        tree.body = [node for node in tree.body if not isinstance(node, ast.If)]  # `if TYPE_CHECKING:`
    parts = module.split(".")[:-1]
    found = set()
    for statement in ast.walk(tree):
        if isinstance(statement, ast.ImportFrom) and statement.level:
            base = [*parts[: len(parts) - statement.level + 1], *(statement.module or "").split(".")]
            base = [part for part in base if part]
            for name in statement.names:
                for candidate in ([*base, name.name], base, [*base, "__init__"]):
                    if ".".join(candidate) in MODULES:
                        found.add(".".join(candidate))
                        break
    return found


def test_no_import_cycle():
    graphlib.TopologicalSorter({module: imports(module) - {module} for module in MODULES}).prepare()


def test_the_runtime_knows_no_architecture_no_trace_and_no_sampler():
    forbidden = ("comfyui_binding.architectures", "comfyui_binding.trace", "comfyui_binding.samplers", "nodes", "plots")
    for module in MODULES:
        if module.startswith("comfyui_binding.runtime"):
            assert [name for name in imports(module) if name.startswith(forbidden)] == [], module


def test_every_module_has_a_name_of_its_own():
    names = Counter(module.split(".")[-1] for module in MODULES if not module.endswith("__init__"))
    assert [name for name, count in names.items() if count > 1] == []


def test_every_class_has_a_name_of_its_own():
    names = Counter(
        found.name
        for path in MODULES.values()
        for found in ast.walk(ast.parse(path.read_text()))
        if isinstance(found, ast.ClassDef) and not found.name.startswith("_")
    )
    protocols = {"CallRecorder", "RunRecorder"}  # a protocol of the runtime, and what implements it
    assert {name for name, count in names.items() if count > 1} <= protocols


@pytest.mark.parametrize("package", ["comfyui_binding", "nodes"])
def test_the_map_in_the_docstring_has_every_module(package):
    listed, folder = [], ""
    for line in ast.get_docstring(ast.parse((REPO / package / "__init__.py").read_text())).splitlines():
        entry = re.match(r"(?P<folder>\w+/)\s|(?P<indent> *)(?P<module>\w+\.py)  ", line)
        if entry and entry["folder"]:
            folder = entry["folder"]
        elif entry:
            listed.append((folder if entry["indent"] else "") + entry["module"])
    modules = [path.relative_to(REPO / package).as_posix() for path in sorted((REPO / package).rglob("*.py"))]
    assert sorted(listed) == sorted(module for module in modules if not module.endswith("__init__.py"))


def test_python_calls_per_layer(comfy):
    """With one update and two edits that have gammas of their own: the price of the path itself."""
    edits = {
        f"edit{i}": node(comfy, "EBCAEditContext").execute(
            conditioning=toy.conditioning(2 + i), start_percent=0.0, gamma_start_percent=0.0, direction=direction
        )[0]
        for i, direction in enumerate(("add", "remove"))
    }
    model = node(comfy, "EBCAContextUpdate").execute(model=toy.model())[0]
    model = node(comfy, "EBCACompose").execute(model=model, edits=edits)[0]
    layers = sum(hasattr(module, "attn2") for module in model.model.diffusion_model.modules())
    calls, inside = Counter(), []

    def profile(frame, event, arg):
        path, name = frame.f_code.co_filename, frame.f_code.co_name
        if event == "call" and name == "attn2_patch":
            inside[:] = [True]
        if event == "call" and name == "finish":
            inside.clear()
        if event == "call" and inside and any(f"/{package}/" in path for package in PACKAGES):
            calls[path] += 1

    sys.setprofile(profile)
    try:
        sample(model, toy.conditioning(1), steps=1)
    finally:
        sys.setprofile(None)
    assert 0 < sum(calls.values()) / layers <= 80
    assert len(calls) <= 4
