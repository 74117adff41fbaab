"""The tests run inside a real ComfyUI, which boots once, before any test module is collected.

`python run.py test` sets COMFYUI_PATH. Under plain pytest the ComfyUI that run.py has fetched is taken.
"""

import importlib.util
import os
import sys
import tempfile
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]


def _packages():
    """devtools/packages.py by its path: nothing of the repository is importable yet."""
    spec = importlib.util.spec_from_file_location("_packages", REPO / "devtools" / "packages.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


import_package = _packages().import_package
import_package("devtools")

from devtools import inprocess  # noqa: E402
from devtools.environment import NEWEST, tree  # noqa: E402
from devtools.server import PACK, Server  # noqa: E402
from devtools.twins import INPUTS, MODELS  # noqa: E402

COMFYUI = Path(os.environ.get("COMFYUI_PATH") or tree(NEWEST))
if not (COMFYUI / "main.py").is_file():
    raise pytest.UsageError(f"No ComfyUI in {COMFYUI}. Run `python run.py test` once, or set COMFYUI_PATH.")
_base = tempfile.TemporaryDirectory(prefix="ebca_tests_", ignore_cleanup_errors=True)
# EBCA_HOST_FLAGS runs the same tests with other flags, say `--cpu --use-split-cross-attention` or none for a GPU.
inprocess.boot(COMFYUI, Path(_base.name), os.environ.get("EBCA_HOST_FLAGS", inprocess.CPU_FLAGS))

import_package("ebca_core")

from support import global_state, host  # noqa: E402

SHAPES_FAMILY = REPO / "demo" / "shapes_family"


def pytest_addoption(parser):
    help_text = "run the workflow files on random weights in the size and steps they ship with (long)"
    parser.addoption("--full-size", action="store_true", help=help_text)
    parser.addoption("--update-schemas", action="store_true", help="see tests/test_schemas.py")
    parser.addoption("--cases", type=int, default=80, help="how many random prompts tests/test_bad_input.py tries")


@pytest.fixture(autouse=True)
def nothing_left_behind():
    """Fail a test that leaves a setting of the process changed, under which all later tests would run."""
    before = global_state.snapshot()
    yield
    if changed := global_state.changes(before, global_state.snapshot()):
        pytest.fail(f"The test left changed: {'; '.join(changed)}. Put it back, say with monkeypatch.", pytrace=False)


@pytest.fixture(scope="session")
def comfyui_root() -> Path:
    """The folder of the ComfyUI that the tests run in."""
    return COMFYUI


@pytest.fixture(scope="session")
def comfy():
    """ComfyUI's `nodes` module with its built-in extras and this pack, loaded as ComfyUI loads them."""
    return host.load_nodes(REPO)


@pytest.fixture(scope="session")
def pack(comfy):
    """This pack's own package as ComfyUI loaded it: `pack.comfyui_binding` and so on are its subpackages."""
    return sys.modules[host.module_name(REPO)]


@pytest.fixture(scope="session")
def run_prompt(comfy):
    """A function that runs a prompt in API format through ComfyUI's validation and executor."""
    return host.run_prompt


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """A running ComfyUI with the pack, the twins' models and a checkpoint of random weights in SD 1.5's layout.

    Its checkpoints are shapes.safetensors, things.safetensors and random_sd15.ckpt; its input folder holds the twins'
    photos.
    Its loaders for transformers are in `support.stand_ins`. Tests with this fixture carry the mark `server`.
    """
    from support import stand_ins
    from support.checkpoints import write_checkpoint

    random_sd15 = write_checkpoint(tmp_path_factory.mktemp("checkpoints") / "random_sd15.ckpt")
    packs = {
        PACK: REPO,
        "shapes_family": SHAPES_FAMILY,
        "stand_ins": stand_ins.write_pack(tmp_path_factory.mktemp("stand_ins")),
    }
    models = {f"checkpoints/{name}": file for name, file in {random_sd15.name: random_sd15, **MODELS}.items()}
    with Server(COMFYUI, packs=packs, models=models, inputs=INPUTS) as running:
        yield running


@pytest.fixture(scope="session")
def object_info(server) -> dict:
    """What the running server says of its nodes; `devtools.workflows.to_api` wants it."""
    return server.object_info()


@pytest.fixture(scope="session")
def workflow_runs(server, object_info):
    """A function that runs a workflow file with substitutions: see `support.workflow_runs`."""
    from support.workflow_runs import WorkflowRuns

    return WorkflowRuns(server, object_info)
